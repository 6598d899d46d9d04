package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// TestNoRoomForTheGuest fills the host's disk under a guest, which is paused for
// it: kami says so, and lets it go on when there is room again.
func TestNoRoomForTheGuest(t *testing.T) {
	parallel(t)
	requireRoot(t, "it mounts a small file system")
	dir := filepath.Join(base, "no-room")
	must(t, os.Mkdir(dir, 0o755))
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=400m,mode=755", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "--lazy", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	h := newHouse(shared.bin, filepath.Join(dir, "home"))
	s := stamper{places: 512, ticks: 1} // slow enough to be caught before it is round
	id := s.launch(t, h)

	filler, slack := filepath.Join(dir, "filler"), filepath.Join(dir, "slack")
	var fs syscall.Statfs_t
	must(t, os.WriteFile(slack, make([]byte, 256<<10), 0o600))
	must(t, syscall.Statfs(dir, &fs))
	must(t, os.WriteFile(filler, make([]byte, int64(fs.Bavail)*fs.Bsize-2<<20), 0o600))
	eventually(t, time.Minute, "the guest is paused", func() bool {
		out, _ := exec.Command("virsh", "-q", "-c", system, "domstate", "--reason", "kami-"+id).Output()
		return strings.Contains(string(out), "I/O error")
	})
	must(t, os.Remove(slack)) // what kami's own files take; the guest wants more
	const why = "paused by an I/O error on its disk: free space, then kami instance start"
	inst := show[ami.Instance](t, h, "instance", id)
	if inst.State.Name != ami.InstanceRunning || inst.StateReason == nil || !strings.Contains(inst.StateReason.Message, why) {
		t.Errorf("the guest is %s because of %v, want it running and %s", inst.State.Name, inst.StateReason, why)
	}
	if r := h.try("instance", "list"); r.code != 0 || !strings.Contains(r.stdout, "running") || !strings.Contains(r.stderr, why) {
		t.Errorf("instance list: exit status %d, and it says\n%s%s", r.code, r.stdout, r.stderr)
	}
	h.refuse(t, ami.CodeResourceLimitExceeded, "instance", "start", id)

	must(t, os.Remove(filler))
	h.kami(t, "instance", "start", id)
	if why := show[ami.Instance](t, h, "instance", id).StateReason; why != nil {
		t.Errorf("the guest goes on, and is said to be %v", why)
	}
	l := &live{stamper: s, house: h, id: id, vol: string(show[ami.Instance](t, h, "instance", id).BlockDeviceMappings[0].Ebs.VolumeID)}
	l.snapshots(t)
}
