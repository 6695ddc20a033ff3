#!/bin/sh
# Prints every benchmark with the limit or the peer that it is measured against in the same run.
set -e
cd "$(dirname "$0")/.."
scripts/build.sh
exec node --enable-source-maps --expose-gc dist/bench/main.js "$@"
