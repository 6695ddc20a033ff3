#!/bin/sh
# Installs the npm packages when they are missing and compiles src/, test/, bench/ and examples/ to dist/.
set -e
cd "$(dirname "$0")/.."
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  echo 'kvmi: installing npm packages' >&2
  npm ci --no-audit --no-fund --loglevel=error >&2
fi
npx --no-install tsc -p tsconfig.json "$@"
# tsc leaves the stamp alone when nothing changed
touch dist/.tsbuildinfo
