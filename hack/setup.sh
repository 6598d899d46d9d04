#!/usr/bin/env bash
# Installs the Debian packages that kami needs and that are missing. It asks
# nothing and prints what it does. As root it installs; as an ordinary user it
# says what is missing and how to get it, and succeeds when nothing is. With the
# argument "bench" it looks after what kami is measured beside, too.
set -euo pipefail

# What each is for:
packages=(
  # guests and their disks
  qemu-system-x86 qemu-utils ovmf
  libvirt-daemon-system libvirt-clients libxml2-utils
  # guests of another architecture, and with a TPM
  qemu-system-arm qemu-efi-aarch64 swtpm swtpm-tools
  # the NAT network of qemu:///system
  dnsmasq-base iptables nftables iproute2
  # building images: the root tree, filesystems, boot loaders, archives
  mmdebstrap uidmap debian-archive-keyring e2fsprogs dosfstools mtools
  grub-common grub-pc-bin grub-efi-amd64-bin xorriso cpio kmod
  xz-utils zstd openssl ca-certificates
  # logging in
  openssh-client
  # tests of object stores: an SFTP server, and another reader of chunks
  openssh-sftp-server casync
  # compiling kami: cgo for libvirt, which is loaded at run time
  gcc libc6-dev make
)
if [ "${1:-}" = bench ]; then
  packages+=(restic borgbackup)
fi

say() { printf 'setup: %s\n' "$*"; }

installed() {
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null || true)" = installed ]
}

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  say "this is not Debian; install the equivalents of: ${packages[*]}"
  exit 0
fi

missing=()
for p in "${packages[@]}"; do
  installed "$p" || missing+=("$p")
done

if [ ${#missing[@]} -eq 0 ]; then
  say "all ${#packages[@]} packages are here"
  exit 0
fi

if [ "$(id -u)" -ne 0 ]; then
  {
    say "missing packages: ${missing[*]}"
    say "get them with:"
    say "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
  } >&2
  exit 1
fi

# Without systemd, package scripts that start services would fail or leave
# daemons behind; this is Debian's own way of telling them not to.
policy=/usr/sbin/policy-rc.d
if [ ! -d /run/systemd/system ] && [ ! -e "$policy" ]; then
  say "no systemd runs here: services are installed and not started"
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 0755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi

export DEBIAN_FRONTEND=noninteractive

retry() {
  local n
  for n in 1 2 3 4; do
    "$@" && return 0
    say "failed (try $n of 4): $*"
    sleep $((n * 5))
  done
  return 1
}

say "installing: ${missing[*]}"
retry apt-get -q update
retry apt-get -q install -y --no-install-recommends \
  -o Dpkg::Options::=--force-confold "${missing[@]}"

for p in "${missing[@]}"; do
  installed "$p" || { say "$p is still not installed" >&2; exit 1; }
done
say "done"
