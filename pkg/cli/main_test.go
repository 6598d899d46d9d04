package cli

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// kami runs the command line in this process.
func kami(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, err bytes.Buffer
	status = Main(args, strings.NewReader(""), &out, &err)
	return out.String(), err.String(), status
}

// mustKami runs a command that has to succeed and returns its trimmed output.
func mustKami(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, status := kami(t, args...)
	if status != exitOK {
		t.Fatalf("kami %s: exit status %d\n%s%s", strings.Join(args, " "), status, stdout, stderr)
	}
	return strings.TrimSpace(stdout)
}

// newHome gives kami a home of its own and nothing else from outside.
func newHome(t *testing.T) string {
	t.Helper()
	home := filepath.Join(t.TempDir(), "home")
	for _, name := range []string{"KAMI_REGION", "KAMI_CONNECT", "KAMI_DRIVER", "KAMI_OUTPUT", "KAMI_RECIPES", "KAMI_ACCOUNT", "KAMI_PROFILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("KAMI_HOME", home)
	return home
}

// objects are what a furnished home holds.
type objects struct{ image, snapshot, volume, blank string }

// furnish makes an image, a volume of its snapshot, a blank one, a key pair and
// a second region: all that needs no hypervisor.
func furnish(t *testing.T) objects {
	t.Helper()
	newHome(t)
	disk := make([]byte, 1<<20)
	disk[510], disk[511] = 0x55, 0xaa
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	var o objects
	o.image = mustKami(t, "import", path, "--name", "web-1", "--tag", "stage=test", "-o", "id")
	o.snapshot = mustKami(t, "snapshot", "list", "-o", "id")
	o.volume = mustKami(t, "volume", "create", "--snapshot", o.snapshot, "-o", "id")
	o.blank = mustKami(t, "volume", "create", "--size", "2", "-o", "id")
	mustKami(t, "key", "create", "me")
	mustKami(t, "region", "create", "lab-1")
	return o
}

// golden compares got with a file, or writes it with -update.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got; go test -update writes it anew):\n%s", path, d)
	}
}
