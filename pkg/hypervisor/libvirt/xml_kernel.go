package libvirt

import (
	"libvirt.org/go/libvirtxml"

	"github.com/kamivm/kami/pkg/machine"
)

// renderKernel has a paravirtual guest start with a kernel. QEMU enters it where it
// can be entered best: by PVH where the file is an ELF with that entry, else as a
// boot loader does.
func renderKernel(d *libvirtxml.Domain, k machine.Kernel) {
	if k.Path == "" {
		return
	}
	d.OS.Kernel, d.OS.Initrd, d.OS.Cmdline = k.Path, k.Initrd, k.Cmdline
}

// paravirtual makes a disk what a paravirtual guest has: all of them are virtio
// disks, the seed too, and none is one that firmware would boot from.
func paravirtual(disk machine.Disk) machine.Disk {
	disk.CDROM, disk.Boot = false, false
	return disk
}
