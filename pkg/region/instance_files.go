package region

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor/libvirt"
	"github.com/kamivm/kami/pkg/hypervisor/qemu"
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

// guestScratch makes two work folders in which the guest's process can make
// files: one for a socket, whose path is short by law, and one in the region,
// where there is room for copies of what the guest writes meanwhile.
func (r *Region) guestScratch(inst ami.Instance) (socket, copies *durable.Scratch, err error) {
	dir, err := runDir()
	if err != nil {
		return nil, nil, err
	}
	if _, err := durable.SweepScratch(dir); err != nil {
		return nil, nil, storeError(err, "The work folder %s cannot be swept.", dir)
	}
	if socket, err = guestWritable(dir, "b", inst); err != nil {
		return nil, nil, err
	}
	if copies, err = guestWritable(r.path("tmp"), "copies", inst); err != nil {
		socket.Close()
		return nil, nil, err
	}
	return socket, copies, nil
}

// guestWritable makes a work folder in dir that the guest's process can make
// files in. Where that runs as another user, others could too if they knew the
// name; what is there they can neither list nor remove nor replace.
func guestWritable(dir, label string, inst ami.Instance) (*durable.Scratch, error) {
	s, err := durable.NewScratch(dir, label)
	if err != nil {
		return nil, storeError(err, "No work folder can be made.")
	}
	mode := os.ModeSticky | 0o733
	if inst.Connect == libvirt.Session || inst.Connect == qemu.URI {
		mode = 0o700
	}
	if err := os.Chmod(s.Dir(), mode); err != nil {
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
