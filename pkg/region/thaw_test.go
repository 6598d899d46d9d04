package region

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/fake"
)

// freezer is a hypervisor whose guests have an agent. A slow one does not answer
// in time when it is asked to freeze, nor the first times to thaw.
type freezer struct {
	*fake.Driver
	freezes error
	silent  int32        // how often a thaw is not answered
	asked   atomic.Int32 // how often to thaw
	frozen  func()
}

var errSilent = errors.New("the agent does not answer")

func (f *freezer) Freeze(context.Context, ami.InstanceID, time.Duration) (int, error) {
	if f.frozen != nil {
		f.frozen()
	}
	if f.freezes != nil {
		return 0, f.freezes
	}
	return 1, nil
}

func (f *freezer) Thaw(context.Context, ami.InstanceID) error {
	if f.asked.Add(1) <= f.silent {
		return errSilent
	}
	return nil
}

func TestFreezeIsAlwaysThawed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		freezes error
		silent  int32
		thaws   int32
		want    ami.Consistency
	}{
		{"frozen", nil, 0, 1, ami.ConsistencyFrozen},
		{"frozen, and slow to thaw", nil, 1, 2, ami.ConsistencyFrozen},
		{"no answer in time", errSilent, 1, 2, ami.ConsistencyCrash},
		{"no agent", hypervisor.ErrNoAgent, 0, 0, ami.ConsistencyCrash},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := &freezer{Driver: fake.New(), freezes: tt.freezes, silent: tt.silent}
			r, _ := open(t, func(o *Options) {
				o.NewDriver = func(context.Context, string) (hypervisor.Driver, error) { return f, nil }
			})
			image(t, r, "base")
			inst := launched(t, r, RunInstancesInput{Image: "base"})
			marked := false
			f.frozen = func() {
				_, err := os.Stat(r.frozenPath(inst.InstanceID))
				marked = err == nil
				r.sweepFrozen(t.Context()) // what another command does now
			}
			snap, err := r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: volumeOf(t, r, inst, "/dev/sda1").VolumeID})
			must(t, err)
			if snap.Consistency != tt.want || f.asked.Load() != tt.thaws || !marked {
				t.Errorf("%s, thawed %d times, marked %v; want %s, %d times", snap.Consistency, f.asked.Load(), marked, tt.want, tt.thaws)
			}
			if _, err := os.Stat(r.frozenPath(inst.InstanceID)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the mark is left: %v", err)
			}
		})
	}
}

// TestThawEnds holds that a guest whose agent never answers is given up, which
// is said.
func TestThawEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &listener{}
		f := &freezer{silent: 1 << 30}
		start := time.Now()
		err := (&Region{progress: l}).thaw(t.Context(), f, ami.NewInstanceID())
		if took := time.Since(start); !errors.Is(err, errSilent) || took != thawLimit || len(l.steps) != 1 {
			t.Errorf("%v after %v with %d steps; want it to end after %v with one step", err, took, len(l.steps), thawLimit)
		}
	})
}

// TestSweepThaws plays a command that died between freeze and thaw.
func TestSweepThaws(t *testing.T) {
	t.Parallel()
	f := &freezer{Driver: fake.New(), silent: 1}
	l := &listener{}
	h := newHouse(t)
	with := func(o *Options) {
		o.Progress = l
		o.NewDriver = func(context.Context, string) (hypervisor.Driver, error) { return f, nil }
	}
	r := h.open(t, with)
	image(t, r, "base")
	inst := launched(t, r, RunInstancesInput{Image: "base"})
	must(t, os.WriteFile(r.frozenPath(inst.InstanceID), nil, 0o600))
	h.open(t, with) // the agent does not answer: it is tried again
	if _, err := os.Stat(r.frozenPath(inst.InstanceID)); err != nil || !l.noted("cannot be thawed yet") {
		t.Errorf("a guest that did not thaw is not remembered (%v), or not spoken of: %q", err, l.notes)
	}
	h.open(t, with)
	if _, err := os.Stat(r.frozenPath(inst.InstanceID)); !errors.Is(err, os.ErrNotExist) || !l.noted("it has been thawed") {
		t.Errorf("the mark is left (%v), or nothing is said: %q", err, l.notes)
	}
	h.open(t, with)
	if n := f.asked.Load(); n != 2 {
		t.Errorf("it was thawed %d times, want 2", n)
	}
}

// stalling shows disks that are not answered for until the view is closed.
type stalling struct{ *fake.Driver }

type stalledView struct {
	hypervisor.View
	closed chan struct{}
	once   sync.Once
}

var errRoom = errors.New("it ran out of room")

func (d stalling) Backup(ctx context.Context, id ami.InstanceID, b hypervisor.Backup) (hypervisor.View, error) {
	v, err := d.Driver.Backup(ctx, id, b)
	return &stalledView{View: v, closed: make(chan struct{})}, err
}

func (v *stalledView) Disk(path string) (hypervisor.DiskView, error) {
	dv, err := v.View.Disk(path)
	return stalledDisk{dv, v.closed}, err
}

func (v *stalledView) Close() error {
	v.once.Do(func() { close(v.closed) })
	return errRoom
}

type stalledDisk struct {
	hypervisor.DiskView
	closed chan struct{}
}

func (d stalledDisk) ReadAt([]byte, int64) (int, error) {
	<-d.closed
	return 0, errors.New("closed")
}

// TestInterruptedRead holds that a command which is interrupted does not wait
// for a guest's disk, and that the end of a view is not passed over in silence.
func TestInterruptedRead(t *testing.T) {
	t.Parallel()
	l := &listener{}
	d := stalling{fake.New()}
	r, _ := open(t, func(o *Options) {
		o.Progress = l
		o.NewDriver = func(context.Context, string) (hypervisor.Driver, error) { return d, nil }
	})
	image(t, r, "base")
	inst := launched(t, r, RunInstancesInput{Image: "base"})
	id := volumeOf(t, r, inst, "/dev/sda1").VolumeID
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	done := make(chan error, 1)
	go func() {
		_, err := r.CreateSnapshot(ctx, CreateSnapshotInput{VolumeID: id})
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want that it was interrupted", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it waits for the disk")
	}
	if !l.noted(errRoom.Error()) {
		t.Errorf("nothing is said of how the view ended: %q", l.notes)
	}
}
