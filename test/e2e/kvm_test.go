package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestKVMRuns starts a boot sector with type='kvm' wherever /dev/kvm opens, so
// that this path is run and not only rendered. It goes to libvirt directly:
// kami itself would rightly choose emulation on a host whose processor lacks
// the flags, yet real-mode code runs under KVM even there.
func TestKVMRuns(t *testing.T) {
	t.Parallel()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no KVM on this host: %v", err)
	}
	f.Close()
	dir := filepath.Join(base, "kvm") // QEMU may run as another user
	must(t, os.Mkdir(dir, 0o755))
	disk, console := filepath.Join(dir, "sector.raw"), filepath.Join(dir, "console.log")
	must(t, os.WriteFile(disk, bootSector(), 0o644))
	must(t, os.Truncate(disk, sectorDisk))
	name := fmt.Sprintf("kami-e2e-kvm-%d", os.Getpid())
	xml := filepath.Join(dir, "domain.xml")
	must(t, os.WriteFile(xml, fmt.Appendf(nil, `<domain type='kvm'>
  <name>%s</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>
    <serial type='file'><source path='%s'/></serial>
  </devices>
</domain>`, name, disk, console), 0o644))
	virsh := func(args ...string) error {
		out, err := exec.Command("virsh", append([]string{"-c", connect()}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("virsh %s: %w: %s", args[0], err, out)
		}
		return nil
	}
	must(t, virsh("create", xml))
	t.Cleanup(func() {
		if err := virsh("destroy", name); err != nil {
			t.Error(err)
		}
	})
	eventually(t, 30*time.Second, "the boot sector writes under KVM", func() bool {
		b, err := os.ReadFile(console)
		return err == nil && strings.Contains(string(b), bootLine)
	})
}
