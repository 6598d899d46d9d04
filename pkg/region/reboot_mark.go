package region

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// rebootingName is the mark in an instance's folder of a guest that is shut down
// to be started again. It is there from before the shutdown until the guest runs,
// and the command at work holds its lock: one that nobody holds tells of a command
// that died, and the next one does what that one owed.
const rebootingName = "rebooting"

func (r *Region) rebootingPath(id ami.InstanceID) string {
	return r.path("instances", string(id), rebootingName)
}

// markReboot notes that a guest is to be started again. done has to be called when
// it has been, or is not going to be.
func (r *Region) markReboot(ctx context.Context, id ami.InstanceID) (done func(), err error) {
	waiting, cancel := context.WithTimeout(ctx, markLimit)
	defer cancel()
	mark, err := durable.AcquireLock(waiting, r.rebootingPath(id))
	if err == nil {
		if err = durable.SyncDir(r.instanceDir(id)); err != nil {
			mark.Unlock()
		}
	}
	if err != nil {
		return nil, storeError(err, "That %s is to be started again cannot be noted.", id)
	}
	durable.Step("reboot.marked")
	return func() {
		defer mark.Unlock()
		r.dropRebooting(id)
	}, nil
}

func (r *Region) dropRebooting(id ami.InstanceID) {
	// The folder goes with its instance.
	if err := durable.Remove(r.rebootingPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.progress.Note("the next command will not know that %s has been started again: %v", id, err)
	}
}

// sweepRebooting starts the guests that killed commands had shut down for a reboot.
func (r *Region) sweepRebooting(ctx context.Context) {
	dirs, err := names(r.path("instances"), "i-", "")
	if err != nil {
		r.progress.Note("whether a guest was left shut down cannot be seen: %v", err)
	}
	for _, name := range dirs {
		id := ami.InstanceID("i-" + name)
		if _, err := os.Lstat(r.rebootingPath(id)); err != nil {
			continue
		}
		if err := r.finishReboot(ctx, id); err != nil {
			r.progress.Note("an interrupted command had shut %s down for a reboot, and it cannot be started again yet: %v", id, err)
		}
	}
}

// finishReboot starts a guest whose mark is there, unless a command is at it. One
// that is still on may be about to shut down, or was never asked to.
func (r *Region) finishReboot(ctx context.Context, id ami.InstanceID) error {
	mark, free, err := durable.TryLock(r.rebootingPath(id))
	if errors.Is(err, os.ErrNotExist) || err == nil && !free {
		return nil
	}
	if err != nil {
		return err
	}
	defer mark.Unlock()
	info, err := os.Stat(r.rebootingPath(id))
	if err != nil {
		return err
	}
	state, err := r.lastState(ctx, id)
	if err != nil {
		return err
	}
	if state != ami.InstanceRunning && state != ami.InstanceStopped { // it is going, or gone
		r.dropRebooting(id)
		return nil
	}
	return r.whileLocked(ctx, id, func(now ami.Instance) error {
		off, err := r.isOff(ctx, now)
		if err != nil {
			return err
		}
		if !off {
			if time.Since(info.ModTime()) > DefaultStopTimeout {
				r.dropRebooting(id)
			}
			return nil
		}
		again, err := r.start(ctx, now)
		if err != nil {
			return err
		}
		err = r.updateInstance(ctx, id, func(i *ami.Instance) {
			i.State, i.StateReason, i.SSHPort = ami.StateRecord(ami.InstanceRunning), nil, again.SSHPort
		})
		if err != nil {
			return err
		}
		r.dropRebooting(id)
		r.progress.Note("an interrupted command had shut %s down for a reboot; it has been started again", id)
		return nil
	})
}
