// Package qemu runs guests as QEMU processes of its own: without libvirt, without
// a service and without root. A guest outlives the command that started it. What
// is known of it lies in its run folder: a lock that its QEMU holds for as long as
// it lives, the pid file that QEMU writes and locks itself, the sockets on which
// QEMU listens, and what it has said. So any later command finds the guest again,
// and no number of a process is ever taken for a guest that is gone.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
)

const (
	// Name is what the driver calls itself.
	Name = "qemu"
	// URI is where its guests live, for records. It names no folder: they live
	// with what they belong to, also when that is moved.
	URI = "qemu-direct:///"
)

// IsURI says whether an address is one of this driver's, not of libvirt's.
func IsURI(uri string) bool { return strings.HasPrefix(uri, "qemu-direct:") }

// Driver runs the guests of one folder.
type Driver struct {
	dir    string       // absolute; holds a folder for each guest
	tscKHz func() int64 // measured once
}

// Open returns the driver of the guests whose run folders are below dir, an
// absolute path: dir/<instance id>/qemu. The folder need not be there. It returns
// ErrUnreachable where the host has no QEMU.
func Open(dir string) (*Driver, error) {
	if _, err := program(hostArchitecture()); err != nil {
		return nil, fmt.Errorf("%w: %w", hypervisor.ErrUnreachable, err)
	}
	return &Driver{dir, sync.OnceValue(measureTSC)}, nil
}

// Name is "qemu".
func (d *Driver) Name() string { return Name }

// URI is the same for all folders.
func (d *Driver) URI() string { return URI }

// Close does nothing: no connection outlasts a call.
func (d *Driver) Close() error { return nil }

// RunsMetadata says that guests can have a program run for their connections to
// the metadata service.
func (d *Driver) RunsMetadata() bool { return true }

// stateLimit bounds how long one guest is asked what it does. One whose QEMU does
// not answer has its power all the same.
const stateLimit = 3 * time.Second

// State says what a guest does.
func (d *Driver) State(ctx context.Context, id ami.InstanceID) (hypervisor.State, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	r := d.run(id)
	on, err := r.isOn()
	if err != nil {
		return "", err
	}
	if !on {
		return r.atRest()
	}
	limited, cancel := context.WithTimeout(ctx, stateLimit)
	defer cancel()
	status, err := r.status(limited)
	if err == nil {
		return stateOf(status), nil
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if on, oerr := r.isOn(); oerr == nil && !on { // it ended just now
		return r.atRest()
	}
	return hypervisor.StateRunning, nil // it is starting or ending, or very busy
}

// stateOf reads QEMU's word for what a guest does.
func stateOf(status string) hypervisor.State {
	switch status {
	case "running", "suspended", "shutdown":
		return hypervisor.StateRunning
	case "io-error":
		return hypervisor.StateIOError
	}
	return hypervisor.StatePaused
}

var guestFolder = regexp.MustCompile(`^i-[0-9a-f]{8,17}$`)

// States says what all guests do, also those that have ended and that nobody has
// cleared away.
func (d *Driver) States(ctx context.Context) (map[ami.InstanceID]hypervisor.State, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var mu sync.Mutex
	out := map[ami.InstanceID]hypervisor.State{}
	var asking errgroup.Group
	asking.SetLimit(16)
	for _, e := range entries {
		if !guestFolder.MatchString(e.Name()) {
			continue
		}
		asking.Go(func() error {
			id := ami.InstanceID(e.Name())
			// One that cannot be told of does not hide the others.
			if state, err := d.State(ctx, id); err == nil && state != hypervisor.StateGone {
				mu.Lock()
				defer mu.Unlock()
				out[id] = state
			}
			return nil
		})
	}
	_ = asking.Wait()
	return out, ctx.Err()
}

// Render returns the command that Start would run, one flag a line.
func (d *Driver) Render(spec machine.Spec) (string, error) {
	h, err := d.lookAt(spec)
	if err != nil {
		return "", err
	}
	c, err := newCommand(spec, h, d.run(spec.ID))
	if err != nil {
		return "", err
	}
	return c.String(), nil
}

func (d *Driver) run(id ami.InstanceID) runFolder {
	return runFolder(filepath.Join(d.dir, string(id), "qemu"))
}

var (
	_ hypervisor.Driver         = (*Driver)(nil)
	_ hypervisor.Plugger        = (*Driver)(nil)
	_ hypervisor.Resizer        = (*Driver)(nil)
	_ hypervisor.Resumer        = (*Driver)(nil)
	_ hypervisor.Snapshotter    = (*Driver)(nil)
	_ hypervisor.Freezer        = (*Driver)(nil)
	_ hypervisor.Consoler       = (*Driver)(nil)
	_ hypervisor.Renderer       = (*Driver)(nil)
	_ hypervisor.MetadataRunner = (*Driver)(nil)
)
