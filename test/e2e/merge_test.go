package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/snapshot"
)

// TestMergeKilledAtEveryStep kills the merge of a chain at each durable step. The
// snapshot has its content before and after, on the long chain or on a short one,
// and the next merge finishes what is left.
func TestMergeKilledAtEveryStep(t *testing.T) {
	parallel(t)
	bin, err := crashBinary()
	if err != nil {
		t.Fatal(err)
	}
	h := newHouse(bin, filepath.Join(base, "merge"))
	must(t, os.RemoveAll(h.home))
	h.kami(t, "import", otherSector(t, "merged"), "--name", "merged")
	const limit = snapshot.MaxDepth
	vol := h.kami(t, "volume", "create", "--snapshot", h.kami(t, "snapshot", "list", "-o", "id"), "-o", "id")
	for n := range limit {
		head := filepath.Join(h.home, "regions/local-1/volumes", vol+".qcow2")
		if out, err := exec.Command("qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d 1M 64k", n+1), head).CombinedOutput(); err != nil {
			t.Fatalf("qemu-io: %v\n%s", err, out)
		}
		if n < limit-1 {
			h.kami(t, "snapshot", "create", vol)
			continue
		}
		// Recorded, and killed before it starts what merges its chain.
		crashAt(t, h, "job.committed", "snapshot", "create", vol)
	}
	ids := lines(h.kami(t, "snapshot", "list", "-o", "id"))
	last := ids[len(ids)-1]
	before := show[ami.Snapshot](t, h, "snapshot", last)

	// Each time in a home of its own, in which all that is as it is now.
	another := func(name string) *house {
		one := newHouse(bin, filepath.Join(base, "merge-"+strings.ReplaceAll(name, "#", "-")))
		must(t, os.RemoveAll(one.home))
		if out, err := exec.Command("cp", "-a", h.home, one.home).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v\n%s", err, out)
		}
		return one
	}
	long, short := 0, 0
	for _, step := range crashSteps(t, another("steps"), "store", "merge", "--grace", "0s") {
		one := another(step)
		crashAt(t, one, step, "store", "merge", "--grace", "0s")
		wholeAgain(t, one, "store merge killed at "+step)
		switch depth := chainLength(t, one, last); {
		case depth == limit+1:
			long++
		case depth <= limit:
			short++
		default:
			t.Errorf("after %s: a chain of %d layers", step, depth)
		}
		one.kami(t, "store", "merge", "--grace", "0s")
		wholeAgain(t, one, "store merge after that")
		if depth := chainLength(t, one, last); depth > limit {
			t.Errorf("after %s and again: a chain of %d layers", step, depth)
		}
		after := show[ami.Snapshot](t, one, "snapshot", last)
		if after.ContentDigest != before.ContentDigest || after.Layer == before.Layer {
			t.Errorf("after %s and again: the snapshot is %+v, was %+v", step, after, before)
		}
		disk := filepath.Join(t.TempDir(), "disk.raw")
		one.kami(t, "snapshot", "export", last, disk)
		b, err := os.ReadFile(disk)
		if must(t, err); b[1<<20] != limit || !strings.Contains(string(b[:512]), "merged") {
			t.Errorf("after %s and again: the snapshot has another content", step)
		}
		must(t, os.RemoveAll(one.home))
	}
	if long == 0 || short == 0 {
		t.Errorf("killed before the commit %d times and after it %d times, want both", long, short)
	}
}

// chainLength is how many layers a snapshot stands on, as QEMU sees it.
func chainLength(t *testing.T, h *house, id string) int {
	t.Helper()
	path := filepath.Join(h.home, "regions/local-1/layers", show[ami.Snapshot](t, h, "snapshot", id).Layer.Hex()+".qcow2")
	out, err := exec.Command("qemu-img", "info", "--backing-chain", path).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	return strings.Count(string(out), "image: ")
}
