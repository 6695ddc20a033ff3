#!/bin/sh
# Everything that decides whether a change is good: format, lint, import rule, unit and end-to-end tests.
set -e
cd "$(dirname "$0")/.."
scripts/build.sh
scripts/install-debian-packages.sh qemu-system-x86 busybox-static cpio gcc libc6-dev binutils gdb zstd makedumpfile libunicorn2 libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
npm run --silent lint
# Of the sources that are there: dist/ keeps what was compiled from others.
tests=$(find src test -name '*.test.ts' | sort | sed 's,^,dist/,; s,\.ts$,.js,')
# shellcheck disable=SC2086 — one word a file
exec node --enable-source-maps --test --test-timeout=900000 --test-reporter="${KVMI_TEST_REPORTER:-spec}" $tests
