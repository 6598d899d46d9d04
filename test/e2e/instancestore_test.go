package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// layersOnDisk is how many layers the shared home has.
func layersOnDisk(t *testing.T, h *house) int {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(h.home, "regions", "local-1", "layers", "*.qcow2"))
	must(t, err)
	return len(all)
}

// TestInstanceStore has both kinds of guests on roots of bundles: they boot, keep
// what they write over reboots, and end with their root.
func TestInstanceStore(t *testing.T) {
	parallel(t)
	tiny(t) // the key pair
	h := newHouse(shared.bin, filepath.Join(base, "instance-store"))
	if r := h.try("key", "create", "e2e"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	t.Cleanup(func() { os.RemoveAll(h.home) })
	for _, kind := range []string{"hvm", "paravirtual"} {
		t.Run(kind, func(t *testing.T) {
			name := "tiny-" + kind
			h.kami(t, "build", recipeDir("tiny"), "--root-device-type", "instance-store", "--virtualization-type", kind, "--name", name)
			image := show[ami.Image](t, h, "image", name)
			if image.RootDeviceType != "instance-store" || image.VirtualizationType != kind || image.ImageLocation != "images/"+name+".manifest" {
				t.Errorf("the image is of %s, %s, at %s", image.RootDeviceType, image.VirtualizationType, image.ImageLocation)
			}
			// Nothing is on the host before the first launch wants it.
			before := layersOnDisk(t, h)
			first := h.launch(t, name, "--key-name", "e2e", "--block-device-mapping", "/dev/sdb=ephemeral0")
			fetched := layersOnDisk(t, h)
			second := h.launch(t, name, "--key-name", "e2e")
			if again := layersOnDisk(t, h); fetched <= before || again != fetched {
				t.Errorf("%d layers before, %d after the first launch, %d after the second, which needs none", before, fetched, again)
			}
			h.kami(t, "instance", "wait", first, second, "--for", "ssh")

			// The ephemeral disk is a file system, and the root is the guest's own.
			disk := "/dev/vdb"
			if got := h.ssh(t, first, "mkdir -p /tmp/e && mount -t ext4 "+disk+" /tmp/e && echo here > /tmp/e/mark && sync && dd if="+disk+" bs=1 skip=1144 count=10 2>/dev/null"); got != "ephemeral0" {
				t.Errorf("the label of %s is %q", disk, got)
			}
			h.ssh(t, first, "echo 'of the first' > /etc/kami-e2e; sync")
			if got := h.ssh(t, second, "ls /etc/kami-e2e 2>/dev/null; echo none"); got != "none" {
				t.Errorf("the second guest has %q of the first one's", got)
			}

			// A volume comes and goes.
			vol := h.kami(t, "volume", "create", "--size", "1", "-o", "id")
			h.kami(t, "volume", "attach", vol, first)
			if got := h.ssh(t, first, "sleep 1; cat /sys/class/block/vd[a-z]/size | grep -c 2097152"); got != "1" {
				t.Errorf("%s guests' disks have the size of the volume", got)
			}

			// Reboots from within and from without keep it all.
			boot := h.ssh(t, first, "cat /proc/sys/kernel/random/boot_id")
			h.kami(t, "instance", "reboot", first)
			h.kami(t, "instance", "wait", first, "--for", "ssh")
			got := h.ssh(t, first, "cat /proc/sys/kernel/random/boot_id /etc/kami-e2e; mkdir -p /tmp/e; mount -t ext4 "+disk+" /tmp/e; cat /tmp/e/mark")
			if strings.HasPrefix(got, boot) || !strings.HasSuffix(got, "\nof the first\nhere") {
				t.Errorf("after a reboot the guest says %q, before it was boot %s", got, boot)
			}
			h.refuse(t, ami.CodeUnsupportedOperation, "instance", "stop", first)

			// A shutdown from within is its end, but not that of its volume.
			if r := h.try("ssh", first, "--", "poweroff"); r.code < 0 {
				t.Errorf("the guest cannot be told to shut down: %s", r.stderr)
			}
			h.waitState(t, first, ami.InstanceTerminated, time.Minute)
			ended := show[ami.Instance](t, h, "instance", first)
			if ended.StateReason == nil || ended.StateReason.Code != "Client.InstanceInitiatedShutdown" {
				t.Errorf("it ended for the reason %v", ended.StateReason)
			}
			if got := show[ami.Volume](t, h, "volume", vol); got.State != ami.VolumeAvailable {
				t.Errorf("its volume is %s", got.State)
			}
			h.kami(t, "volume", "delete", vol)
			h.waitState(t, second, ami.InstanceRunning, time.Minute)
			h.kami(t, "instance", "terminate", second)
			heads, err := filepath.Glob(filepath.Join(h.home, "regions", "local-1", "volumes", "*.qcow2"))
			must(t, err)
			if len(heads) > 0 {
				t.Errorf("disks are left: %v", heads)
			}
		})
	}
	if got := h.kami(t, "store", "verify"); strings.Contains(got, "not well") {
		t.Error(got)
	}
}
