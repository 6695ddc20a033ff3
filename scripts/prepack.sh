#!/bin/sh
# Compiles for `npm pack` and `npm publish`: nothing that is left from sources that are gone, and no source maps, whose
# sources the package does not have.
set -e
cd "$(dirname "$0")/.."
rm -rf dist
# npm reads the standard output
scripts/build.sh --sourceMap false >&2
