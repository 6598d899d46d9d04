package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// bootLine is what the boot-sector guest writes to its serial port.
const bootLine = "kami-e2e boot sector was here"

// bootSector is a guest of 512 bytes: it writes bootLine to the first serial
// port and halts. It starts at once and never gets any further.
func bootSector() []byte {
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xbe, 0x15, 0x7c, // mov si, 0x7c15: the text
		0xac,       // lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x06, // jz halt
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xee,       // out dx, al
		0xeb, 0xf5, // jmp lodsb
		0xf4,       // halt: hlt
		0xeb, 0xfd, // jmp halt
	}
	sector := make([]byte, 512)
	copy(sector, code)
	copy(sector[len(code):], bootLine+"\r\n\x00")
	// One bootable Linux partition from sector 1 on.
	copy(sector[446:], []byte{0x80, 0, 2, 0, 0x83, 0, 3, 0, 1, 0, 0, 0, 0xff, 0x07, 0, 0})
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// sectorOnce imports the boot sector as an image of the shared home.
var sectorOnce = sync.OnceValue(func() result {
	path := filepath.Join(base, "sector.raw")
	if err := os.WriteFile(path, bootSector(), 0o644); err != nil {
		return result{code: 1, stderr: err.Error()}
	}
	if err := os.Truncate(path, 1<<20); err != nil {
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
	t.Parallel()
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
	t.Parallel()
	id := shared.launch(t, sector(t), "--wait", "running")
	shared.kami(t, "instance", "stop", "--force", id)
	if got := shared.state(t, id); got != ami.InstanceStopped {
		t.Errorf("after a forced stop the instance is %s", got)
	}
}
