#!/bin/sh
# Makes dirty.img.gz: an ext4 filesystem as a guest leaves it that is killed
# right after a kernel upgrade and a sync. The new kernel's directory entries are
# in the journal only; an old directory is gone, and its blocks are revoked.
# Needs root and a loop device: the image is copied while it is mounted.
set -eu
work=$(mktemp -d)
trap 'umount "$work/mnt" 2>/dev/null; rm -rf "$work"' EXIT
mkdir "$work/mnt" "$work/tree"
mkdir -p "$work/tree/boot/grub" "$work/tree/old"
echo 'old kernel' >"$work/tree/boot/vmlinuz-1"
ln -s vmlinuz-1 "$work/tree/boot/vmlinuz"
echo 'linux /boot/vmlinuz-1' >"$work/tree/boot/grub/grub.cfg"
for i in $(seq 1 60); do echo "$i" >"$work/tree/old/a file that goes $i"; done
truncate -s 8M "$work/img"
mke2fs -q -F -t ext4 -b 1024 -O "${FEATURES:-metadata_csum,64bit}" -J size=1 -d "$work/tree" "$work/img"
mount -o loop,commit=300,nodelalloc "$work/img" "$work/mnt"
sync
echo 'new kernel' >"$work/mnt/boot/vmlinuz-2"
ln -sf vmlinuz-2 "$work/mnt/boot/vmlinuz"
mkdir "$work/mnt/boot/modules"
for i in $(seq 1 40); do echo "$i" >"$work/mnt/boot/modules/module number $i"; done
rm -r "$work/mnt/old"
echo 'linux /boot/vmlinuz-2' >"$work/mnt/boot/grub/grub.cfg.new"
mv "$work/mnt/boot/grub/grub.cfg.new" "$work/mnt/boot/grub/grub.cfg"
# A sync of one file commits the journal, and writes nothing to its own place.
sync "$work/mnt/boot/grub/grub.cfg"
mkdir "$work/mnt/again"
for i in $(seq 1 40); do echo "$i" >"$work/mnt/again/$i"; done
sync "$work/mnt/again/40"
# What the kernel still holds in memory is not in this copy.
dd if="$work/img" of="$work/copy" bs=64k conv=sparse status=none
umount "$work/mnt"
gzip -9n <"$work/copy" >"$(dirname "$0")/${OUT:-dirty.img.gz}"
