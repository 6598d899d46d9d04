package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// debianOnce builds images/debian-12 in the shared home.
var debianOnce = sync.OnceValue(func() result {
	return shared.try("build", recipeDir("debian-12"), "--name", "debian-12", "-o", "id")
})

func debian(t *testing.T) string {
	t.Helper()
	tiny(t) // the key pair, and the light image first
	r := debianOnce()
	if r.code != 0 {
		t.Fatalf("building debian-12: exit status %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

// TestDebian builds the full Debian and the recipe that changes a booted guest of it,
// and sees of the latter's guest that cloud-init took everything that was given.
func TestDebian(t *testing.T) {
	parallelFirst(t)
	from := debian(t)
	image := shared.kami(t, "build", recipeDir("web"), "--name", "web", "-o", "id")
	built := show[ami.Image](t, shared, "image", image)
	if string(built.SourceImageID) != from {
		t.Errorf("web stands on %s, want %s", built.SourceImageID, from)
	}
	data := filepath.Join(t.TempDir(), "user-data")
	must(t, os.WriteFile(data, []byte("#!/bin/sh\necho user-data ran > /root/user-data-ran\n"), 0o644))
	id := shared.launch(
		t, image, "--key-name", "e2e", "--instance-type", "t3.small", "--user-data", "file://"+data,
		"--block-device-mapping", built.RootDeviceName+"=:6", "--wait", "ssh",
	)
	if got := shared.ssh(t, id, "sudo cloud-init status --wait"); !strings.Contains(got, "done") {
		t.Errorf("cloud-init says %q", got)
	}
	if got := shared.ssh(t, id, "sudo cat /root/user-data-ran"); got != "user-data ran" {
		t.Errorf("user data left %q", got)
	}
	if got := shared.ssh(t, id, "curl -s http://127.0.0.1/ || wget -qO- http://127.0.0.1/"); got == "" {
		t.Error("the web server in the guest says nothing")
	}
	inst := show[ami.Instance](t, shared, "instance", id)
	if got := shared.ssh(t, id, "hostname"); got != inst.Hostname {
		t.Errorf("the guest calls itself %q, the record %q", got, inst.Hostname)
	}
	both := lines(strings.ToLower(shared.ssh(t, id, "sudo cat /sys/class/dmi/id/product_uuid /sys/class/dmi/id/product_serial")))
	if len(both) != 2 || both[0] != both[1] || !strings.HasPrefix(both[0], "ec2") {
		t.Errorf("SMBIOS uuid and serial are %q, want both the same, from ec2", both)
	}
	// The root filesystem fills the 6 GiB volume, but for what the boot
	// partitions and the filesystem itself take.
	if kib := atoi(t, shared.ssh(t, id, "df --output=size / | tail -n 1")); kib < 5<<20 {
		t.Errorf("the root filesystem has %d KiB on a volume of 6 GiB: it did not grow", kib)
	}
	if got := shared.ssh(t, id, "systemctl is-active qemu-guest-agent || true"); got != "active" {
		t.Errorf("the guest agent is %s", got)
	}
	shared.ssh(t, id, "sudo dd if=/dev/urandom of=/var/tmp/changed bs=1M count=16 2>/dev/null; sync")
	next := shared.kami(t, "image", "create", id, "--name", "web-changed", "--no-reboot", "-o", "id")
	if got := show[ami.Image](t, shared, "image", next).Consistency; got != ami.ConsistencyFrozen {
		t.Errorf("with the agent answering, the image is %s, want frozen", got)
	}
}

func atoi(t *testing.T, s string) int64 {
	t.Helper()
	var n int64
	for _, c := range strings.TrimSpace(s) {
		if c < '0' || c > '9' {
			t.Fatalf("%q is no number", s)
		}
		n = n*10 + int64(c-'0')
	}
	return n
}
