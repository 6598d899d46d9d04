package qemu

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"
	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/qmp"
	"github.com/kamivm/kami/pkg/machine"
	"github.com/kamivm/kami/pkg/qcow2"
)

// guest starts a guest with one disk that begins with sector, destroyed when the
// test ends.
func guest(t *testing.T, d *Driver, sector []byte, change ...func(*machine.Spec)) machine.Spec {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(sector)
	if err := errors.Join(err, f.Truncate(4<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	id := ami.NewInstanceID()
	s := machine.Spec{
		ID: id, Name: "kami-" + string(id), UUID: "ec2e1916-9099-7caf-fd21-" + string(id)[len(id)-12:],
		CPUs: 1, MemoryMiB: 64, Arch: ami.ArchX8664, Accel: machine.AccelTCG,
		Disks:   []machine.Disk{{Path: disk, Format: machine.FormatRaw, Boot: true}},
		Network: machine.Network{MAC: "52:54:00:00:00:02"},
		Console: machine.Console{Log: filepath.Join(dir, "console.log")},
	}
	for _, c := range change {
		c(&s)
	}
	if err := d.Start(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Destroy(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	return s
}

func withAgent(s *machine.Spec) { s.Agent = true }

// halt is a boot sector of a guest that does nothing: cli, hlt.
func halt() []byte {
	sector := make([]byte, 512)
	copy(sector, []byte{0xfa, 0xf4, 0xeb, 0xfd})
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

func becomes(t *testing.T, d *Driver, id ami.InstanceID, want hypervisor.State) {
	t.Helper()
	var got hypervisor.State
	for range 300 {
		var err error
		if got, err = d.State(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if got == want {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("the guest is %s, want %s", got, want)
}

// TestEnds holds that it can be told how a guest came to its end, and that each
// can be started anew.
func TestEnds(t *testing.T) {
	d := open(t, t.TempDir())
	signal := func(sig unix.Signal) func(*testing.T, ami.InstanceID) {
		return func(t *testing.T, id ami.InstanceID) {
			pid, err := d.run(id).pid()
			if err != nil || pid <= 0 {
				t.Fatalf("pid: %d, %v", pid, err)
			}
			if err := unix.Kill(pid, sig); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tt := range map[string]struct {
		end  func(*testing.T, ami.InstanceID)
		want hypervisor.State
	}{
		"by itself": {func(t *testing.T, id ami.InstanceID) {
			// As a guest's own power-off, which is not in a boot sector's power.
			err := d.with(t.Context(), id, func(m *qmp.Monitor) error { return raw.NewMonitor(m).Quit() })
			if err != nil && !errors.Is(err, hypervisor.ErrNotRunning) {
				t.Fatal(err)
			}
		}, hypervisor.StateOff},
		"killed":            {signal(unix.SIGKILL), hypervisor.StateCrashed},
		"with its host":     {signal(unix.SIGTERM), hypervisor.StateCrashed},
		"of its own faults": {signal(unix.SIGSEGV), hypervisor.StateCrashed},
	} {
		t.Run(name, func(t *testing.T) {
			s := guest(t, d, halt())
			tt.end(t, s.ID)
			becomes(t, d, s.ID, tt.want)
			if all, err := d.States(t.Context()); err != nil || all[s.ID] != tt.want {
				t.Errorf("States: %v, %v, want %s", all[s.ID], err, tt.want)
			}
			if err := d.Shutdown(t.Context(), s.ID); !errors.Is(err, hypervisor.ErrNotRunning) {
				t.Errorf("Shutdown: %v, want ErrNotRunning", err)
			}
			if err := d.Start(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			becomes(t, d, s.ID, hypervisor.StateRunning)
			if err := d.Destroy(t.Context(), s.ID); err != nil {
				t.Fatal(err)
			}
			if left, _ := os.ReadDir(d.dir); len(left) > 0 {
				t.Errorf("Destroy leaves %v", left)
			}
		})
	}
}

// TestPidFileAloneIsNoGuest holds that the process whose number a pid file has is
// neither taken for a guest nor killed.
func TestPidFileAloneIsNoGuest(t *testing.T) {
	d, id := open(t, t.TempDir()), ami.NewInstanceID()
	r := d.run(id)
	alive, err := r.claim()
	if err != nil {
		t.Fatal(err)
	}
	alive.Close()
	if err := os.WriteFile(r.path(pidFile), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	becomes(t, d, id, hypervisor.StateCrashed)
	if pid, err := r.pid(); pid != 0 || err != nil {
		t.Errorf("pid: %d, %v, want none", pid, err)
	}
	if err := d.Destroy(t.Context(), id); err != nil { // and we live
		t.Error(err)
	}
	becomes(t, d, id, hypervisor.StateGone)
}

// TestHangingQEMU holds that a QEMU that answers nothing is still one with power,
// that it hides no other guest, and that its plug can be pulled.
func TestHangingQEMU(t *testing.T) {
	d := open(t, t.TempDir())
	s, other := guest(t, d, halt()), guest(t, d, halt())
	pid, err := d.run(s.ID).pid()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	all, err := d.States(t.Context())
	if err != nil || all[s.ID] != hypervisor.StateRunning || all[other.ID] != hypervisor.StateRunning {
		t.Errorf("States: %v, %v, want both running", all, err)
	}
	if err := d.run(s.ID).kill(); err != nil {
		t.Errorf("kill: %v", err)
	}
	becomes(t, d, s.ID, hypervisor.StateCrashed)
}

// TestMonitorsAreShared holds that a guest can be asked while another command
// talks with it, and that one that wants to talk too waits.
func TestMonitorsAreShared(t *testing.T) {
	d := open(t, t.TempDir())
	s := guest(t, d, halt())
	m, err := d.run(s.ID).talk(t.Context(), monitorSock)
	if err != nil {
		t.Fatal(err)
	}
	becomes(t, d, s.ID, hypervisor.StateRunning)
	done := make(chan error)
	for range 5 { // more than QEMU lets wait
		go func() { done <- d.Resume(t.Context(), s.ID) }()
	}
	time.Sleep(100 * time.Millisecond)
	m.Close()
	for range 5 {
		if err := <-done; err != nil {
			t.Errorf("Resume after another's conversation: %v", err)
		}
	}
}

// TestEncrypted holds that a guest's passphrase is not to be seen, and not kept
// when the disks are open.
func TestEncrypted(t *testing.T) {
	d := open(t, t.TempDir())
	key := machine.Key{ID: "0b6f1c56-9c0a-4e6c-8f0e-5a8f4f6f3f11", Passphrase: []byte(strings.Repeat(secretText, 3))}
	head := func(name string) machine.Disk {
		path := filepath.Join(t.TempDir(), name)
		enc, err := qcow2.NewEncryption(key.ID, key.Passphrase)
		if err == nil {
			err = qcow2.CreateHead(path, 4<<20, "", "", enc)
		}
		if err != nil {
			t.Fatal(err)
		}
		return machine.Disk{Path: path, Format: machine.FormatQCOW2, Keys: map[string]machine.Key{path: key}}
	}
	s := guest(t, d, halt(), func(s *machine.Spec) { s.Disks = append(s.Disks, head("root")) })
	more := head("more")
	if err := d.AttachDisk(t.Context(), s.ID, more); err != nil {
		t.Fatal(err)
	}
	if err := d.AttachDisk(t.Context(), s.ID, more); err != nil {
		t.Errorf("a disk that is there already: %v", err)
	}
	err := d.with(t.Context(), s.ID, func(m *qmp.Monitor) error {
		var objects []struct{ Name, Type string }
		err := qmp.Ask(m, "qom-list", map[string]string{"path": "/objects"}, &objects)
		for _, o := range objects {
			if o.Type == "child<secret>" {
				t.Errorf("QEMU still has the secret %s", o.Name)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	pid, err := d.run(s.ID).pid()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), file))
		if err != nil || bytes.Contains(b, key.Passphrase) {
			t.Errorf("%s of QEMU, %v, tells the passphrase: %q", file, err, b)
		}
	}
	wrong := head("wrong")
	wrong.Keys[wrong.Path] = machine.Key{ID: key.ID, Passphrase: []byte("not this one")}
	if err := d.AttachDisk(t.Context(), s.ID, wrong); err == nil {
		t.Error("a disk was opened with the wrong key")
	}
}

// TestFailedStartIsTold holds that what QEMU finds wrong is what is told.
func TestFailedStartIsTold(t *testing.T) {
	d := open(t, t.TempDir())
	s := guest(t, d, halt())
	again := s
	again.ID = ami.NewInstanceID()
	err := d.Start(t.Context(), again) // on the same disk
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("lock")) {
		t.Errorf("Start on a disk that another guest has: %v, want QEMU's words", err)
	}
	if left, _ := os.ReadDir(d.dir); len(left) != 1 {
		t.Errorf("a failed start leaves %v", left)
	}
}
