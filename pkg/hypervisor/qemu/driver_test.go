package qemu

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
	"github.com/kamivm/kami/pkg/hypervisor/qmp"
	"github.com/kamivm/kami/pkg/machine"
)

func config(t *testing.T) hypervisortest.Config {
	// A folder so deep that no path of a socket in it would do.
	dir := filepath.Join(t.TempDir(), "a-home-with-a-name-that-is-much-longer-than-names-of-homes-are-as-a-rule", "instances")
	return hypervisortest.Config{
		Open: func(t *testing.T) hypervisor.Driver { return open(t, dir) },
		Dir:  t.TempDir(), Accel: machine.AccelTCG, Line: hypervisortest.BootLine, Runs: true,
		Pause: func(t *testing.T, id ami.InstanceID) {
			t.Helper()
			err := open(t, dir).with(t.Context(), id, func(m *qmp.Monitor) error { return raw.NewMonitor(m).Stop() })
			if err != nil {
				t.Fatal(err)
			}
		},
	}
}

func open(t *testing.T, dir string) *Driver {
	t.Helper()
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSuite(t *testing.T) { hypervisortest.Run(t, config(t)) }

// TestKVM runs a guest with KVM wherever /dev/kvm opens, also where kami itself
// would emulate: a guest of one sector stays in real mode, which runs even on a
// host whose processor lacks the flags, given a CPU that asks for nothing special.
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
