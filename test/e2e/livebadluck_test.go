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

// live is a stamper that runs, in a home of its own: the guest to which bad luck
// comes while it is imaged.
type live struct {
	stamper
	*house
	id, vol string
	before  []uint32 // what its disk held before it was started last
}

func startLive(t *testing.T, home string) *live {
	t.Helper()
	l := &live{stamper: stamper{places: 512}, house: newHouse(shared.bin, filepath.Join(base, home))}
	l.id = l.stamper.launch(t, l.house)
	l.vol = string(show[ami.Instance](t, l.house, "instance", l.id).BlockDeviceMappings[0].Ebs.VolumeID)
	return l
}

// sees checks that a snapshot is of one instant of the guest, and returns it.
func (l *live) sees(t *testing.T, snap string) uint32 {
	t.Helper()
	at := l.seen(t, l.house, snap, l.before)
	t.Logf("%s is of the guest at %d", snap, at)
	return at
}

// snapshots makes snapshots until one shows that the guest goes on. Each is of one
// instant, and all but the first look only at what has changed.
func (l *live) snapshots(t *testing.T) {
	t.Helper()
	var first uint32
	for i := range 20 {
		r := l.try("snapshot", "create", l.vol, "-o", "id")
		if r.code != 0 {
			t.Fatalf("snapshot create: exit status %d\n%s", r.code, r.stderr)
		}
		if i > 0 && strings.Contains(r.stderr, "no record of its changed blocks") {
			t.Errorf("snapshot %d: what has changed since the last one is not known\n%s", i, r.stderr)
		}
		at := l.sees(t, strings.TrimSpace(r.stdout))
		if i == 0 {
			first = at
		} else if at > first {
			return
		}
		time.Sleep(200 * time.Millisecond) // an emulated guest may still be booting
	}
	t.Errorf("the guest has stopped at %d", first)
}

// begin starts a command that reads the guest's disk, and stops it in the middle:
// its view is open and its layer begun. goOn lets it go on, waits for its end and
// returns what it wrote.
func (l *live) begin(t *testing.T, args ...string) (goOn func() (code int, said string)) {
	t.Helper()
	cmd, out := l.background(t, args...)
	l.waitScratch(t, "layer-")
	must(t, cmd.Process.Signal(syscall.SIGSTOP))
	return func() (int, string) {
		must(t, cmd.Process.Signal(syscall.SIGCONT))
		cmd.Wait()
		return cmd.ProcessState.ExitCode(), out.String()
	}
}

// waitScratch waits for a work folder of a command.
func (l *live) waitScratch(t *testing.T, prefix string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond / 2) {
		for _, name := range l.files(t, "tmp") {
			if strings.HasPrefix(name, prefix) {
				return
			}
		}
	}
	t.Fatalf("no command has come to have %s in tmp: %s", prefix, l.files(t, "tmp"))
}

// completed are the snapshots that are said to be complete.
func (l *live) completed(t *testing.T) []string {
	t.Helper()
	return lines(l.kami(t, "snapshot", "list", "--filter", "status=completed", "-o", "id"))
}

// wholeWithout checks that the house is in order, and has no other complete
// snapshots than before.
func (l *live) wholeWithout(t *testing.T, after string, before []string) {
	t.Helper()
	wholeAgain(t, l.house, after)
	if got := l.completed(t); !slices.Equal(got, before) {
		t.Errorf("after %s there are the snapshots %v, want %v", after, got, before)
	}
}

// TestGuestKilledWhileImaged kills a guest's process in the middle of a snapshot:
// that one fails, and what the guest wrote is there.
func TestGuestKilledWhileImaged(t *testing.T) {
	parallel(t)
	l := startLive(t, "killed")
	l.snapshots(t)
	before := l.completed(t)

	goOn := l.begin(t, "image", "create", l.id, "--name", "killed", "--no-reboot")
	must(t, syscall.Kill(qemuPID(l.id), syscall.SIGKILL))
	if code, said := goOn(); code == 0 || !strings.Contains(said, "cannot be read") && !strings.Contains(said, "reading the disk") {
		t.Errorf("the image of a guest that was killed: exit status %d, and it says\n%s", code, said)
	}
	l.wholeWithout(t, "kill -9 of the guest", before)
	l.waitState(t, l.id, ami.InstanceStopped, 20*time.Second)

	l.before = l.stamps(t, rawHead(t, l.house, l.vol))
	l.instant(t, l.before, nil)
	l.kami(t, "instance", "start", l.id)
	l.snapshots(t)
}

// TestSnapshotsAtOnce asks for a second snapshot of a volume in the middle of the
// first, and for an image.
func TestSnapshotsAtOnce(t *testing.T) {
	parallel(t)
	l := startLive(t, "at-once")
	before := l.completed(t)
	goOn := l.begin(t, "snapshot", "create", l.vol)
	second, said := l.background(t, "snapshot", "create", l.vol)
	third, saidThird := l.background(t, "image", "create", l.id, "--name", "at-once", "--no-reboot")
	time.Sleep(300 * time.Millisecond) // in which they come to where the first is
	if code, said := goOn(); code != 0 {
		t.Errorf("the first snapshot: exit status %d\n%s", code, said)
	}
	second.Wait()
	third.Wait()
	want := len(before) + 1
	for i, cmd := range []*exec.Cmd{second, third} {
		text := []string{said.String(), saidThird.String()}[i]
		switch code := cmd.ProcessState.ExitCode(); {
		case code == 0:
			want++
		case !strings.Contains(text, string(ami.CodeIncorrectInstanceState)) || !strings.Contains(text, "Another command"):
			t.Errorf("%s: exit status %d, and it says\n%s", cmd.Args[1:], code, text)
		}
	}
	wholeAgain(t, l.house, "snapshots at once")
	all := l.completed(t)
	if len(all) != want {
		t.Errorf("the complete snapshots are %v, want %d", all, want)
	}
	for _, snap := range all {
		l.sees(t, snap)
	}
	l.snapshots(t)
}

// TestLibvirtRestartedWhileImaged kills libvirtd in the middle of a snapshot, and
// starts it again: what was read is right, and so is the next one. It is not
// parallel: all guests of the tests have this libvirtd.
func TestLibvirtRestartedWhileImaged(t *testing.T) {
	d := ownLibvirtd(t)
	l := startLive(t, "restarted")
	l.snapshots(t)
	before := l.completed(t)
	goOn := l.begin(t, "snapshot", "create", l.vol, "-o", "id")
	// QEMU 7.2 sometimes hears nobody any more after it was left in mid-sentence:
	// what libvirtd was asked beside the reading comes to its end first.
	time.Sleep(500 * time.Millisecond)
	d.restart(t)
	code, said := goOn()
	t.Logf("exit status %d\n%s", code, said)
	if code != 0 {
		l.wholeWithout(t, "libvirtd was killed", before)
	} else {
		wholeAgain(t, l.house, "libvirtd was killed")
		all := l.completed(t)
		if len(all) != len(before)+1 {
			t.Errorf("libvirtd was killed, and the snapshots are %v, and were %v", all, before)
		}
		for _, snap := range all[min(len(before), len(all)):] {
			l.sees(t, snap)
		}
	}
	if got := l.state(t, l.id); got != ami.InstanceRunning {
		t.Fatalf("the guest is %s", got)
	}
	l.snapshots(t)
}

// libvirtd is the daemon that hack/with-libvirt.sh has started for the tests.
type libvirtd struct{ argv []string }

func ownLibvirtd(t *testing.T) *libvirtd {
	t.Helper()
	d := &libvirtd{}
	if d.pid() == 0 {
		t.Skip("needs a libvirtd of the tests' own, which hack/with-libvirt.sh starts for root where none answers")
	}
	return d
}

// pid finds the daemon, 0 where there is none that is the tests' own.
func (d *libvirtd) pid() int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		argv := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if filepath.Base(argv[0]) == "libvirtd" && strings.Contains(string(line), "/kami-libvirt-") {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			d.argv = argv
			return pid
		}
	}
	return 0
}

// restart kills the daemon and starts it again.
func (d *libvirtd) restart(t *testing.T) {
	t.Helper()
	must(t, syscall.Kill(d.pid(), syscall.SIGKILL))
	eventually(t, 10*time.Second, "libvirtd is gone", func() bool { return d.pid() == 0 })
	if out, err := exec.Command(d.argv[0], d.argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", d.argv, err, out)
	}
	eventually(t, 20*time.Second, "libvirtd answers", func() bool {
		return exec.Command("virsh", "-q", "-c", system, "uri").Run() == nil
	})
}
