#!/bin/sh
# Lets random misfortunes happen to hooked QEMU guests, and looks whether they come to harm. Reproducible with --seed.
set -e
cd "$(dirname "$0")/.."
scripts/build.sh >&2
exec node --enable-source-maps dist/test/soak/main.js "$@"
