#!/usr/bin/env bash
# Runs a command where libvirt answers. An ordinary user has qemu:///session,
# which starts by itself; libvirt gives root no session, so root without a
# running libvirtd (a container, CI) gets one for the time of the command: in
# mount and pid namespaces of its own, so that nothing of the host's libvirt is
# touched and nothing outlives the command.
#
#   hack/with-libvirt.sh COMMAND [ARGUMENT...]
set -euo pipefail

if [ "$(id -u)" -ne 0 ] || virsh --quiet -c qemu:///system uri >/dev/null 2>&1; then
  exec "$@"
fi

inside() {
  local base=$1
  shift
  for d in run/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt etc/libvirt; do
    mkdir -p "$base/$d" "/$d"
    case $d in
    etc/libvirt) cp -a /etc/libvirt/. "$base/$d/" ;;
    var/lib/libvirt) mkdir -p "$base/$d"/{qemu,dnsmasq,images,boot,swtpm} ;;
    esac
    mount --bind "$base/$d" "/$d"
  done
  if id libvirt-qemu >/dev/null 2>&1; then
    chown libvirt-qemu: "$base/var/lib/libvirt/qemu"
  fi
  # Where the guests' user cannot open /dev/kvm, libvirt probes QEMU anew for a
  # minute at every start. The same device with another mode cures it.
  if [ -c /dev/kvm ]; then
    mknod -m 0666 "$base/kvm" c 10 232
    mount --bind "$base/kvm" /dev/kvm
  fi
  rm -f /etc/libvirt/qemu/networks/autostart/*.xml
  virtlogd -d -p "$base/virtlogd.pid"
  libvirtd -d -p "$base/libvirtd.pid"
  local status=0
  "$@" || status=$?
  kill "$(cat "$base/libvirtd.pid")" "$(cat "$base/virtlogd.pid")" 2>/dev/null || true
  return "$status"
}

base=$(mktemp -d /tmp/kami-libvirt-XXXXXX)
chmod 0755 "$base"
trap 'rm -rf "$base"' EXIT
printf 'with-libvirt: no libvirtd answers root; running one for this command\n' >&2
unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
  bash -c 'set -euo pipefail; '"$(declare -f inside)"'; inside "$@"' bash "$base" "$@"
