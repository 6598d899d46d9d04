#!/bin/sh
set -eu
export SOURCE_DATE_EPOCH=1700000000 E2FSPROGS_FAKE_TIME=1700000000
sh '/home/o'\''hara/most/sub/customize.sh' "$1"
tree="$1"'/tiny'
mkdir -p "$tree"'/sbin'
cp '/home/o'\''hara/most/init' "$tree"'/sbin/init'
chmod 0755 "$tree"'/sbin/init'
mkdir -p "$tree"'/etc'
cp '/work/tmp/content-1' "$tree"'/etc/motd'
chmod 0644 "$tree"'/etc/motd'
mkdir -p "$tree"'/a $b'
cp '/home/o'\''hara/most/d e' "$tree"'/a $b/c'
chmod 600 "$tree"'/a $b/c'
mkdir -p "$tree/boot/grub"
cp '/work/tmp/grub.cfg' "$tree/boot/grub/grub.cfg"
work=$(mktemp -d '/work/tmp/scratch'/XXXXXXXXXXXX)
mkdir "$work/plain"
mount --bind "$1" "$work/plain"
trap 'umount "$work/plain"; rm -rf --one-file-system "$work"' EXIT
plain="$work/plain" img="$work/root.ext4"
tree="$plain"'/tiny'
rm -rf "$tree"/dev/* "$tree"/run/* 2>/dev/null || true
find "$tree" -newermt '@1700000000' -exec touch -h -d '@1700000000' {} +
truncate -s -9437184 "$img"
/sbin/mke2fs -q -t ext4 -F -L 'most.with-a-long' -U 2cbb0f4a-1e2f-5724-85e9-daf0657428a5 -E hash_seed=24d90a8a-431b-572e-bcac-47772e042de3,lazy_itable_init=0,root_owner=0:0 -d "$tree" "$img"
n=$(/sbin/dumpe2fs -h "$img" 2>/dev/null | awk -F: '/^Inode count/{a=$2} /^Free inodes/{f=$2} END{print a-f}')
{ for i in 2 $(seq 11 $n); do for t in atime ctime mtime crtime; do
  [ $t = mtime ] || echo "set_inode_field <$i> $t @1700000000"
  [ $t = mtime ] || echo "set_inode_field <$i> ${t}_extra 0"
done; done; } >"$work/times"
/sbin/debugfs -w -f "$work/times" "$img" >/dev/null 2>&1
dd if="$img" bs=64k conv=sparse,notrunc status=none >&4
