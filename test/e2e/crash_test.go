package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
)

// crashSteps runs a command once to the end and returns the durable steps that
// it came by, as KAMI_CRASH_AT wants them: name, or name#N for the N-th time.
func crashSteps(t *testing.T, h *house, args ...string) []string {
	t.Helper()
	list := filepath.Join(t.TempDir(), "steps")
	one := *h
	one.env = append(slices.Clone(h.env), "KAMI_CRASH_LIST="+list)
	one.kami(t, args...)
	b, err := os.ReadFile(list)
	if err != nil {
		t.Fatalf("the crash binary lists no steps: %v", err)
	}
	seen := map[string]int{}
	var steps []string
	for _, name := range lines(string(b)) {
		seen[name]++
		if n := seen[name]; n == 1 {
			steps = append(steps, name)
		} else {
			steps = append(steps, fmt.Sprintf("%s#%d", name, n))
		}
	}
	if len(steps) == 0 {
		t.Fatalf("kami %s comes by no durable step", strings.Join(args, " "))
	}
	return steps
}

// crashAt runs a command that has to be killed at a step.
func crashAt(t *testing.T, h *house, step string, args ...string) {
	t.Helper()
	one := *h
	one.env = append(slices.Clone(h.env), "KAMI_CRASH_AT="+step)
	if r := one.try(args...); r.code != -1 {
		t.Fatalf("kami %s was not killed at %s: exit status %d\n%s", strings.Join(args, " "), step, r.code, r.stderr)
	}
}

// wholeAgain checks that the next command finds a house in order: all that the
// listings name is complete, and no file is there that nothing names.
func wholeAgain(t *testing.T, h *house, after string) {
	t.Helper()
	for _, i := range objects[ami.Image](t, h, "image", "list") {
		if i.State != ami.ImageAvailable && i.State != ami.ImageFailed {
			t.Errorf("after %s: image %s is %s", after, i.ImageID, i.State)
		}
	}
	for _, s := range objects[ami.Snapshot](t, h, "snapshot", "list") {
		if s.State != ami.SnapshotCompleted && s.State != ami.SnapshotError {
			t.Errorf("after %s: snapshot %s is %s", after, s.SnapshotID, s.State)
		}
	}
	h.kami(t, "store", "gc")
	h.kami(t, "store", "verify")
	for _, name := range h.files(t, "tmp") {
		if !strings.HasSuffix(name, ".lock") {
			t.Errorf("after %s: tmp has %s", after, name)
		}
	}
	volumes := lines(h.kami(t, "volume", "list", "-o", "id"))
	for _, name := range h.files(t, "volumes") {
		if id := strings.TrimSuffix(name, ".qcow2"); !slices.Contains(volumes, id) {
			t.Errorf("after %s: volumes has %s, which nothing names", after, name)
		}
	}
	guests := h.leftGuests()
	for _, name := range h.files(t, "instances") {
		if !slices.Contains(guests, name) {
			t.Errorf("after %s: instances has %s, which is not there", after, name)
		}
	}
	for _, id := range qemuOf(h) {
		if !slices.Contains(guests, id) {
			t.Errorf("after %s: a guest of %s runs, which no record names", after, id)
		}
	}
}

// qemuOf are the instances of a home whose QEMU process lives.
func qemuOf(h *house) []string {
	out, _ := exec.Command("pgrep", "-a", "-f", "qemu-system.*"+h.home+"/").Output()
	var ids []string
	for _, line := range strings.Split(string(out), "\n") {
		if _, rest, ok := strings.Cut(line, h.home+"/regions/local-1/instances/"); ok {
			id, _, _ := strings.Cut(rest, "/")
			ids = append(ids, id)
		}
	}
	return ids
}

// TestKilledAtEveryStep kills kami at each durable step of import, launch,
// create-image and terminate, and sees that the next command puts all in order
// and that the work can then be done.
func TestKilledAtEveryStep(t *testing.T) {
	parallel(t)
	bin, err := crashBinary()
	if err != nil {
		t.Fatal(err)
	}
	h := newHouse(bin, filepath.Join(base, "crash"))
	plain := newHouse(shared.bin, h.home)
	disk := filepath.Join(t.TempDir(), "sector.raw")
	must(t, os.WriteFile(disk, bootSector(), 0o644))
	must(t, os.Truncate(disk, sectorDisk))

	t.Run("import", func(t *testing.T) {
		steps := crashSteps(t, h, "import", disk, "--name", "sector")
		t.Logf("steps: %s", steps)
		for i, step := range steps {
			other := otherSector(t, step)
			name := fmt.Sprintf("import-%d", i)
			crashAt(t, h, step, "import", other, "--name", name)
			wholeAgain(t, plain, "import killed at "+step)
			again(t, plain, name, "import", other, "--name", name)
		}
	})

	t.Run("launch", func(t *testing.T) {
		args := []string{"launch", "sector", "--wait", "running"}
		steps := crashSteps(t, h, args...)
		t.Logf("steps: %s", steps)
		for _, step := range steps {
			crashAt(t, h, step, args...)
			wholeAgain(t, plain, "launch killed at "+step)
			terminateAll(t, plain)
		}
		terminateAll(t, plain)
	})

	t.Run("image create", func(t *testing.T) {
		// Each time a guest of another disk, whose one write is in no layer yet.
		guest := func(step string) string {
			name := fmt.Sprintf("guest-%d", len(step)) + step
			name = strings.ReplaceAll(name, "#", "-")
			plain.kami(t, "import", otherSector(t, "create "+name), "--name", name)
			id := plain.launch(t, name, "--wait", "running")
			plain.waitConsole(t, id, hypervisortest.BootLine, 30*time.Second)
			return id
		}
		saved := func(id, step string, extra ...string) {
			name := "saved-" + id
			args := append([]string{"image", "create", id, "--name", name}, extra...)
			crashAt(t, h, step, args...)
			wholeAgain(t, plain, strings.Join(args, " ")+" killed at "+step)
			again(t, plain, name, args...)
		}
		id := guest("first")
		steps := crashSteps(t, h, "image", "create", id, "--name", "running", "--no-reboot")
		t.Logf("steps: %s", steps)
		for _, step := range steps {
			id := guest("running" + step)
			saved(id, step, "--no-reboot")
			plain.kami(t, "instance", "terminate", id)
		}
		id = guest("second")
		plain.kami(t, "instance", "stop", "--force", id)
		steps = crashSteps(t, h, "image", "create", id, "--name", "stopped")
		t.Logf("steps: %s", steps)
		for _, step := range steps {
			id := guest("stopped" + step)
			plain.kami(t, "instance", "stop", "--force", id)
			saved(id, step)
			plain.kami(t, "instance", "terminate", id)
		}
		id = guest("third")
		plain.kami(t, "instance", "stop", "--force", id)
		plain.kami(t, "image", "create", id, "--name", "last")
		plain.kami(t, "instance", "start", id)
		eventually(t, 30*time.Second, "the guest boots after all that", func() bool {
			return strings.Count(plain.console(id), hypervisortest.BootLine) >= 2
		})
	})

	t.Run("terminate", func(t *testing.T) {
		id := plain.launch(t, "sector", "--wait", "running")
		steps := crashSteps(t, h, "instance", "terminate", id)
		t.Logf("steps: %s", steps)
		for _, step := range steps {
			id := plain.launch(t, "sector", "--wait", "running")
			crashAt(t, h, step, "instance", "terminate", id)
			plain.kami(t, "instance", "terminate", id)
			wholeAgain(t, plain, "terminate killed at "+step)
		}
	})
}

// otherSector is a disk of the boot sector with content of its own, so that a
// new layer has to be written for it.
func otherSector(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "other.raw")
	must(t, os.WriteFile(path, hypervisortest.BootSector(bootLine+" "+text), 0o644))
	must(t, os.Truncate(path, sectorDisk))
	return path
}

// again does the work that was killed, unless it had got as far as its commit.
func again(t *testing.T, h *house, name string, args ...string) {
	t.Helper()
	if h.kami(t, "image", "list", "--filter", "name="+name, "--filter", "state=available", "-o", "id") != "" {
		return
	}
	h.kami(t, args...)
}

func terminateAll(t *testing.T, h *house) {
	t.Helper()
	if left := h.leftGuests(); len(left) > 0 {
		h.kami(t, append([]string{"instance", "terminate"}, left...)...)
	}
}
