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
func (r *Region) guestHolds(inst ami.Instance) (bool, error) { return r.held(volumesOf(inst)) }

func volumesOf(inst ami.Instance) (ids []ami.VolumeID) {
	for _, bd := range inst.BlockDeviceMappings {
		ids = append(ids, bd.Ebs.VolumeID)
	}
	return ids
}

// held says whether a process has the head of one of the volumes open.
func (r *Region) held(ids []ami.VolumeID) (bool, error) {
	for _, id := range ids {
		busy, err := r.layers.HeadBusy(id)
		if err != nil || busy {
			return busy, storeError(err, "The disk of %s cannot be looked at.", id)
		}
	}
	return false, nil
}

// letGo is how long a guest that has just ended may take to close its disks.
const letGo = 3 * time.Second

// staysHeld is held for what may just be letting go.
func (r *Region) staysHeld(ctx context.Context, ids ...ami.VolumeID) (bool, error) {
	for end := time.Now().Add(letGo); ; {
		held, err := r.held(ids)
		if err != nil || !held || time.Now().After(end) {
			return held, err
		}
		select {
		case <-ctx.Done():
			return held, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// checkNotHeld refuses what may only be done to an instance while no guest has
// its disks open.
func (r *Region) checkNotHeld(ctx context.Context, inst ami.Instance, verb string) error {
	held, err := r.staysHeld(ctx, volumesOf(inst)...)
	if err != nil || !held {
		return err
	}
	return ami.Errorf(ami.CodeIncorrectInstanceState, "The instance '%s' cannot be %s: a process has its disks open, of which %s knows nothing.", inst.InstanceID, verb, inst.Connect).
		WithHint("It may run under another libvirt: set XDG_RUNTIME_DIR as it was at its launch, or end the QEMU process with %s in its arguments.", inst.InstanceID)
}

// checkAtRest refuses to read a volume's head as that of a disk at rest while a
// process has it open, attached or not.
func (r *Region) checkAtRest(ctx context.Context, id ami.VolumeID) error {
	held, err := r.staysHeld(ctx, id)
	if err != nil || !held {
		return err
	}
	return ami.Errorf(ami.CodeIncorrectInstanceState, "The volume %s is recorded as at rest, and a process has it open.", id).
		WithHint("A guest may run under another libvirt: set XDG_RUNTIME_DIR as it was at its launch, or end the QEMU process with %s in its arguments.", id)
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
