#!/bin/sh
# The guided tour. `npm start -- --linux` gives it on a Debian guest under QEMU.
set -e
cd "$(dirname "$0")/.."
# Types are checked by the tests; whoever takes the tour does not wait for that.
scripts/build.sh --noCheck
case " $* " in *" --linux "*) scripts/install-debian-packages.sh qemu-system-x86 busybox-static cpio ;; esac
exec node --enable-source-maps dist/examples/tour/main.js "$@"
