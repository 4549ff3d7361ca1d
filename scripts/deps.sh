#!/usr/bin/env bash
# Installs what building, testing and running vft needs from Debian's
# packages. Installs nothing that is there; without root it only says what is
# missing. Needs Debian 12 or later.
set -euo pipefail

packages=(
  qemu-system-x86           # runs the guests
  openmpi-bin libopenmpi-dev
  mpich libmpich-dev
  hpcc                      # the demo's program
  netpipe-openmpi netpipe-mpich2
  mmdebstrap squashfs-tools # build the guest image
  busybox-static cpio zstd
  gcc libc6-dev             # test programs, race detector
  iproute2                  # network namespaces of `vft lab --netns`
  procps
  tcpdump                   # reads captures back in tests
)

# Looks at reports in a test, and draws their figures as PNG; nobody else needs them.
[ "${1:-}" != browser ] || packages+=(chromium librsvg2-bin fonts-liberation)

missing=()
for p in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$p")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "missing packages; ask for: apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "installing: ${missing[*]}"
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
