#!/bin/sh
# Makes the installed packages an image: $1 is the root. What belongs to one
# machine alone is left out, and made by each guest for itself.
set -eu
root=$1

echo 'LABEL=debian-12 / ext4 discard,errors=remount-ro 0 1' >"$root"/etc/fstab
echo debian >"$root"/etc/hostname
echo 'LANG=C.UTF-8' >"$root"/etc/default/locale
: >"$root"/etc/machine-id
rm -f "$root"/var/lib/dbus/machine-id "$root"/etc/ssh/ssh_host_*

chroot "$root" systemctl -q enable systemd-networkd ssh qemu-guest-agent
# Nothing waits for these at boot, and an image is updated by building it anew.
chroot "$root" systemctl -q disable systemd-networkd-wait-online
chroot "$root" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root"/etc/resolv.conf

# A guest has the drivers of QEMU's devices in its initial RAM disk, no more.
sed -i 's/^MODULES=.*/MODULES=list/' "$root"/etc/initramfs-tools/initramfs.conf
printf '%s\n' virtio_pci virtio_blk virtio_scsi virtio_net ext4 crc32c_generic crc32c_intel sr_mod isofs nvme \
	>>"$root"/etc/initramfs-tools/modules
chroot "$root" update-initramfs -u -k all >/dev/null

chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/ldconfig/aux-cache \
	"$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/var/log/*.log "$root"/var/log/apt/* "$root"/tmp/*
