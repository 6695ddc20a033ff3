#!/bin/sh
# The tests that need no virtual machine: no QEMU, KVM, libvirt or gcc, no root. Those are, by their place, the tests
# beside the sources (`npm run lint` keeps it so), those of the documents and of the benchmarks' own code, and the
# conformance suite on the embedded machine. `npm test` is the whole.
set -e
cd "$(dirname "$0")/.."
scripts/build.sh
tests=$(find src test/docs test/bench test/conformance/embedded.test.ts -name '*.test.ts' | sort | sed 's,^,dist/,; s,\.ts$,.js,')
# shellcheck disable=SC2086 — one word a file
exec node --enable-source-maps --test --test-timeout=300000 --test-concurrency="$(getconf _NPROCESSORS_ONLN)" \
  --test-reporter="${KVMI_TEST_REPORTER:-dot}" $tests
