#!/bin/sh
# The guided tour. `npm start -- --linux` gives it on a Debian guest under QEMU.
set -e
cd "$(dirname "$0")/.."
scripts/build.sh
case " $* " in *" --linux "*) scripts/install-debian-packages.sh qemu-system-x86 busybox-static cpio ;; esac
exec node --enable-source-maps dist/examples/tour/main.js "$@"
