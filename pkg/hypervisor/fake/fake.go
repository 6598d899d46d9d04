// Package fake is a hypervisor without guests: it keeps what it was told and
// plays the part of guests that do nothing, so that what stands on a driver can
// be tested anywhere and at once. It passes the suite that real drivers pass.
package fake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"sync"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
	"github.com/kamivm/kami/pkg/qcow2"
)

// URI is where the fake says that its guests live.
const URI = "fake:///"

// ConsoleLine is what a fake guest writes to its console when it starts.
const ConsoleLine = "fake: ready\n"

// Driver is the fake. Its zero value is of no use: New makes one.
type Driver struct {
	mu     sync.Mutex
	guests map[ami.InstanceID]*guest

	// What a test can make go wrong: FailStart is asked before a guest is
	// started; Deaf guests do not hear the power button; with NoRoom those that
	// are resumed are paused again.
	FailStart    func(machine.Spec) error
	Deaf, NoRoom bool
}

type guest struct {
	spec  machine.Spec
	state hypervisor.State
}

// New returns a hypervisor without guests.
func New() *Driver { return &Driver{guests: map[ami.InstanceID]*guest{}} }

// Name is "fake".
func (d *Driver) Name() string { return "fake" }

// URI is the same for all fakes.
func (d *Driver) URI() string { return URI }

// Close does nothing: guests live on, and so can their driver be used again.
func (d *Driver) Close() error { return nil }

// Start notes the guest, whose disks must be there.
func (d *Driver) Start(ctx context.Context, spec machine.Spec) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, ok := d.guests[spec.ID]; ok {
		return fmt.Errorf("%w: %s", hypervisor.ErrExists, spec.ID)
	}
	if d.FailStart != nil {
		if err := d.FailStart(spec); err != nil {
			return err
		}
	}
	for _, disk := range spec.Disks {
		if _, err := os.Stat(disk.Path); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(spec.Console.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = io.WriteString(log, ConsoleLine)
	if err := errors.Join(err, log.Close()); err != nil {
		return err
	}
	d.guests[spec.ID] = &guest{spec, hypervisor.StateRunning}
	return nil
}

// Spec returns what a guest was started with.
func (d *Driver) Spec(id ami.InstanceID) (machine.Spec, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g, ok := d.guests[id]
	if !ok {
		return machine.Spec{}, false
	}
	return g.spec, true
}

// PowerOff is the guest shutting itself down.
func (d *Driver) PowerOff(id ami.InstanceID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.guests, id)
}

// Pause makes a guest stand still, in a state that is paused.
func (d *Driver) Pause(id ami.InstanceID, state hypervisor.State) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.guests[id].state = state
}

// Resume lets a guest go on.
func (d *Driver) Resume(ctx context.Context, id ami.InstanceID) error {
	return d.with(ctx, id, func(g *guest) error {
		if !d.NoRoom {
			g.state = hypervisor.StateRunning
		}
		return nil
	})
}

// State says what a guest does.
func (d *Driver) State(ctx context.Context, id ami.InstanceID) (hypervisor.State, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g, ok := d.guests[id]; ok {
		return g.state, ctx.Err()
	}
	return hypervisor.StateGone, ctx.Err()
}

// States says what all guests do.
func (d *Driver) States(ctx context.Context) (map[ami.InstanceID]hypervisor.State, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[ami.InstanceID]hypervisor.State{}
	for id, g := range d.guests {
		out[id] = g.state
	}
	return maps.Clone(out), ctx.Err()
}

// with calls fn with a running guest.
func (d *Driver) with(ctx context.Context, id ami.InstanceID, fn func(*guest) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	g, ok := d.guests[id]
	if !ok {
		return fmt.Errorf("%w: %s", hypervisor.ErrNotRunning, id)
	}
	return fn(g)
}

// Shutdown ends the guest at once, unless it is deaf or stands still.
func (d *Driver) Shutdown(ctx context.Context, id ami.InstanceID) error {
	return d.with(ctx, id, func(g *guest) error {
		if !d.Deaf && g.state == hypervisor.StateRunning {
			delete(d.guests, id)
		}
		return nil
	})
}

// Reboot does nothing to a guest that does nothing.
func (d *Driver) Reboot(ctx context.Context, id ami.InstanceID) error {
	return d.with(ctx, id, func(*guest) error { return nil })
}

// Destroy forgets the guest.
func (d *Driver) Destroy(ctx context.Context, id ami.InstanceID) error {
	d.PowerOff(id)
	return ctx.Err()
}

// Address is the same for all guests.
func (d *Driver) Address(ctx context.Context, _ machine.Network, id ami.InstanceID) (string, error) {
	return "192.0.2.1", d.with(ctx, id, func(*guest) error { return nil })
}

// Networks is the network that every fake has.
func (d *Driver) Networks(ctx context.Context) ([]string, error) { return []string{"fake"}, ctx.Err() }

// AttachDisk adds the disk to the guest's spec.
func (d *Driver) AttachDisk(ctx context.Context, id ami.InstanceID, disk machine.Disk) error {
	return d.with(ctx, id, func(g *guest) error {
		g.spec.Disks = append(g.spec.Disks, disk)
		return nil
	})
}

// DetachDisk takes the disk from the guest's spec.
func (d *Driver) DetachDisk(ctx context.Context, id ami.InstanceID, path string) error {
	return d.with(ctx, id, func(g *guest) error {
		var keep []machine.Disk
		for _, disk := range g.spec.Disks {
			if disk.Path != path {
				keep = append(keep, disk)
			}
		}
		g.spec.Disks = keep
		return nil
	})
}

// ResizeDisk does nothing: a fake guest looks at no disk.
func (d *Driver) ResizeDisk(ctx context.Context, id ami.InstanceID, _ string, _ int64) error {
	return d.with(ctx, id, func(*guest) error { return nil })
}

// Backup opens the disks as their files have them: the guest writes nothing.
func (d *Driver) Backup(ctx context.Context, id ami.InstanceID, b hypervisor.Backup) (hypervisor.View, error) {
	if err := b.Quiesced(ctx); err != nil {
		return nil, err
	}
	v := &view{images: map[string]*qcow2.Image{}}
	err := d.with(ctx, id, func(g *guest) error {
		for _, want := range b.Disks {
			for _, disk := range g.spec.Disks {
				if disk.Path != want.Path {
					continue
				}
				img, err := qcow2.Open(disk.Path, disk.Backing...)
				if err != nil {
					return err
				}
				v.images[disk.Path] = img
			}
			if v.images[want.Path] == nil {
				return fmt.Errorf("the guest has no disk %s", want.Path)
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

type view struct {
	mu     sync.Mutex
	images map[string]*qcow2.Image // those that are open
}

func (v *view) Disk(path string) (hypervisor.DiskView, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	img, ok := v.images[path]
	if !ok {
		return nil, fmt.Errorf("%s is not in the backup", path)
	}
	return diskView{img}, nil
}

func (v *view) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for path, img := range v.images {
		img.Close()
		delete(v.images, path)
	}
	return nil
}

// diskView knows of no earlier instant: all of the disk counts as changed.
type diskView struct{ *qcow2.Image }

func (diskView) Incremental() bool { return false }

func (d diskView) Whole() hypervisor.DiskView { return d }

func (d diskView) Extents(ctx context.Context, off, length int64, fn func(off, length int64, dirty, zero bool) error) error {
	return qcow2.Flatten(d.Image).Extents(ctx, off, length, func(off, length int64, state qcow2.ExtentState) error {
		return fn(off, length, true, state != qcow2.Data)
	})
}

var (
	_ hypervisor.Driver      = (*Driver)(nil)
	_ hypervisor.Plugger     = (*Driver)(nil)
	_ hypervisor.Resizer     = (*Driver)(nil)
	_ hypervisor.Resumer     = (*Driver)(nil)
	_ hypervisor.Snapshotter = (*Driver)(nil)
	_ hypervisor.Networker   = (*Driver)(nil)
)
