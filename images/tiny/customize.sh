#!/bin/sh
# Makes the tree of the guest, $1/tiny, out of packages extracted in $1, and an
# initial RAM disk with the few drivers that it needs.
set -eu
root=$1
tree=$root/tiny
kernel=$(basename "$root"/boot/vmlinuz-*)
version=${kernel#vmlinuz-}
modules=$root/lib/modules/$version/kernel

mkdir -p "$tree"/bin "$tree"/sbin "$tree"/etc/dropbear "$tree"/lib/modules "$tree"/lib64 "$tree"/boot/grub \
	"$tree"/dev "$tree"/proc "$tree"/sys "$tree"/run "$tree"/tmp "$tree"/root "$tree"/var/log "$tree"/mnt
chmod 1777 "$tree"/tmp
chmod 0700 "$tree"/root

find_file() { # NAME: the program or library of that name in the packages
	for dir in "$root"/bin "$root"/sbin "$root"/usr/bin "$root"/usr/sbin "$root"/lib "$root"/lib64 "$root"/lib/*-linux-gnu* \
		"$root"/usr/lib "$root"/usr/lib/*-linux-gnu*; do
		if [ -f "$dir/$1" ]; then
			echo "$dir/$1"
			return
		fi
	done
	echo "$1 is in none of the packages" >&2
	exit 1
}

cp "$(find_file busybox)" "$tree"/bin/busybox
for name in sh cat ls mount umount mkdir cp mv rm ln ps kill sleep sync hostname dmesg ip udhcpc getty login \
	passwd sed grep awk head tail wc cut tr sort df du free uname date id whoami touch chmod chown stat dd \
	reboot poweroff halt losetup vi less find xargs od hexdump sha256sum test echo printf true false env \
	blkid lsmod insmod modprobe mdev nc wget tar gzip gunzip fdisk blockdev tee seq expr basename dirname readlink mknod; do
	ln -s busybox "$tree/bin/$name"
done
cp "$(find_file dropbear)" "$tree"/sbin/dropbear
cp "$(find_file dropbearkey)" "$tree"/bin/dropbearkey
# What starts programs that have libraries, where each architecture has it.
for ld in lib64/ld-linux-x86-64.so.2 lib/ld-linux-aarch64.so.1 lib/ld-linux.so.2; do
	if [ -e "$root/$ld" ] || [ -L "$root/$ld" ]; then
		cp -L "$(find_file "${ld##*/}")" "$tree/$ld"
	fi
done
for lib in libtomcrypt.so.1 libtommath.so.1 libgmp.so.10 libz.so.1 libcrypt.so.1 libc.so.6; do
	cp -L "$(find_file "$lib")" "$tree/lib/$lib"
done

echo 'root:x:0:0:root:/root:/bin/sh' >"$tree"/etc/passwd
echo 'root:*:19000:0:99999:7:::' >"$tree"/etc/shadow
chmod 0600 "$tree"/etc/shadow
echo 'root:x:0:' >"$tree"/etc/group
echo '/bin/sh' >"$tree"/etc/shells
echo 'NAME="kami tiny"' >"$tree"/etc/os-release
echo tiny >"$tree"/etc/hostname
cp "$root/boot/$kernel" "$tree"/boot/vmlinuz

# Drivers in the order in which they can be loaded.
initrd=$root/initrd
mkdir -p "$initrd"/bin "$initrd"/lib "$initrd"/dev "$initrd"/proc "$initrd"/sys "$initrd"/newroot
cp "$tree"/bin/busybox "$initrd"/bin/busybox
ln -s busybox "$initrd"/bin/sh
: >"$initrd"/lib/order
seen=" "
load() { # NAME: its needs first
	case $seen in *" $1 "*) return ;; esac
	seen="$seen$1 "
	pattern=$(echo "$1" | sed 's/[-_]/[-_]/g')
	file=$(find "$modules" -name "$pattern.ko" | head -n 1)
	[ -n "$file" ] || return 0
	# The needs stand in the module's own information.
	for need in $(tr '\0' '\n' <"$file" | sed -n 's/^depends=//p' | head -n 1 | tr ',' ' '); do
		load "$need"
	done
	pattern=$(echo "$1" | sed 's/[-_]/[-_]/g')
	file=$(find "$modules" -name "$pattern.ko" | head -n 1)
	cp "$file" "$initrd"/lib/
	basename "$file" >>"$initrd"/lib/order
}
for name in virtio_pci virtio_blk virtio_net ext4 crc32c_generic crc32c_intel button evdev virtio_rng \
	virtio_scsi sr_mod isofs virtio_console qemu_fw_cfg efivarfs tpm_crb tpm_tis; do
	load "$name"
done
cat >"$initrd"/init <<'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for m in $($b cat /lib/order); do $b insmod /lib/$m 2>/dev/null; done
for arg in $($b cat /proc/cmdline); do
	case $arg in root=*) root=${arg#root=} ;; esac
done
i=0
until dev=$($b findfs "$root" 2>/dev/null) || [ $i -ge 100 ]; do $b sleep 0.05; i=$((i + 1)); done
if ! $b mount -t ext4 "$dev" /newroot; then
	echo "tiny: no root file system: $root"
	$b poweroff -f
fi
$b umount /proc
$b umount /sys
$b mount -o move /dev /newroot/dev
exec $b switch_root /newroot /sbin/init
INIT
chmod 0755 "$initrd"/init
find "$initrd" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
(cd "$initrd" && find . | LC_ALL=C sort | cpio --quiet --reproducible -R 0:0 -o -H newc | gzip -9n) >"$tree"/boot/initrd.img
