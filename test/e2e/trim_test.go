package e2e

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// TestTrim gives back what a guest no longer needs: the head shrinks, and the
// next layer stores of the freed clusters only that they are zeros.
func TestTrim(t *testing.T) {
	parallel(t)
	tiny(t)
	id := shared.launch(t, "tiny", "--key-name", "e2e", "--wait", "ssh")
	root := deviceVolume(t, id, "/dev/sda1").Ebs.VolumeID
	head := filepath.Join(shared.home, "regions/local-1/volumes", string(root)+".qcow2")
	shared.ssh(t, id, "dd if=/dev/urandom of=/root/large bs=1M count=32 2>/dev/null; sync")
	full := show[ami.Snapshot](t, shared, "snapshot", shared.kami(t, "snapshot", "create", string(root), "-o", "id"))
	if full.LayerBytes < 32<<20 {
		t.Fatalf("the layer with the file has %d bytes, want 32 MiB at least", full.LayerBytes)
	}
	before := onDisk(t, head)
	shared.ssh(t, id, "rm /root/large; sync; fstrim /")
	if after := onDisk(t, head); after > before-(24<<20) {
		t.Errorf("the head takes %d bytes, and took %d before the guest trimmed 32 MiB", after, before)
	}
	trimmed := show[ami.Snapshot](t, shared, "snapshot", shared.kami(t, "snapshot", "create", string(root), "-o", "id"))
	if trimmed.LayerBytes > 4<<20 {
		t.Errorf("the layer after trimming has %d bytes, want hardly any", trimmed.LayerBytes)
	}
	// What the file was is gone from what a volume of the snapshot holds.
	raw := filepath.Join(t.TempDir(), "trimmed.raw")
	shared.kami(t, "snapshot", "export", string(trimmed.SnapshotID), raw)
	if got, with := onDisk(t, raw), full.SizeBytes; got > with/2 {
		t.Errorf("the exported disk takes %d bytes of %d", got, with)
	}
	shared.kami(t, "instance", "terminate", id)
	shared.kami(t, "snapshot", "delete", string(trimmed.SnapshotID), string(full.SnapshotID))
}

// onDisk is what a file takes, in bytes.
func onDisk(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(&os.PathError{Op: "stat", Path: path, Err: err})
	}
	return st.Blocks * 512
}
