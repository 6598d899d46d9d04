package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// direct is the house whose new guests libvirt has no part in.
func direct(h *house) *house {
	return &house{bin: h.bin, home: h.home, env: []string{"KAMI_HOME=" + h.home, "KAMI_DRIVER=qemu"}}
}

// withoutLibvirt is the house on a host on which no libvirt answers: root's is
// hidden, and a user's is not started.
func withoutLibvirt(t *testing.T, home string) *house {
	t.Helper()
	h := &house{bin: shared.bin, home: home, env: []string{
		"KAMI_HOME=" + home, "LIBVIRT_AUTOSTART=0", "XDG_RUNTIME_DIR=" + t.TempDir(), "XDG_CACHE_HOME=" + t.TempDir(),
	}}
	if os.Getuid() == 0 {
		h.wrap = []string{"unshare", "--mount", "--propagation", "private", "sh", "-c", `mount -t tmpfs none /run/libvirt && exec "$@"`, "sh"}
	}
	return h
}

func (h *house) runFile(id, name string) string {
	return filepath.Join(h.home, "regions", "local-1", "instances", id, "qemu", name)
}

func (h *house) qemuOf(t *testing.T, id string) int {
	t.Helper()
	b, err := os.ReadFile(h.runFile(id, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestDirect is the main job with guests that are processes of kami's own.
func TestDirect(t *testing.T) {
	parallel(t)
	tiny(t)
	h := direct(shared)
	id := h.launch(t, "tiny", "--key-name", "e2e", "--wait", "ssh")
	if inst := show[ami.Instance](t, h, "instance", id); inst.Driver != "qemu" || inst.Connect != "qemu-direct:///" {
		t.Errorf("the instance is of the driver %s at %s", inst.Driver, inst.Connect)
	}
	// From here on it is handled as what it is, whatever is asked for.
	boot := shared.ssh(t, id, "cat /proc/sys/kernel/random/boot_id")
	shared.ssh(t, id, "echo 'first change' > /etc/kami-e2e; sync")
	first := shared.kami(t, "image", "create", id, "--name", "direct-1", "--no-reboot", "-o", "id")
	shared.ssh(t, id, "echo 'second change' > /etc/kami-e2e-2; sync")
	r := h.try("image", "create", id, "--name", "direct-2", "--no-reboot", "-o", "id")
	if r.code != 0 || strings.Contains(r.stderr, "no record of its changed blocks") {
		t.Fatalf("the second image of the running guest: exit status %d, and only what changed is read\n%s", r.code, r.stderr)
	}
	shared.ssh(t, id, "rm /etc/kami-e2e-2; sync") // after the instant: must not show
	if again := shared.ssh(t, id, "cat /proc/sys/kernel/random/boot_id"); again != boot {
		t.Error("--no-reboot rebooted the source")
	}
	if small, whole := layerBytes(t, first), layerBytes(t, tiny(t)); small*4 > whole {
		t.Errorf("the image's layer has %d bytes, that of tiny %d: too much for one changed file", small, whole)
	}
	second := h.launch(t, "direct-2", "--key-name", "e2e", "--wait", "ssh")
	if got := h.ssh(t, second, "cat /etc/kami-e2e /etc/kami-e2e-2"); got != "first change\nsecond change" {
		t.Errorf("the second guest says %q", got)
	}

	t.Run("volumes", func(t *testing.T) {
		vol := h.kami(t, "volume", "create", "--size", "1", "-o", "id")
		h.kami(t, "volume", "attach", vol, id)
		eventually(t, 30*time.Second, "the guest sees the volume", func() bool { return h.ssh(t, id, "cat /proc/partitions | grep -c vdb || true") == "1" })
		h.kami(t, "volume", "modify", vol, "--size", "2")
		eventually(t, 30*time.Second, "the guest sees its size", func() bool { return h.ssh(t, id, "cat /sys/block/vdb/size") == "4194304" })
		h.kami(t, "volume", "detach", vol)
		if got := h.ssh(t, id, "cat /proc/partitions | grep -c vdb || true"); got != "0" {
			t.Error("the guest still has the volume")
		}
		h.kami(t, "volume", "delete", vol)
	})

	t.Run("console", func(t *testing.T) {
		r := h.tryInput("echo typed-$((1+1))\n\x1d", "console", id, "--attach")
		if r.code != 0 {
			t.Errorf("console --attach: exit status %d\n%s", r.code, r.stderr)
		}
		h.waitConsole(t, id, "typed-2", 30*time.Second)
	})

	t.Run("power", func(t *testing.T) {
		h.kami(t, "instance", "reboot", id)
		h.kami(t, "instance", "wait", id, "--for", "ssh")
		h.try("ssh", id, "--", "poweroff")
		h.waitState(t, id, ami.InstanceStopped, time.Minute)
		if got := show[ami.Instance](t, h, "instance", id).StateReason; got == nil || got.Code != "Client.InstanceInitiatedShutdown" {
			t.Errorf("a guest that powered itself off is stopped for %+v", got)
		}
		h.kami(t, "instance", "start", id)
		h.kami(t, "instance", "stop", "--force", id)
	})
}

// TestDirectLive snapshots a guest that writes without a pause: each snapshot is
// of one instant.
func TestDirectLive(t *testing.T) {
	parallel(t)
	l := &live{stamper: stamper{places: 512}, house: direct(&house{bin: shared.bin, home: filepath.Join(base, "direct-live")})}
	l.id = l.stamper.launch(t, l.house)
	l.vol = string(show[ami.Instance](t, l.house, "instance", l.id).BlockDeviceMappings[0].Ebs.VolumeID)
	l.snapshots(t)
}

// TestDirectKilled kills a guest, and commands in the midst of its launch.
func TestDirectKilled(t *testing.T) {
	parallel(t)
	h := direct(&house{bin: shared.bin, home: filepath.Join(base, "direct-killed")})
	importSector(t, h)
	id := h.launch(t, "sector", "--shutdown-behavior", "terminate")
	if err := syscall.Kill(h.qemuOf(t, id), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// Not of its own will: it keeps all it has.
	h.waitState(t, id, ami.InstanceStopped, 10*time.Second)
	h.kami(t, "instance", "start", id)
	if got := h.state(t, id); got != ami.InstanceRunning {
		t.Errorf("after its start the instance is %s", got)
	}

	for after := 5 * time.Millisecond; after < 150*time.Millisecond; after += 15 * time.Millisecond {
		cmd := exec.CommandContext(t.Context(), h.bin, "launch", "sector")
		cmd.Env = append(os.Environ(), h.env...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		// The next commands know of all guests that run, and end what is not one.
		// A QEMU that is just being started keeps its launch's locks for a moment.
		eventually(t, 10*time.Second, "the guests that run after a kill at "+after.String()+" are known", func() bool {
			running := lines(h.kami(t, "instance", "list", "--filter", "instance-state-name=running", "-o", "id"))
			alive := h.processes(t)
			slices.Sort(running)
			slices.Sort(alive)
			return slices.Equal(running, alive)
		})
	}
	if left := h.leftGuests(); len(left) > 0 {
		h.kami(t, append([]string{"instance", "terminate"}, left...)...)
	}
	if left := h.processes(t); len(left) > 0 {
		t.Errorf("processes are left of %v", left)
	}
}

// processes are the instances of the home that have a QEMU.
func (h *house) processes(t *testing.T) (ids []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, _ := os.ReadFile(file)
		args := strings.Split(string(b), "\x00")
		if i := slices.Index(args, "-pidfile"); i >= 0 && strings.HasPrefix(args[i+1], h.home+"/") {
			ids = append(ids, filepath.Base(filepath.Dir(filepath.Dir(args[i+1]))))
		}
	}
	return ids
}

// TestDirectWithoutBeingAsked launches where no libvirt answers.
func TestDirectWithoutBeingAsked(t *testing.T) {
	parallel(t)
	h := withoutLibvirt(t, filepath.Join(base, "direct-auto"))
	importSector(t, h)
	r := h.try("launch", "sector", "-o", "id")
	id := strings.TrimSpace(r.stdout)
	if r.code != 0 || strings.Count(r.stderr, "libvirt cannot be reached: the guest is run without it") != 1 {
		t.Fatalf("launch: exit status %d, want one line that says how\n%s", r.code, r.stderr)
	}
	h.waitConsole(t, id, bootLine, time.Minute)
	if got := show[ami.Instance](t, h, "instance", id); got.Driver != "qemu" || got.State.Name != ami.InstanceRunning {
		t.Errorf("the instance is %s, of the driver %s", got.State.Name, got.Driver)
	}
	doctor := h.try("doctor", "-o", "json", "--query", "Checks[?Name==`\"libvirt\"`].[Status, Detail]")
	if !strings.Contains(doctor.stdout, "warning") || !strings.Contains(doctor.stdout, "guests are run without it, by the driver qemu") {
		t.Errorf("the doctor says %s", doctor.stdout)
	}
	if r := h.try("--driver", "libvirt", "launch", "sector"); r.code == 0 || !strings.Contains(r.stderr, "cannot be reached") {
		t.Errorf("a launch by libvirt: exit status %d\n%s", r.code, r.stderr)
	}
	h.kami(t, "instance", "terminate", id)
}

// TestDirectParavirtual starts a guest with a kernel on a machine that has virtio
// devices alone, and plugs a disk into that.
func TestDirectParavirtual(t *testing.T) {
	parallel(t)
	tinyPV(t)
	h := direct(shared)
	id := h.launch(t, "tiny-pv", "--key-name", "e2e", "--wait", "ssh")
	if args, err := os.ReadFile(filepath.Join(h.home, "regions", "local-1", "instances", id, "qemu.argv")); err != nil || !strings.Contains(string(args), "-machine microvm,") {
		t.Errorf("the guest runs on no microvm: %v\n%s", err, args)
	}
	// An emulated one keeps the clock that it was told of.
	if got := h.ssh(t, id, "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"); got != "tsc" && got != "kvm-clock" {
		t.Errorf("the guest's clock is %s", got)
	}
	vol := h.kami(t, "volume", "create", "--size", "1", "-o", "id")
	h.kami(t, "volume", "attach", vol, id)
	eventually(t, 30*time.Second, "the guest sees the volume", func() bool { return h.ssh(t, id, "ls /sys/class/block | grep -c vdc || true") == "1" })
	h.kami(t, "volume", "detach", vol)
	h.kami(t, "volume", "delete", vol)
	h.kami(t, "image", "create", id, "--name", "direct-pv", "--no-reboot")
	if r := h.try("instance", "stop", id); r.code != 0 || strings.Contains(r.stderr, "its power was cut") {
		t.Errorf("the guest does not hear its power button: exit status %d\n%s", r.code, r.stderr)
	}
}
