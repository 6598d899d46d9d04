package e2e

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// TestEncrypted runs a guest on encrypted disks, saves it while it runs and
// after it was shut down, and launches what was saved. What the guest wrote is
// in none of the region's files.
func TestEncrypted(t *testing.T) {
	parallel(t)
	tiny(t)
	const marker = "e2e-marker-that-is-secret"
	id := shared.launch(
		t, "tiny", "--key-name", "e2e", "--wait", "ssh",
		"--block-device-mapping", "/dev/sda1=:::::encrypted", "--block-device-mapping", "/dev/sdf=:1::::encrypted",
	)
	data := deviceVolume(t, id, "/dev/sdf")
	disk := guestDisk(t, id, data.Ebs.VolumeID)
	shared.ssh(t, id, "echo root-"+marker+" > /root/secret; echo data-"+marker+" | dd of="+disk+" bs=512 seek=64 conv=sync,notrunc 2>/dev/null; sync")
	live := shared.kami(t, "image", "create", id, "--name", "encrypted-live", "--no-reboot", "-o", "id")
	shared.ssh(t, id, "echo more-"+marker+" >> /root/secret; sync")
	again := shared.kami(t, "image", "create", id, "--name", "encrypted-again", "--no-reboot", "-o", "id")
	img := show[ami.Image](t, shared, "image", again)
	for _, m := range img.BlockDeviceMappings {
		snap := show[ami.Snapshot](t, shared, "snapshot", string(m.Ebs.SnapshotID))
		if !snap.Encrypted || snap.KmsKeyID == "" || m.Ebs.Encrypted == nil || !*m.Ebs.Encrypted {
			t.Errorf("the snapshot of %s is not encrypted: %+v", m.DeviceName, snap)
		}
	}
	// A volume is plugged in and out of the running guest.
	vol := shared.kami(t, "volume", "create", "--snapshot", string(img.BlockDeviceMappings[1].Ebs.SnapshotID), "-o", "id")
	shared.kami(t, "volume", "attach", vol, id)
	if got := shared.ssh(t, id, "dd if="+guestDisk(t, id, ami.VolumeID(vol))+" bs=512 skip=64 count=1 2>/dev/null | tr -d '\\0'"); got != "data-"+marker {
		t.Errorf("the volume of the snapshot holds %q", got)
	}
	shared.kami(t, "volume", "detach", vol)
	shared.kami(t, "volume", "delete", vol)
	shared.kami(t, "image", "create", id, "--name", "encrypted-rebooted")
	shared.kami(t, "instance", "terminate", id)
	shared.kami(t, "image", "deregister", live, "--delete-snapshots")

	next := shared.launch(t, "encrypted-rebooted", "--key-name", "e2e", "--wait", "ssh")
	if got := shared.ssh(t, next, "cat /root/secret"); got != "root-"+marker+"\nmore-"+marker {
		t.Errorf("the guest of the saved image has %q", got)
	}
	shared.kami(t, "instance", "terminate", next)
	secretNowhere(t, shared.home, marker)
	shared.kami(t, "store", "verify")
	for _, name := range []string{"encrypted-again", "encrypted-rebooted"} {
		shared.kami(t, "image", "deregister", name, "--delete-snapshots")
	}
}

// secretNowhere looks for a text in every layer and head of a home.
func secretNowhere(t *testing.T, home, text string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(home, "regions/*/*/*.qcow2"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("layers and heads: %v, %v", paths, err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // others' guests come and go meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(text)) {
			t.Errorf("%s shows what a guest wrote to an encrypted disk", filepath.Base(path))
		}
	}
}
