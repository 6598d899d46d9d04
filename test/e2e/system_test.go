package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

func ownedByRoot(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Uid == 0
}

// flatten writes the root disk of an image of the shared home as a raw file,
// with qemu-img: another reader of our layers.
func flatten(t *testing.T, image, out string) {
	t.Helper()
	img := show[ami.Image](t, shared, "image", image)
	snap := show[ami.Snapshot](t, shared, "snapshot", string(img.BlockDeviceMappings[0].Ebs.SnapshotID))
	qemuImg(t, "convert", "-f", "qcow2", "-O", "raw", filepath.Join(shared.home, "regions", "local-1", "layers", snap.Layer.Hex()+".qcow2"), out)
}

// TestSystemLibvirt looks at what only qemu:///system does: guests run as
// another user, who must not be given what guests share.
func TestSystemLibvirt(t *testing.T) {
	parallel(t)
	requireRoot(t, "it needs qemu:///system")
	tiny(t)
	id := shared.launch(t, "tiny", "--key-name", "e2e", "--wait", "ssh")
	inst := show[ami.Instance](t, shared, "instance", id)
	if inst.Connect != system {
		t.Errorf("root's guest runs at %s, want %s", inst.Connect, system)
	}
	out, err := exec.CommandContext(t.Context(), "pgrep", "-u", "libvirt-qemu", "-f", "qemu-system.*"+id).CombinedOutput()
	if err != nil {
		t.Errorf("no qemu of the user libvirt-qemu runs the guest: %v %s", err, out)
	}
	shared.ssh(t, id, "echo system > /etc/kami-e2e; sync")
	shared.kami(t, "image", "create", id, "--name", "tiny-system", "--no-reboot")
	second := shared.launch(t, "tiny-system", "--key-name", "e2e", "--wait", "ssh")
	if got := shared.ssh(t, second, "cat /etc/kami-e2e"); got != "system" {
		t.Errorf("the second guest says %q", got)
	}
	for _, name := range shared.files(t, "layers") {
		info, err := os.Stat(filepath.Join(shared.home, "regions", "local-1", "layers", name))
		must(t, err)
		if strings.HasSuffix(name, ".qcow2") && (info.Mode().Perm() != 0o440 || !ownedByRoot(info)) {
			t.Errorf("layer %s is %v, want 0440 of root: shared layers are neither given away nor shown to all", name, info.Mode())
		}
	}
}

// TestSystemNetwork puts a guest on a network of libvirt's: its address comes
// from the network's DHCP server, and kami ssh finds it.
func TestSystemNetwork(t *testing.T) {
	parallel(t)
	requireRoot(t, "it needs qemu:///system")
	tiny(t)
	name := fmt.Sprintf("kami%d", os.Getpid()%100000)
	xml := filepath.Join(t.TempDir(), "net.xml")
	must(t, os.WriteFile(xml, fmt.Appendf(nil, `<network>
  <name>%s</name><forward mode='nat'/><bridge name='%s'/>
  <ip address='192.168.249.1' netmask='255.255.255.0'><dhcp><range start='192.168.249.2' end='192.168.249.99'/></dhcp></ip>
</network>`, name, name), 0o644))
	virsh := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("virsh", append([]string{"-c", system}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("virsh %s: %v\n%s", args, err, out)
		}
	}
	virsh("net-create", xml)
	t.Cleanup(func() { virsh("net-destroy", name) })

	said := shared.refuse(t, ami.CodeInvalidParameterValue, "launch", "tiny", "--network", "no-such-network")
	if !strings.Contains(said, name) {
		t.Errorf("the error does not name the network that is up:\n%s", said)
	}
	id := shared.launch(t, "tiny", "--key-name", "e2e", "--network", name, "--wait", "ssh")
	inst := show[ami.Instance](t, shared, "instance", id)
	if inst.SSHPort != 0 || !strings.HasPrefix(inst.PrivateIPAddress, "192.168.249.") {
		t.Errorf("on %s the guest has the address %q and the port %d", name, inst.PrivateIPAddress, inst.SSHPort)
	}
	if got := shared.ssh(t, id, "ip -4 -o addr show"); !strings.Contains(got, inst.PrivateIPAddress+"/24") {
		t.Errorf("the guest has no address %s:\n%s", inst.PrivateIPAddress, got)
	}
}

// TestOtherReaders has qemu-img read a layer of ours, and kami import what it
// wrote: the same content, though another file came in.
func TestOtherReaders(t *testing.T) {
	parallel(t)
	raw := filepath.Join(t.TempDir(), "tiny.raw")
	flatten(t, tiny(t), raw)
	h := newHouse(shared.bin, filepath.Join(base, "readers"))
	h.kami(t, "import", raw, "--name", "tiny")
	if got, want := contentDigest(t, h, "tiny"), contentDigest(t, shared, tiny(t)); got != want {
		t.Errorf("through qemu-img the content is %s, want %s", got, want)
	}
}
