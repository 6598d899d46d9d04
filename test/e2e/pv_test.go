package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// tinyPVOnce builds images/tiny as a paravirtual image of the shared home.
var tinyPVOnce = sync.OnceValue(func() result {
	return shared.try("build", recipeDir("tiny"), "--virtualization-type", "paravirtual", "--name", "tiny-pv", "-o", "id")
})

func tinyPV(t *testing.T) string {
	t.Helper()
	tiny(t) // the key pair
	r := tinyPVOnce()
	if r.code != 0 {
		t.Fatalf("building tiny-pv: exit status %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

// cmdline is what a guest's kernel was told.
func cmdline(t *testing.T, id string) string {
	t.Helper()
	return shared.ssh(t, id, "cat /proc/cmdline")
}

// TestParavirtual has a guest start with the kernel in its own root, as that is at
// each start, and saves it as the next image.
func TestParavirtual(t *testing.T) {
	parallel(t)
	image := show[ami.Image](t, shared, "image", tinyPV(t))
	if image.VirtualizationType != "paravirtual" || image.KernelID != ami.PVGrub || image.BootMode != "" {
		t.Errorf("tiny-pv is %s with the kernel %s and the boot mode %q, want paravirtual with pv-grub", image.VirtualizationType, image.KernelID, image.BootMode)
	}
	id := shared.launch(t, "tiny-pv", "--key-name", "e2e", "--wait", "ssh")
	// No firmware's device is there, nor one that is not paravirtual: the seed is
	// a virtio disk, and so is the root, which has no partitions.
	if got := shared.ssh(t, id, "cd /sys/class/block; echo *; sed -n 's,^/dev/\\([^ ]*\\) / .*,\\1,p' /proc/mounts"); got != "vda vdb\nvda" {
		t.Errorf("the guest has the disks and the root %q, want vda and vdb, and vda", got)
	}
	if got := strings.ToLower(shared.ssh(t, id, "cat /sys/class/dmi/id/product_uuid")); !strings.HasPrefix(got, "ec2") {
		t.Errorf("the SMBIOS uuid is %q", got)
	}
	if strings.Contains(cmdline(t, id), "kami.test") {
		t.Fatal("the mark is in the command line before it was put there")
	}

	// The guest changes what it starts with: a reboot from within is one of the
	// same machine, and the next start reads it anew.
	shared.ssh(t, id, "sed -i 's/ quiet/ kami.test=1 quiet/' /boot/grub/grub.cfg; echo kept > /etc/kami-e2e; sync")
	shared.kami(t, "instance", "stop", id)
	shared.kami(t, "instance", "start", id)
	shared.kami(t, "instance", "wait", id, "--for", "ssh")
	if got := cmdline(t, id); !strings.Contains(got, " kami.test=1 ") {
		t.Errorf("after a stop and a start the command line is %q, want the changed one", got)
	}

	// A disk is plugged in, and the image has it too.
	vol := shared.kami(t, "volume", "create", "--size", "1", "-o", "id")
	shared.kami(t, "volume", "attach", vol, id)
	if got := shared.ssh(t, id, "sleep 1; cat /sys/class/block/vdc/size"); got != "2097152" {
		t.Errorf("the disk that was plugged in has %q sectors", got)
	}
	shared.kami(t, "volume", "detach", vol)
	shared.kami(t, "volume", "delete", vol)

	live := shared.kami(t, "image", "create", id, "--name", "tiny-pv-live", "--no-reboot", "-o", "id")
	if got := show[ami.Image](t, shared, "image", live); got.VirtualizationType != "paravirtual" || got.KernelID != ami.PVGrub {
		t.Errorf("the next image is %s with the kernel %s", got.VirtualizationType, got.KernelID)
	}
	// The console moves to where the kernel is told to look for it, and is kept.
	second := shared.launch(t, live, "--key-name", "e2e", "--kernel-cmdline", "console=hvc0", "--wait", "ssh")
	if got := shared.ssh(t, second, "cat /etc/kami-e2e; sed 's/.* //' /sys/class/tty/console/active"); got != "kept\nhvc0" {
		t.Errorf("the second guest says %q, want what the first one wrote, and hvc0", got)
	}
	if got := cmdline(t, second); !strings.Contains(got, " kami.test=1 ") || !strings.HasSuffix(got, " console=hvc0") {
		t.Errorf("its command line is %q", got)
	}
	if !strings.Contains(shared.console(second), "tiny: userspace") {
		t.Error("what it wrote to hvc0 was not kept")
	}

	t.Run("kernel of its own", func(t *testing.T) {
		// The same kernel, registered: the guest's own configuration is not read.
		dir := t.TempDir()
		for _, name := range []string{"vmlinuz", "initrd.img"} {
			r := shared.try("ssh", id, "--", "cat /boot/"+name)
			if r.code != 0 {
				t.Fatal(r.stderr)
			}
			must(t, os.WriteFile(filepath.Join(dir, name), []byte(r.stdout), 0o600))
		}
		kernel := shared.kami(t, "kernel", "register", filepath.Join(dir, "vmlinuz"), "--name", "linux", "-o", "id")
		ramdisk := shared.kami(t, "kernel", "register", filepath.Join(dir, "initrd.img"), "--type", "ramdisk", "--name", "linux-initrd", "-o", "id")
		third := shared.launch(t, "tiny-pv", "--key-name", "e2e", "--kernel", "linux", "--ramdisk", "linux-initrd",
			"--kernel-cmdline", "root=/dev/vda ro console=ttyS0 kami.test=own", "--wait", "ssh")
		if got := cmdline(t, third); got != "root=/dev/vda ro console=ttyS0 kami.test=own" {
			t.Errorf("the command line is %q, want the launch's alone", got)
		}
		if got := show[ami.Instance](t, shared, "instance", third); string(got.KernelID) != kernel || string(got.RamdiskID) != ramdisk {
			t.Errorf("the instance has %s and %s", got.KernelID, got.RamdiskID)
		}
		said := shared.refuse(t, ami.CodeDependencyViolation, "kernel", "deregister", kernel, ramdisk)
		if !strings.Contains(said, third) {
			t.Errorf("the error does not name the instance:\n%s", said)
		}
		shared.kami(t, "instance", "terminate", third)
		shared.kami(t, "kernel", "deregister", kernel, ramdisk)
	})
}

// TestParavirtualNothingToStart: a launch of which pv-grub can make nothing says
// what it looked for, and leaves nothing.
func TestParavirtualNothingToStart(t *testing.T) {
	parallel(t)
	snap := show[ami.Image](t, shared, "image", sector(t)).BlockDeviceMappings[0].Ebs.SnapshotID
	shared.kami(t, "image", "register", "--name", "sector-pv", "--virtualization-type", "paravirtual", "--block-device-mapping", "/dev/sda1="+string(snap))
	shared.refuse(t, ami.CodeUnsupportedOperation, "launch", "sector-pv")
	if left := shared.kami(t, "instance", "list", "--filter", "image-id="+strings.TrimSpace(shared.kami(t, "image", "show", "sector-pv", "-o", "id")), "-o", "id"); left != "" {
		t.Errorf("the launch left %s", left)
	}
}

// TestParavirtualDebian: the full Debian without a boot loader, on a root of its
// own that is made of a bundle. The root, which is the whole disk, is larger than
// the bundle and fills it, and cloud-init finds the seed on a virtio disk.
func TestParavirtualDebian(t *testing.T) {
	parallelFirst(t)
	tiny(t) // the key pair
	image := shared.kami(t, "build", recipeDir("debian-12"), "--virtualization-type", "paravirtual", "--root-device-type", "instance-store", "--name", "debian-12-pv", "-o", "id")
	id := shared.launch(t, image, "--key-name", "e2e", "--instance-type", "t3.small", "--block-device-mapping", "/dev/sda1=:8", "--block-device-mapping", "/dev/sdb=ephemeral0", "--wait", "ssh")
	inst := show[ami.Instance](t, shared, "instance", id)
	if got := shared.ssh(t, id, "sudo cloud-init status --wait >/dev/null; hostname"); got != inst.Hostname {
		t.Errorf("the guest calls itself %q, the record %q", got, inst.Hostname)
	}
	if kib := atoi(t, shared.ssh(t, id, "df --output=size / | tail -n 1")); kib < 7<<20 {
		t.Errorf("the root filesystem has %d KiB on a disk of 8 GiB: it did not grow", kib)
	}
	if got := shared.ssh(t, id, "findmnt -no SOURCE /"); got != "/dev/vda" {
		t.Errorf("the root is %q, want the whole disk", got)
	}
	if got := shared.ssh(t, id, "findmnt -no FSTYPE /mnt; lsblk -no LABEL $(findmnt -no SOURCE /mnt)"); got != "ext4\nephemeral0" {
		t.Errorf("cloud-init has %q mounted on /mnt, want ephemeral0", got)
	}
}
