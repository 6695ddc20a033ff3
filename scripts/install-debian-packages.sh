#!/bin/sh
# Installs Debian packages (the arguments) that are missing, where that is possible: as root on Debian.
# Elsewhere it names them and goes on: what needs them says so. Kernels of guests are not among them; those
# are downloaded and unpacked, never installed.
set -e
missing=''
for package in "$@"; do
  dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  # package lists are needed for the guests' kernels, too
  apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || apt-get update -qq >&2 || true
  [ -n "$missing" ] || exit 0
  echo "kvmi: installing Debian packages:$missing" >&2
  # shellcheck disable=SC2086 — a list of words
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
fi
[ -n "$missing" ] || exit 0
echo "kvmi: not installed:$missing" >&2
echo "kvmi: as root on Debian or Ubuntu: apt-get install$missing" >&2
