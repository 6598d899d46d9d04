package region

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor/libvirt"
	"github.com/kamivm/kami/pkg/internal/durable"
)

func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(dir))
}

// instanceLockPath is apart from a job's lock: it guards an instance's power.
func (r *Region) instanceLockPath(id ami.InstanceID) string {
	return r.path("tmp", "power-"+string(id)+".lock")
}

// powerLock is the sole right to change an instance's power. Its file is removed
// with it, so that one which is found without a holder tells of a command that
// died while it was changing the power.
type powerLock struct {
	lock        *durable.Lock
	path        string
	interrupted bool // the holder before this one did not come to its end
}

// unlock gives the right back; with keep the next holder finds interrupted set.
func (l *powerLock) unlock(keep bool) {
	if !keep {
		os.Remove(l.path)
	}
	l.lock.Unlock()
}

// tryLockInstance takes the right to change an instance's power, if nobody has
// it; nil without an error when somebody has.
func (r *Region) tryLockInstance(id ami.InstanceID) (*powerLock, error) {
	path := r.instanceLockPath(id)
	_, serr := os.Lstat(path)
	lock, free, err := durable.TryLock(path)
	if err != nil || !free {
		return nil, err
	}
	return &powerLock{lock, path, serr == nil}, nil
}

// whileLocked runs fn with the sole right to change an instance's power, on the
// instance as it is then: what was read before may be of the past.
func (r *Region) whileLocked(ctx context.Context, id ami.InstanceID, fn func(now ami.Instance) error) error {
	lock, err := r.tryLockInstance(id)
	if err != nil {
		return storeError(err, "The instance %s cannot be locked.", id)
	}
	if lock == nil {
		return ami.Errorf(ami.CodeIncorrectInstanceState, "Another command is changing the instance '%s'.", id).
			WithHint("Wait until it has finished.")
	}
	// A guest that was told to shut down may do so after its command was given
	// up: that is still no shutdown of its own will.
	defer func() { lock.unlock(ctx.Err() != nil) }()
	now, err := r.instance(ctx, id)
	if err != nil {
		return err
	}
	return fn(now)
}

// guestScratch makes a work folder in which the hypervisor's user can make
// sockets and files. Socket paths are short by law, so it is not in the region.
func (r *Region) guestScratch(ami.InstanceID) (*durable.Scratch, error) {
	dir, err := runDir()
	if err != nil {
		return nil, err
	}
	if _, err := durable.SweepScratch(dir); err != nil {
		return nil, storeError(err, "The work folder %s cannot be swept.", dir)
	}
	s, err := durable.NewScratch(dir, "b")
	if err != nil {
		return nil, storeError(err, "No work folder can be made.")
	}
	// The guest's process may run as another user; the name is not guessable
	// and the folder is gone in seconds.
	if err := os.Chmod(s.Dir(), 0o733); err != nil {
		s.Close()
		return nil, storeError(err, "No work folder can be made.")
	}
	return s, nil
}

// runDir is this user's folder for sockets, whose paths are short by law.
func runDir() (string, error) {
	dir := filepath.Join(os.TempDir(), "kami-"+uidText())
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return "", storeError(err, "No work folder can be made.")
	}
	return dir, storeError(ownedBySelf(dir), "The work folder %s is not ours.", dir)
}

// agentSocket is where the host's end of the guest agent's channel is, "" for
// the hypervisor's choice: a user's own libvirt would put it so deep below the
// user's home that hardly any home is short enough.
func (r *Region) agentSocket(inst ami.Instance) (string, error) {
	if inst.Connect != libvirt.Session {
		return "", nil
	}
	dir, err := runDir()
	return filepath.Join(dir, string(inst.InstanceID)+".agent"), err
}

func (r *Region) removeAgentSocket(inst ami.Instance) error {
	path, err := r.agentSocket(inst)
	if err != nil || path == "" {
		return err
	}
	return removeAll(path)
}
