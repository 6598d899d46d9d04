package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// TestOrdinaryUser does the main job, building included, as a user that the
// test makes: no root, no group, no service, qemu:///session.
func TestOrdinaryUser(t *testing.T) {
	parallel(t)
	requireRoot(t, "it makes a user")
	name := fmt.Sprintf("kami-e2e-%d", os.Getpid())
	// Short: libvirt makes sockets deep below a user's home, whose paths have at
	// most 107 bytes.
	userHome := filepath.Join(base, "u")
	if out, err := exec.CommandContext(t.Context(), "useradd", "--create-home", "--home-dir", userHome, "--shell", "/bin/bash", name).CombinedOutput(); err != nil {
		t.Fatalf("useradd: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		// libvirt's session daemon ends by itself when it is idle; the user
		// cannot be removed before.
		exec.Command("pkill", "-u", name).Run()
		if out, err := exec.Command("userdel", "--force", "--remove", name).CombinedOutput(); err != nil {
			t.Logf("userdel: %v\n%s", err, out)
		}
	})
	runtime := filepath.Join(userHome, "run")
	h := newHouse(shared.bin, filepath.Join(userHome, ".local", "share", "kami"))
	h.env = nil // nothing said: the defaults of an ordinary user
	h.wrap = []string{
		"setpriv", "--reuid", name, "--regid", name, "--init-groups", "--reset-env", "--inh-caps=-all",
		"env", "XDG_RUNTIME_DIR=" + runtime, "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "--chdir=" + userHome,
	}
	if out, err := exec.CommandContext(t.Context(), "install", "-d", "-m", "0700", "-o", name, runtime).CombinedOutput(); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}

	h.kami(t, "key", "create", "mine")
	h.kami(t, "build", recipeDir("tiny"), "--name", "tiny")
	id := h.launch(t, "tiny", "--key-name", "mine", "--wait", "ssh")
	inst := show[ami.Instance](t, h, "instance", id)
	if inst.Connect != session {
		t.Errorf("an ordinary user's guest runs at %s, want %s", inst.Connect, session)
	}
	if got := h.ssh(t, id, "echo by-a-user > /etc/kami-e2e; cat /etc/kami-e2e"); got != "by-a-user" {
		t.Errorf("the guest says %q", got)
	}
	if out, err := exec.CommandContext(t.Context(), "pgrep", "-u", name, "-f", "qemu-system.*"+id).CombinedOutput(); err != nil {
		t.Errorf("no qemu of user %s runs the guest: %v %s", name, err, out)
	}
	h.kami(t, "image", "create", id, "--name", "tiny-2")
	second := h.launch(t, "tiny-2", "--key-name", "mine", "--wait", "ssh")
	if got := h.ssh(t, second, "cat /etc/kami-e2e"); got != "by-a-user" {
		t.Errorf("the second guest says %q", got)
	}

	t.Run("same content", func(t *testing.T) {
		mine, roots := contentDigest(t, h, "tiny"), contentDigest(t, shared, tiny(t))
		if mine != roots {
			t.Errorf("tiny built by a user has content %s, by root %s: a build of the same packages gives the same content", mine, roots)
		}
	})
}

// contentDigest is the content of an image's root snapshot.
func contentDigest(t *testing.T, h *house, image string) string {
	t.Helper()
	img := show[ami.Image](t, h, "image", image)
	for _, m := range img.BlockDeviceMappings {
		if m.DeviceName == img.RootDeviceName && m.Ebs != nil {
			return strings.TrimSpace(string(show[ami.Snapshot](t, h, "snapshot", string(m.Ebs.SnapshotID)).ContentDigest))
		}
	}
	t.Fatalf("image %s has no root snapshot", image)
	return ""
}
