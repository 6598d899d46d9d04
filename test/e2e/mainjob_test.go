package e2e

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// TestMainJob is what a person does: build, launch, change, save, launch the
// saved one, see the change, clear away.
func TestMainJob(t *testing.T) {
	parallel(t)
	image := show[ami.Image](t, shared, "image", tiny(t))
	if image.State != ami.ImageAvailable || image.RootDeviceType != "ebs" {
		t.Errorf("tiny is %s with a root of %s, want available, ebs", image.State, image.RootDeviceType)
	}

	id := shared.launch(t, "tiny", "--key-name", "e2e", "--wait", "ssh")
	if got := shared.ssh(t, id, "uname -s"); got != "Linux" {
		t.Errorf("uname -s in the guest says %q", got)
	}
	host := shared.ssh(t, id, "hostname")
	if inst := show[ami.Instance](t, shared, "instance", id); host != inst.Hostname {
		t.Errorf("the guest calls itself %q, the record %q", host, inst.Hostname)
	}
	boot := shared.ssh(t, id, "cat /proc/sys/kernel/random/boot_id")
	shared.ssh(t, id, "echo 'from the first guest' > /etc/kami-e2e")

	// Saved with a clean reboot, which is the default.
	next := shared.kami(t, "image", "create", id, "--name", "tiny-rebooted", "-o", "id")
	created := show[ami.Image](t, shared, "image", next)
	if created.Consistency != ami.ConsistencyRebooted || created.SourceInstanceID != ami.InstanceID(id) {
		t.Errorf("the image is %s of %s, want rebooted of %s", created.Consistency, created.SourceInstanceID, id)
	}
	shared.kami(t, "instance", "wait", id, "--for", "ssh")
	if again := shared.ssh(t, id, "cat /proc/sys/kernel/random/boot_id"); again == boot {
		t.Error("the source was not rebooted: its boot id is the same")
	}

	// Saved again while it runs on: only what has reached the disk is certain.
	boot = shared.ssh(t, id, "cat /proc/sys/kernel/random/boot_id")
	shared.ssh(t, id, "echo 'second change' > /etc/kami-e2e-2; sync")
	shared.kami(t, "image", "create", id, "--name", "tiny-running", "--no-reboot")
	if again := shared.ssh(t, id, "cat /proc/sys/kernel/random/boot_id"); again != boot {
		t.Error("--no-reboot rebooted the source")
	}
	shared.ssh(t, id, "rm /etc/kami-e2e-2; sync") // after the instant: must not show

	// A layer costs what changed.
	small, whole := layerBytes(t, next), layerBytes(t, tiny(t))
	if small*4 > whole {
		t.Errorf("the second image's layer has %d bytes, the first's %d: too much for one changed file", small, whole)
	}

	second := shared.launch(t, "tiny-running", "--key-name", "e2e", "--wait", "ssh")
	got := shared.ssh(t, second, "cat /etc/kami-e2e /etc/kami-e2e-2; hostname")
	want := "from the first guest\nsecond change\n" + show[ami.Instance](t, shared, "instance", second).Hostname
	if got != want {
		t.Errorf("the second guest says %q, want %q", got, want)
	}

	t.Run("rebooted", func(t *testing.T) {
		third := shared.launch(t, next, "--key-name", "e2e", "--wait", "ssh")
		if got := shared.ssh(t, third, "cat /etc/kami-e2e"); got != "from the first guest" {
			t.Errorf("the third guest says %q", got)
		}
	})

	t.Run("stopped", func(t *testing.T) {
		shared.ssh(t, second, "echo 'and stopped' >> /etc/kami-e2e")
		shared.kami(t, "instance", "stop", second)
		stopped := shared.kami(t, "image", "create", second, "--name", "tiny-stopped", "-o", "id")
		if got := show[ami.Image](t, shared, "image", stopped).Consistency; got != ami.ConsistencyStopped {
			t.Errorf("the image of a stopped instance is %s", got)
		}
		if got := shared.state(t, second); got != ami.InstanceStopped {
			t.Errorf("saving started the instance: %s", got)
		}
		fourth := shared.launch(t, stopped, "--key-name", "e2e", "--wait", "ssh")
		if got := shared.ssh(t, fourth, "cat /etc/kami-e2e"); got != "from the first guest\nand stopped" {
			t.Errorf("the fourth guest says %q", got)
		}
	})

	if out := shared.kami(t, "store", "verify"); strings.Contains(strings.ToLower(out), "corrupt") {
		t.Errorf("store verify says:\n%s", out)
	}
}

// layerBytes is the size of the layer of an image's root snapshot.
func layerBytes(t *testing.T, image string) int64 {
	t.Helper()
	img := show[ami.Image](t, shared, "image", image)
	for _, m := range img.BlockDeviceMappings {
		if m.DeviceName == img.RootDeviceName && m.Ebs != nil {
			return show[ami.Snapshot](t, shared, "snapshot", string(m.Ebs.SnapshotID)).LayerBytes
		}
	}
	t.Fatalf("image %s has no root snapshot", image)
	return 0
}

// TestTerminateLeavesNothing looks at the region's files, not at the listing.
func TestTerminateLeavesNothing(t *testing.T) {
	h := newHouse(shared.bin, filepath.Join(base, "nothing"))
	importSector(t, h)
	id := h.launch(t, "sector", "--wait", "running", "--block-device-mapping", "/dev/sdf=:1:true")
	if n := len(h.files(t, "volumes")); n != 2 {
		t.Errorf("%d heads while running, want 2", n)
	}
	h.kami(t, "instance", "terminate", id)
	for _, dir := range []string{"volumes", "instances", "tmp"} {
		left := slices.DeleteFunc(h.files(t, dir), func(name string) bool { return name == "layers.lock" })
		if len(left) > 0 {
			t.Errorf("terminate leaves %s in %s", left, dir)
		}
	}
	if got := h.state(t, id); got != ami.InstanceTerminated {
		t.Errorf("the instance is %s", got)
	}
	h.kami(t, "instance", "terminate", id) // once more is no error
	h.kami(t, "image", "deregister", "sector", "--delete-snapshots")
	if left := h.files(t, "layers"); len(left) > 0 {
		t.Errorf("deregistering with its snapshots leaves %s", left)
	}
}
