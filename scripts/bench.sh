#!/bin/sh
# Prints every benchmark with the limit or the peer that it is measured against in the same run.
set -e
cd "$(dirname "$0")/.."
scripts/build.sh >&2
exec node --enable-source-maps dist/bench/main.js "$@"
