#!/bin/sh
# Installs the npm packages when they are missing and compiles src/, test/, bench/, examples/ and scripts/ to dist/.
set -e
cd "$(dirname "$0")/.."
stamp=dist/.tsbuildinfo
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  echo 'kvmi: installing npm packages' >&2
  npm ci --no-audit --no-fund --loglevel=error >&2
fi
if [ ! -e "$stamp" ] || [ -n "$(find src test bench examples scripts -newer "$stamp" 2>/dev/null | head -n 1)" ]; then
  echo 'kvmi: compiling (once after each change)…' >&2
fi
if ! npx --no-install tsc -p tsconfig.json "$@"; then
  # what tsc writes in spite of errors counts as stale
  [ ! -e "$stamp" ] || touch -t 197001020000 "$stamp"
  echo 'kvmi: error: the sources do not compile; what tsc said is above' >&2
  exit 1
fi
# tsc leaves the stamp alone when nothing changed
touch "$stamp"
