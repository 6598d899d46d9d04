package region

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/kamivm/kami/pkg/ami"
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

// tryLockInstance takes the right to change an instance's power, if nobody has it.
func (r *Region) tryLockInstance(id ami.InstanceID) (unlock func(), free bool, err error) {
	lock, free, err := durable.TryLock(r.instanceLockPath(id))
	if err != nil || !free {
		return nil, false, err
	}
	return func() {
		os.Remove(r.instanceLockPath(id))
		lock.Unlock()
	}, true, nil
}

// whileLocked runs fn with the sole right to change an instance's power.
func (r *Region) whileLocked(ctx context.Context, id ami.InstanceID, fn func() error) error {
	unlock, free, err := r.tryLockInstance(id)
	if err != nil {
		return storeError(err, "The instance %s cannot be locked.", id)
	}
	if !free {
		return ami.Errorf(ami.CodeIncorrectInstanceState, "Another command is changing the instance '%s'.", id).
			WithHint("Wait until it has finished.")
	}
	defer unlock()
	return fn()
}

// guestScratch makes a work folder in which the hypervisor's user can make
// sockets and files. Socket paths are short by law, so it is not in the region.
func (r *Region) guestScratch(ami.InstanceID) (*durable.Scratch, error) {
	dir := filepath.Join(os.TempDir(), "kami-"+uidText())
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, storeError(err, "No work folder can be made.")
	}
	if err := ownedBySelf(dir); err != nil {
		return nil, storeError(err, "The work folder %s is not ours.", dir)
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
