package region

import (
	"context"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// guestHolds says whether a process has one of an instance's disks open: its
// guest, whatever the hypervisor that was asked says of it. A user's libvirt that
// is asked in another environment than the one that started the guest (from cron,
// say) is another libvirt, and knows nothing of it.
func (r *Region) guestHolds(inst ami.Instance) (bool, error) {
	for _, bd := range inst.BlockDeviceMappings {
		busy, err := r.layers.HeadBusy(bd.Ebs.VolumeID)
		if err != nil || busy {
			return busy, err
		}
	}
	return false, nil
}

// letGo is how long a guest that has just ended may take to close its disks.
const letGo = 3 * time.Second

// checkNotHeld refuses what may only be done while no guest has the disks open.
func (r *Region) checkNotHeld(ctx context.Context, inst ami.Instance, verb string) error {
	for end := time.Now().Add(letGo); ; {
		held, err := r.guestHolds(inst)
		if err != nil || !held {
			return storeError(err, "The disks of %s cannot be looked at.", inst.InstanceID)
		}
		if time.Now().After(end) {
			return ami.Errorf(ami.CodeIncorrectInstanceState, "The instance '%s' cannot be %s: a process has its disks open, of which %s knows nothing.", inst.InstanceID, verb, inst.Connect).
				WithHint("It may run under another libvirt: set XDG_RUNTIME_DIR as it was at its launch, or end the QEMU process with %s in its arguments.", inst.InstanceID)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// noticeOn brings up to date the record of a stopped instance whose start was
// interrupted: its guest may have come to run.
func (r *Region) noticeOn(ctx context.Context, id ami.InstanceID) error {
	lock, err := r.tryLockInstance(id)
	if err != nil || lock == nil {
		return err // its power is another command's business
	}
	keep := true
	defer func() { lock.unlock(keep) }()
	inst, err := r.instanceRecord(ctx, id)
	if err != nil || inst.State.Name != ami.InstanceStopped {
		return err
	}
	off, err := r.isOff(ctx, inst)
	if err != nil {
		return err
	}
	keep = false
	if off {
		return nil
	}
	return r.updateInstance(ctx, id, func(i *ami.Instance) {
		i.State, i.StateReason = ami.StateRecord(ami.InstanceRunning), nil
	})
}
