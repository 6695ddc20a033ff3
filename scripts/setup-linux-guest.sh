#!/bin/sh
# Installs what the QEMU driver's demonstration and tests need, where that is possible: as root on Debian.
# Elsewhere it names the packages. The guest's kernel is downloaded and unpacked, never installed.
set -e
PACKAGES='qemu-system-x86 busybox-static cpio'
missing=''
for package in $PACKAGES; do
  case $package in
    qemu-system-x86) command -v qemu-system-x86_64 >/dev/null || missing="$missing $package" ;;
    busybox-static) [ -x /bin/busybox ] || missing="$missing $package" ;;
    *) command -v "$package" >/dev/null || missing="$missing $package" ;;
  esac
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "kvmi: installing Debian packages:$missing" >&2
  apt-get update -qq >&2
  # shellcheck disable=SC2086 — a list of words
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2 && exit 0
fi
echo "kvmi: not installed, and needed for Linux guests under QEMU:$missing" >&2
echo "kvmi: as root on Debian or Ubuntu: apt-get install$missing" >&2
