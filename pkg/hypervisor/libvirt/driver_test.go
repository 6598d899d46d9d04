package libvirt

import (
	"context"
	"errors"
	"os"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
	"github.com/kamivm/kami/pkg/machine"
)

// guestDir is a folder that guests' processes can use, whoever they run as.
func guestDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kami-libvirt-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func config(t *testing.T) hypervisortest.Config {
	return hypervisortest.Config{
		Open: func(t *testing.T) hypervisor.Driver {
			d, err := Open(t.Context(), "")
			if err != nil {
				t.Fatalf("libvirt does not answer (hack/with-libvirt.sh brings one for root): %v", err)
			}
			return d
		},
		Dir: guestDir(t), Accel: machine.AccelTCG, Line: hypervisortest.BootLine, Runs: true,
		Pause: suspend,
	}
}

// suspend makes a guest stand still, as an administrator can.
func suspend(t *testing.T, id ami.InstanceID) {
	t.Helper()
	d, err := Open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.with(t.Context(), id, func(dom *libvirt.Domain) error { return dom.Suspend() }); err != nil {
		t.Fatal(err)
	}
}

func TestSuite(t *testing.T) { hypervisortest.Run(t, config(t)) }

// TestKVM runs a guest with type='kvm' wherever /dev/kvm opens, so that this
// path is run and not only rendered. kami itself would choose emulation on a
// host whose processor lacks the flags, but a guest of one sector stays in real
// mode, which runs even there, given a CPU that asks for nothing special.
func TestKVM(t *testing.T) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("this host has no KVM: %v", err)
	}
	f.Close()
	c := config(t)
	c.Accel, c.CPU = machine.AccelKVM, "qemu64"
	hypervisortest.RunGuest(t, c)
}

func TestOpenUnreachable(t *testing.T) {
	_, err := Open(context.Background(), "qemu+unix:///system?socket=/nonexistent/libvirt-sock")
	if !errors.Is(err, hypervisor.ErrUnreachable) {
		t.Errorf("Open of a libvirt that is not there: %v, want ErrUnreachable", err)
	}
}
