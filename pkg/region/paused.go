package region

import (
	"context"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
)

// goesOn is how long a guest that was resumed is watched: what it wrote in vain
// is tried again at once, and where there is still no room it is paused again.
const goesOn = time.Second

// notePaused says, once a pause, that a guest stands still that nobody has
// stopped, and returns the reason for its record, in which it is running.
func (r *Region) notePaused(id ami.InstanceID, state hypervisor.State) *ami.StateReason {
	why := "The guest is paused: kami instance start lets it go on"
	if state == hypervisor.StateIOError {
		why = "The guest is paused by an I/O error on its disk: free space, then kami instance start"
	}
	if _, told := r.paused.LoadOrStore(id, true); !told {
		r.progress.Note("%s: %s", id, why)
	}
	return &ami.StateReason{Code: "Server.InternalError", Message: "Server.InternalError: " + why}
}

// isPaused says whether the guest of a running instance stands still.
func (r *Region) isPaused(ctx context.Context, inst ami.Instance) (bool, error) {
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return false, err
	}
	state, err := driver.State(ctx, inst.InstanceID)
	return err == nil && state.On() && state != hypervisor.StateRunning,
		storeError(err, "What the guest of %s does is not known.", inst.InstanceID)
}

// resume lets the guest of a running instance go on, if it is paused, and returns
// when it has done so for a while.
func (r *Region) resume(ctx context.Context, inst ami.Instance) error {
	paused, err := r.isPaused(ctx, inst)
	if err != nil || !paused {
		return err
	}
	driver, err := r.driver(ctx, inst.Connect)
	if err == nil {
		err = letGoOn(ctx, driver, inst.InstanceID)
	}
	if err != nil {
		return storeError(err, "The guest of %s is paused and cannot go on.", inst.InstanceID)
	}
	for end := time.Now().Add(goesOn); time.Now().Before(end); {
		if paused, err = r.isPaused(ctx, inst); err != nil {
			return err
		}
		if paused {
			return ami.Errorf(ami.CodeResourceLimitExceeded, "The guest of %s went on and is paused by an I/O error on its disk again: there is no room for what it writes.", inst.InstanceID).
				WithHint("Free space where %s is, then kami instance start %s.", r.path("volumes"), inst.InstanceID)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// letGoOn resumes a guest.
func letGoOn(ctx context.Context, driver hypervisor.Driver, id ami.InstanceID) error {
	resumer, ok := driver.(hypervisor.Resumer)
	if !ok {
		return ami.Errorf(ami.CodeUnsupportedOperation, "The guest of %s is paused, and the driver %s cannot let it go on.", id, driver.Name())
	}
	return resumer.Resume(ctx, id)
}
