package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
)

// bootLine is what the boot-sector guest writes to its serial port.
const bootLine = "kami-e2e boot sector was here"

// sectorDisk is the size of the disk of such a guest, in bytes.
const sectorDisk = 2 << 20

// bootSector is a guest of 512 bytes: it says bootLine, writes a sector of its
// disk, and halts. It starts at once and never gets any further.
func bootSector() []byte { return hypervisortest.BootSector(bootLine) }

// sectorOnce imports the boot sector as an image of the shared home.
var sectorOnce = sync.OnceValue(func() result {
	path := filepath.Join(base, "sector.raw")
	if err := os.WriteFile(path, bootSector(), 0o644); err != nil {
		return result{code: 1, stderr: err.Error()}
	}
	if err := os.Truncate(path, sectorDisk); err != nil {
		return result{code: 1, stderr: err.Error()}
	}
	return shared.try("import", path, "--name", "sector", "-o", "id")
})

func sector(t *testing.T) string {
	t.Helper()
	r := sectorOnce()
	if r.code != 0 {
		t.Fatalf("importing the boot sector: %s", r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

func TestGuestThatNeverBoots(t *testing.T) {
	parallel(t)
	image := sector(t)
	id := shared.launch(t, image, "--wait", "running")
	shared.waitConsole(t, id, bootLine, 30*time.Second)

	start := time.Now()
	said := shared.refuse(t, ami.CodeIncorrectInstanceState, "instance", "wait", id, "--for", "ssh", "--wait-timeout", "3s")
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("the wait of 3 s took %v", took)
	}
	if !strings.Contains(said, bootLine) {
		t.Errorf("the error does not have the last line of the console:\n%s", said)
	}
	if got := shared.state(t, id); got != ami.InstanceRunning {
		t.Errorf("after the wait the instance is %s, want running", got)
	}
}

func TestGuestThatNeverBootsStopsByForce(t *testing.T) {
	parallel(t)
	id := shared.launch(t, sector(t), "--wait", "running")
	shared.kami(t, "instance", "stop", "--force", id)
	if got := shared.state(t, id); got != ami.InstanceStopped {
		t.Errorf("after a forced stop the instance is %s", got)
	}
}
