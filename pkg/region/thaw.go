package region

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/internal/durable"
)

const (
	// freezeLimit bounds how long the guest agent may take to freeze.
	freezeLimit = 5 * time.Second
	// markLimit bounds the wait for another command that is just thawing.
	markLimit = 30 * time.Second
	// thawLimit bounds how long a guest is asked to thaw, every thawPause.
	thawLimit = 2 * time.Minute
	thawPause = time.Second
)

// frozenName is the mark in an instance's folder of a guest that may be frozen.
// It is there from before the freeze until the agent has thawed, and the command
// at work holds its lock: one that nobody holds tells of a command that died.
const frozenName = "frozen"

func (r *Region) frozenPath(id ami.InstanceID) string {
	return r.path("instances", string(id), frozenName)
}

// freeze freezes a guest's file systems and says whether they are: where they
// are not, it is no error. thaw has to be called in any case; it returns when
// the agent has answered, or after a limit.
func (r *Region) freeze(ctx context.Context, driver hypervisor.Driver, id ami.InstanceID) (frozen bool, thaw func(), err error) {
	freezer, ok := driver.(hypervisor.Freezer)
	if !ok {
		return false, func() {}, nil
	}
	waiting, cancel := context.WithTimeout(ctx, markLimit)
	defer cancel()
	mark, err := durable.AcquireLock(waiting, r.frozenPath(id))
	if err == nil {
		if err = durable.SyncDir(r.instanceDir(id)); err != nil {
			mark.Unlock()
		}
	}
	if err != nil {
		return false, nil, storeError(err, "That %s is to be frozen cannot be noted.", id)
	}
	durable.Step("guest.marked")
	n, ferr := freezer.Freeze(ctx, id, freezeLimit)
	durable.Step("guest.frozen")
	return ferr == nil && n > 0, func() {
		defer mark.Unlock()
		// An agent that was asked and has not answered may freeze later.
		if !errors.Is(ferr, hypervisor.ErrNoAgent) {
			if terr := r.thaw(context.WithoutCancel(ctx), freezer, id); terr != nil {
				r.progress.Note("the file systems of %s may be frozen and cannot be thawed; the next command tries again: %v", id, terr)
				return
			}
			durable.Step("guest.thawed")
		}
		r.removeMark(id)
	}, nil
}

// thaw asks a guest to thaw until its agent has answered.
func (r *Region) thaw(ctx context.Context, freezer hypervisor.Freezer, id ami.InstanceID) error {
	ctx, cancel := context.WithTimeout(ctx, thawLimit)
	defer cancel()
	err := freezer.Thaw(ctx, id)
	if isThawed(err) {
		return nil
	}
	step := r.progress.Step("waiting for the agent of "+string(id)+" to thaw its file systems", 0)
	for !isThawed(err) {
		select {
		case <-ctx.Done():
			step.Done(err)
			return err
		case <-time.After(thawPause):
			err = freezer.Thaw(ctx, id)
		}
	}
	step.Done(nil)
	return nil
}

// isThawed says whether a guest is not frozen after an attempt to thaw it that
// ended with err: one that does not run is not.
func isThawed(err error) bool {
	return err == nil || errors.Is(err, hypervisor.ErrNotRunning) || errors.Is(err, hypervisor.ErrNotFound)
}

func (r *Region) removeMark(id ami.InstanceID) {
	// The folder goes with its instance.
	if err := durable.Remove(r.frozenPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.progress.Note("the next command will not know that %s has been thawed: %v", id, err)
	}
}

// sweepFrozen thaws the guests that killed commands may have left frozen.
func (r *Region) sweepFrozen(ctx context.Context) {
	dirs, err := names(r.path("instances"), "i-", "")
	if err != nil {
		r.progress.Note("whether a guest was left frozen cannot be seen: %v", err)
	}
	for _, name := range dirs {
		id := ami.InstanceID("i-" + name)
		if _, err := os.Lstat(r.frozenPath(id)); err != nil {
			continue
		}
		if err := r.thawLeft(ctx, id); err != nil {
			r.progress.Note("an interrupted command may have left the file systems of %s frozen, and they cannot be thawed yet: %v", id, err)
		}
	}
}

// thawLeft thaws a guest whose mark is there, unless a command is at it.
func (r *Region) thawLeft(ctx context.Context, id ami.InstanceID) error {
	mark, free, err := durable.TryLock(r.frozenPath(id))
	if errors.Is(err, os.ErrNotExist) || err == nil && !free {
		return nil
	}
	if err != nil {
		return err
	}
	defer mark.Unlock()
	var inst ami.Instance
	err = r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		inst, err = tx.Instance(id)
		return err
	})
	if errors.Is(err, catalog.ErrNotFound) {
		return nil // its folder goes too
	}
	if err != nil {
		return err
	}
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return err
	}
	if freezer, ok := driver.(hypervisor.Freezer); ok {
		if err := freezer.Thaw(ctx, id); !isThawed(err) {
			return err
		}
		r.progress.Note("%s may have been left frozen by an interrupted command; it has been thawed.", id)
	}
	r.removeMark(id)
	return nil
}
