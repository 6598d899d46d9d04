package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// background starts kami and returns it running, and what it writes.
func (h *house) background(t *testing.T, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, h.bin, args...)
	cmd.Env = append(os.Environ(), h.env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &out
}

// nothingLeft checks that a home holds no work in progress and no objects.
func nothingLeft(t *testing.T, h *house) {
	t.Helper()
	for _, noun := range []string{"image", "snapshot", "volume"} {
		if got := h.kami(t, noun, "list", "-o", "id"); got != "" {
			t.Errorf("left behind: %s", got)
		}
	}
	for _, dir := range []string{"layers", "volumes", "instances", "tmp"} {
		for _, name := range h.files(t, dir) {
			if !strings.HasSuffix(name, ".lock") {
				t.Errorf("left behind: %s in %s", name, dir)
			}
		}
	}
}

// failingRecipe is a recipe that comes as far as its script, which fails.
func failingRecipe(t *testing.T, packages, script string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "recipe")
	must(t, os.Mkdir(dir, 0o755))
	text := fmt.Sprintf("version: 1\nname: failing\nsuite: bookworm\nvariant: extract\npackages: [%s]\nsize: 64MiB\n"+
		"kernel: /vmlinuz\ninitrd: /initrd.img\nscript: fail.sh\n", packages)
	must(t, os.WriteFile(filepath.Join(dir, "recipe.yaml"), []byte(text), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "fail.sh"), []byte(script), 0o644))
	return dir
}

func TestBuildThatFails(t *testing.T) {
	parallel(t)
	h := newHouse(shared.bin, filepath.Join(base, "failing"))
	said := h.refuse(t, ami.CodeInvalidParameterValue, "build", failingRecipe(t, "no-such-package-anywhere", "true"))
	if !strings.Contains(said, "no-such-package-anywhere") {
		t.Errorf("the error does not name the package:\n%s", said)
	}
	recipe := failingRecipe(t, "busybox-static", "echo the script says why >&2; exit 3")
	said = h.refuse(t, ami.CodeInvalidParameterValue, "build", recipe)
	if !strings.Contains(said, "the script says why") || !strings.Contains(said, "--keep") {
		t.Errorf("the error does not show the step's output, or does not name --keep:\n%s", said)
	}
	nothingLeft(t, h)
	said = h.refuse(t, ami.CodeInvalidParameterValue, "build", recipe, "--keep")
	kept, err := filepath.Glob(filepath.Join(h.home, "regions", "local-1", "kept", "failing-*"))
	if err != nil || len(kept) != 1 || !strings.Contains(said, kept[0]) {
		t.Errorf("with --keep there is %v (%v); said:\n%s", kept, err, said)
	}
}

// TestBuildInterrupted stops a build in the midst of its longest step, by Ctrl-C
// and by kill -9: what it had started ends, and nothing is left.
func TestBuildInterrupted(t *testing.T) {
	parallel(t)
	for name, sig := range map[string]syscall.Signal{"interrupt": syscall.SIGINT, "kill": syscall.SIGKILL} {
		h := newHouse(shared.bin, filepath.Join(base, "build-"+name))
		recipe := failingRecipe(t, "busybox-static", "sleep 600.25")
		cmd, out := h.background(t, "build", recipe)
		sleeps := func() bool { return exec.Command("pgrep", "-f", "^sleep 600.25").Run() == nil }
		eventually(t, time.Minute, "the recipe's script runs", sleeps)
		must(t, cmd.Process.Signal(sig))
		cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); name == "interrupt" && got != 130 {
			t.Errorf("after Ctrl-C the exit status is %d, want 130:\n%s", got, out)
		}
		eventually(t, 20*time.Second, "the script has ended with its build", func() bool { return !sleeps() })
		// What was killed takes a moment to take down what it had mounted.
		eventually(t, 20*time.Second, "nothing of the build is left", func() bool {
			h.kami(t, "image", "list")
			return len(slices.DeleteFunc(h.files(t, "tmp"), func(name string) bool { return strings.HasSuffix(name, ".lock") })) == 0
		})
		nothingLeft(t, h)
	}
}

// TestLaunchInterrupted stops a launch while it waits for a guest that never
// answers: the guest stays, for it was launched; only the wait is over.
func TestLaunchInterrupted(t *testing.T) {
	parallel(t)
	h := newHouse(shared.bin, filepath.Join(base, "launch-interrupted"))
	importSector(t, h)
	cmd, out := h.background(t, "launch", "sector", "--wait", "ssh")
	eventually(t, time.Minute, "the guest runs", func() bool { return len(qemuOf(h)) == 1 })
	time.Sleep(300 * time.Millisecond) // into the wait
	must(t, cmd.Process.Signal(os.Interrupt))
	cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 130 {
		t.Errorf("after Ctrl-C the exit status is %d, want 130:\n%s", got, out)
	}
	ids := h.leftGuests()
	if running := qemuOf(h); len(ids) != len(running) {
		t.Errorf("the records have %v, the host runs %v", ids, running)
	}
	terminateAll(t, h)
}

// TestFullDisk imports more than the disk of its home has room for.
func TestFullDisk(t *testing.T) {
	parallel(t)
	requireRoot(t, "it mounts a small file system")
	dir := filepath.Join(base, "full")
	must(t, os.Mkdir(dir, 0o755))
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=160m,mode=755", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	noise := make([]byte, 200<<20)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(noise)
	copy(noise, bootSector())
	path := filepath.Join(t.TempDir(), "noise.raw")
	must(t, os.WriteFile(path, noise, 0o644))
	h := newHouse(shared.bin, filepath.Join(dir, "home"))
	said := h.refuse(t, ami.CodeResourceLimitExceeded, "import", path, "--name", "noise")
	if !strings.Contains(said, "kami store gc") {
		t.Errorf("the error does not say how to make room:\n%s", said)
	}
	nothingLeft(t, h)
	importSector(t, h) // there is room for this one
}
