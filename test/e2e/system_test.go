package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// systemLibvirt starts a libvirtd of the test's own in mount and network
// namespaces of its own, so that neither the host's libvirt nor its network
// sees any of it. It prints the pid of the process that holds the namespaces.
const systemLibvirt = `
set -eu
base=$1
ip link set lo up
for d in run/libvirt var/lib/libvirt var/cache/libvirt etc/libvirt var/log/libvirt; do
  mkdir -p "$base/$d" "/$d"
  [ "$d" = etc/libvirt ] && cp -a /etc/libvirt/. "$base/$d/"
  [ "$d" = var/lib/libvirt ] && mkdir -p "$base/$d/qemu" "$base/$d/dnsmasq" "$base/$d/boot" "$base/$d/images"
  chmod 0755 "$base/$d"
  mount --bind "$base/$d" "/$d"
done
chown libvirt-qemu: "$base/var/lib/libvirt/qemu" 2>/dev/null || true
# /dev/kvm that the guests' user cannot open makes libvirt probe QEMU anew, for
# a minute, at every start; the same device with another mode does not.
if [ -e /dev/kvm ]; then
  mknod "$base/kvm" c 10 232 && chmod 0666 "$base/kvm" && mount --bind "$base/kvm" /dev/kvm
fi
rm -f /etc/libvirt/qemu/networks/autostart/*.xml
virtlogd -d
libvirtd -d
echo ready
# Everything ends with our standard input.
cat >/dev/null
for p in /run/libvirtd.pid /run/virtlogd.pid /run/libvirt/network/*.pid; do
  [ -e "$p" ] && kill "$(cat "$p")" 2>/dev/null || true
done
`

// startSystemLibvirt returns the words that put a command into the namespaces.
func startSystemLibvirt(t *testing.T, dir string) []string {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "bash", "-c", systemLibvirt, "bash", dir)
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	must(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		stop := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer stop.Stop()
		cmd.Wait()
	})
	buf := make([]byte, 64)
	n, _ := stdout.Read(buf)
	if !strings.Contains(string(buf[:n]), "ready") {
		stdin.Close()
		cmd.Wait()
		t.Fatalf("the libvirtd of the test does not start:\n%s", stderr.String())
	}
	child, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/task/" + strconv.Itoa(cmd.Process.Pid) + "/children")
	must(t, err)
	return []string{"nsenter", "--mount", "--net", "--pid", "--target", strings.TrimSpace(string(child))}
}

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
	_, hex, _ := strings.Cut(string(snap.Layer), ":")
	qemuImg(t, "convert", "-f", "qcow2", "-O", "raw", filepath.Join(shared.home, "regions", "local-1", "layers", hex+".qcow2"), out)
}

// TestSystemLibvirt does the main job over qemu:///system: guests run as another
// user and sit on libvirt's NAT network.
func TestSystemLibvirt(t *testing.T) {
	t.Parallel()
	requireRoot(t, "it starts a libvirtd of its own")
	dir := filepath.Join(base, "system")
	must(t, os.MkdirAll(dir, 0o755))
	h := newHouse(shared.bin, filepath.Join(dir, "home"))
	h.wrap = startSystemLibvirt(t, dir)
	h.env = []string{"KAMI_HOME=" + h.home, "KAMI_CONNECT=qemu:///system"}

	tinyDisk := filepath.Join(dir, "tiny.raw")
	flatten(t, tiny(t), tinyDisk)
	h.kami(t, "key", "create", "sys")
	h.kami(t, "import", tinyDisk, "--name", "tiny")
	id := h.launch(t, "tiny", "--key-name", "sys", "--wait", "ssh")
	inst := show[ami.Instance](t, h, "instance", id)
	if inst.Connect != "qemu:///system" || inst.SSHPort != 0 {
		t.Errorf("the guest runs at %s with port %d, want qemu:///system and an address of its own", inst.Connect, inst.SSHPort)
	}
	if got := h.ssh(t, id, "echo system > /etc/kami-e2e; hostname"); got != inst.Hostname {
		t.Errorf("the guest calls itself %q, the record %q", got, inst.Hostname)
	}
	h.kami(t, "image", "create", id, "--name", "tiny-2")
	h.kami(t, "image", "create", id, "--name", "tiny-3", "--no-reboot")
	second := h.launch(t, "tiny-3", "--key-name", "sys", "--wait", "ssh")
	if got := h.ssh(t, second, "cat /etc/kami-e2e"); got != "system" {
		t.Errorf("the second guest says %q", got)
	}
	for _, name := range h.files(t, "layers") {
		info, err := os.Stat(filepath.Join(h.home, "regions", "local-1", "layers", name))
		must(t, err)
		if strings.HasSuffix(name, ".qcow2") && (info.Mode().Perm() != 0o444 || !ownedByRoot(info)) {
			t.Errorf("layer %s is %v of another owner: shared layers must not be given away", name, info.Mode())
		}
	}
	h.kami(t, "store", "verify")
}
