package fake

import (
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
	"github.com/kamivm/kami/pkg/machine"
)

func TestSuite(t *testing.T) {
	d := New()
	hypervisortest.Run(t, hypervisortest.Config{
		Open: func(*testing.T) hypervisor.Driver { return d },
		Dir:  t.TempDir(), Accel: machine.AccelTCG, Line: ConsoleLine,
		Pause: func(_ *testing.T, id ami.InstanceID) { d.Pause(id, hypervisor.StatePaused) },
	})
}
