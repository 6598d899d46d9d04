package e2e

import (
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// TestLineage saves one guest again and again, in every way and with images
// deleted in between: each image has all that was written before it, and costs
// what was written since the last one that is there.
func TestLineage(t *testing.T) {
	parallel(t)
	tiny(t)
	id := shared.launch(t, "tiny", "--key-name", "e2e", "--wait", "ssh")
	all := ""
	write := func(text string) {
		shared.ssh(t, id, "echo "+text+" >> /root/lineage; sync")
		all = strings.TrimSpace(all + "\n" + text)
	}
	save := func(name string, args ...string) string {
		image := shared.kami(t, append([]string{"image", "create", id, "--name", name, "-o", "id"}, args...)...)
		if n := layerBytes(t, image); n > 2<<20 {
			t.Errorf("%s costs %d bytes for one line that was written", name, n)
		}
		return image
	}
	drop := func(image string) {
		shared.kami(t, "image", "deregister", image, "--delete-snapshots")
	}
	sees := func(image string) {
		t.Helper()
		guest := shared.launch(t, image, "--key-name", "e2e", "--wait", "ssh")
		if got := shared.ssh(t, guest, "cat /root/lineage"); got != all {
			t.Errorf("%s has %q, want %q", image, got, all)
		}
		shared.kami(t, "instance", "terminate", guest)
	}

	write("one")
	first := save("lineage-1", "--no-reboot")
	write("two")
	second := save("lineage-2") // rebooted
	shared.kami(t, "instance", "wait", id, "--for", "ssh")
	write("three")
	third := save("lineage-3", "--no-reboot")
	sees(third)

	// The layer since which changes are known goes: what was written before it
	// must not be missed.
	for _, image := range []string{third, second, first} {
		drop(image)
	}
	write("four")
	fourth := save("lineage-4", "--no-reboot")
	if said := shared.kami(t, "store", "verify"); strings.Contains(said, "damaged") {
		t.Errorf("store verify says:\n%s", said)
	}
	write("five")
	shared.kami(t, "instance", "stop", id)
	fifth := save("lineage-5")
	drop(fourth)
	shared.kami(t, "instance", "start", id)
	shared.kami(t, "instance", "wait", id, "--for", "ssh")
	write("six")
	sixth := save("lineage-6", "--no-reboot")
	drop(fifth)
	sees(sixth)
	if got := show[ami.Image](t, shared, "image", sixth).Consistency; got != ami.ConsistencyCrash {
		t.Errorf("without an agent the image is %s", got)
	}
}
