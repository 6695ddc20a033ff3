#!/bin/sh
# The guided tour. `npm start -- --linux` gives it on a Debian guest under QEMU.
set -e
cd "$(dirname "$0")/.."
scripts/build.sh
case " $* " in *" --linux "*) scripts/setup-linux-guest.sh ;; esac
exec node --enable-source-maps dist/examples/tour/main.js "$@"
