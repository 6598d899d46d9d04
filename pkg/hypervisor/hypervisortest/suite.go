// Package hypervisortest is the contract of package hypervisor as tests: each
// sentence of its comments is a subtest, and every driver runs them all.
package hypervisortest

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
	"github.com/kamivm/kami/pkg/qcow2"
)

// Config says what the suite runs on.
type Config struct {
	// Open opens the driver anew; the suite closes what it opened.
	Open func(t *testing.T) hypervisor.Driver
	// Dir is a folder that the guests' process can write to and that everyone
	// can pass through.
	Dir   string
	Accel machine.Accel
	CPU   string // "" is the host's own
	// Line is what a started guest says on its console.
	Line string
	// Runs says that guests are real: they write to their disks.
	Runs bool
	// Pause makes a guest stand still, as nothing in the contract does.
	Pause func(t *testing.T, id ami.InstanceID)
}

// limit bounds every wait of the suite.
const limit = time.Minute

// Run runs the suite.
func Run(t *testing.T, c Config) {
	t.Run("life", c.life)
	t.Run("unknown guest", c.unknown)
	t.Run("failed start leaves nothing", c.failedStart)
	t.Run("guests outlive their driver", c.outlives)
	t.Run("cancelled", c.cancelled)
	t.Run("resume", c.resume)
	t.Run("disks", c.plug)
	t.Run("backup", c.backup)
}

// RunGuest runs the one part of the suite in which a guest does something.
func RunGuest(t *testing.T, c Config) { c.backup(t) }

func (c Config) open(t *testing.T) hypervisor.Driver {
	t.Helper()
	d := c.Open(t)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

// start starts a guest that is destroyed when the test ends.
func (c Config) start(t *testing.T, d hypervisor.Driver) machine.Spec {
	t.Helper()
	s := spec(t, c)
	if err := d.Start(t.Context(), s); err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() {
		if err := d.Destroy(context.Background(), s.ID); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	})
	c.says(t, s)
	return s
}

// says waits for the guest's line.
func (c Config) says(t *testing.T, s machine.Spec) {
	t.Helper()
	var b []byte
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if b, _ = os.ReadFile(s.Console.Log); strings.Contains(string(b), c.Line) {
			return
		}
	}
	t.Fatalf("the guest says %q, want %q", b, c.Line)
}

func state(t *testing.T, d hypervisor.Driver, id ami.InstanceID, want hypervisor.State) {
	t.Helper()
	got, err := d.State(t.Context(), id)
	if err != nil || got != want {
		t.Errorf("State of %s: %v, %v, want %s", id, got, err, want)
	}
}

func (c Config) life(t *testing.T) {
	d := c.open(t)
	if d.Name() == "" || d.URI() == "" {
		t.Errorf("the driver calls itself %q at %q", d.Name(), d.URI())
	}
	s, other := c.start(t, d), c.start(t, d)
	state(t, d, s.ID, hypervisor.StateRunning)
	if err := d.Start(t.Context(), s); !errors.Is(err, hypervisor.ErrExists) {
		t.Errorf("a second Start of one guest: %v, want ErrExists", err)
	}
	all, err := d.States(t.Context())
	if err != nil || all[s.ID] != hypervisor.StateRunning || all[other.ID] != hypervisor.StateRunning {
		t.Errorf("States: %v, %v, want both guests running", all, err)
	}
	if err := d.Shutdown(t.Context(), other.ID); err != nil {
		t.Errorf("Shutdown of a running guest: %v", err)
	}
	if err := d.Destroy(t.Context(), s.ID); err != nil {
		t.Errorf("Destroy: %v", err)
	}
	state(t, d, s.ID, hypervisor.StateGone)
	if err := d.Destroy(t.Context(), s.ID); err != nil {
		t.Errorf("Destroy once more: %v", err)
	}
	if err := d.Start(t.Context(), s); err != nil {
		t.Fatalf("Start after Destroy: %v", err)
	}
	state(t, d, s.ID, hypervisor.StateRunning)
}

func (c Config) unknown(t *testing.T) {
	d, id := c.open(t), ami.NewInstanceID()
	state(t, d, id, hypervisor.StateGone)
	for name, err := range map[string]error{"Shutdown": d.Shutdown(t.Context(), id), "Reboot": d.Reboot(t.Context(), id)} {
		if !errors.Is(err, hypervisor.ErrNotRunning) {
			t.Errorf("%s of an unknown guest: %v, want ErrNotRunning", name, err)
		}
	}
	if err := d.Destroy(t.Context(), id); err != nil {
		t.Errorf("Destroy of an unknown guest: %v", err)
	}
}

func (c Config) failedStart(t *testing.T) {
	d := c.open(t)
	s := spec(t, c)
	s.Disks[0].Path += ".missing"
	if err := d.Start(t.Context(), s); err == nil {
		t.Fatal("a guest whose disk is missing started")
	}
	state(t, d, s.ID, hypervisor.StateGone)
}

func (c Config) outlives(t *testing.T) {
	d := c.Open(t)
	s := spec(t, c)
	if err := d.Start(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	again := c.open(t)
	state(t, again, s.ID, hypervisor.StateRunning)
	if err := again.Destroy(t.Context(), s.ID); err != nil {
		t.Error(err)
	}
}

func (c Config) cancelled(t *testing.T) {
	d := c.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.States(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("States after its context ended: %v, want context.Canceled", err)
	}
	// A start that is given up in its midst leaves no guest that comes to run
	// later.
	for _, after := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond} {
		s := spec(t, c)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		err := d.Start(ctx, s)
		cancel()
		want := hypervisor.StateGone
		if err == nil {
			want = hypervisor.StateRunning
		}
		state(t, d, s.ID, want)
		if err := d.Destroy(t.Context(), s.ID); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	}
}

func (c Config) resume(t *testing.T) {
	d := c.open(t)
	r, ok := d.(hypervisor.Resumer)
	if !ok {
		t.Fatalf("the driver %s resumes no guests", d.Name())
	}
	if err := r.Resume(t.Context(), ami.NewInstanceID()); !errors.Is(err, hypervisor.ErrNotRunning) {
		t.Errorf("Resume of an unknown guest: %v, want ErrNotRunning", err)
	}
	s := c.start(t, d)
	c.Pause(t, s.ID)
	state(t, d, s.ID, hypervisor.StatePaused)
	if all, err := d.States(t.Context()); err != nil || all[s.ID] != hypervisor.StatePaused {
		t.Errorf("States: %v, %v, want it paused", all[s.ID], err)
	}
	for range 2 {
		if err := r.Resume(t.Context(), s.ID); err != nil {
			t.Errorf("Resume: %v", err)
		}
		state(t, d, s.ID, hypervisor.StateRunning)
	}
}

func (c Config) plug(t *testing.T) {
	d := c.open(t)
	p, ok := d.(hypervisor.Plugger)
	if !ok {
		t.Fatalf("the driver %s plugs no disks", d.Name())
	}
	disk := machine.Disk{Device: "/dev/sdf", Serial: "more", Path: newHead(t, c.Dir, "", ""), Format: machine.FormatQCOW2}
	if err := p.AttachDisk(t.Context(), ami.NewInstanceID(), disk); !errors.Is(err, hypervisor.ErrNotRunning) {
		t.Errorf("AttachDisk to an unknown guest: %v, want ErrNotRunning", err)
	}
	s := c.start(t, d)
	if err := p.AttachDisk(t.Context(), s.ID, disk); err != nil {
		t.Errorf("AttachDisk: %v", err)
	}
	c.resize(t, d, s)
	if err := p.DetachDisk(t.Context(), s.ID, disk.Path+".other"); err != nil {
		t.Errorf("DetachDisk of a disk that is not there: %v", err)
	}
	if c.Runs {
		return // letting go of a disk takes a guest with an operating system
	}
	if err := p.DetachDisk(t.Context(), s.ID, disk.Path); err != nil {
		t.Errorf("DetachDisk: %v", err)
	}
}

func (c Config) resize(t *testing.T, d hypervisor.Driver, guest machine.Spec) {
	r, ok := d.(hypervisor.Resizer)
	if !ok {
		t.Fatalf("the driver %s resizes no disks", d.Name())
	}
	path := guest.Disks[0].Path
	if err := r.ResizeDisk(t.Context(), ami.NewInstanceID(), path, 2*diskSize); !errors.Is(err, hypervisor.ErrNotRunning) {
		t.Errorf("ResizeDisk of an unknown guest: %v, want ErrNotRunning", err)
	}
	for range 2 {
		if err := r.ResizeDisk(t.Context(), guest.ID, path, 2*diskSize); err != nil {
			t.Errorf("ResizeDisk: %v", err)
		}
	}
	if !c.Runs {
		return
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := qcow2.Inspect(f, st.Size()); err != nil || info.Size != 2*diskSize {
		t.Errorf("after ResizeDisk the disk has %d bytes, %v, want %d", info.Size, err, 2*diskSize)
	}
}
