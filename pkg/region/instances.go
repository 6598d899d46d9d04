package region

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor"
)

// tombstone is how long a terminated instance stays visible.
const tombstone = time.Hour

// DescribeInstances returns the caller's instances, oldest first, with what
// they do now. A guest that powered itself off is noticed here.
func (r *Region) DescribeInstances(ctx context.Context, in DescribeInput) ([]ami.Instance, error) {
	for _, id := range in.IDs {
		if _, err := ami.ParseInstanceID(id); err != nil {
			return nil, err
		}
	}
	if err := checkFilters(in.Filters, ami.MatchInstance); err != nil {
		return nil, err
	}
	var all []ami.Instance
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		all, err = tx.Instances()
		return r.legible(err)
	})
	if err != nil {
		return nil, storeError(err, "The instances cannot be read.")
	}
	all = slices.DeleteFunc(all, func(i ami.Instance) bool {
		return i.OwnerID != r.account || isPast(i)
	})
	if len(in.IDs) > 0 { // ask only for those that are wanted
		all = slices.DeleteFunc(all, func(i ami.Instance) bool { return !slices.Contains(in.IDs, string(i.InstanceID)) })
	}
	all = r.observe(ctx, all)
	slices.SortStableFunc(all, func(a, b ami.Instance) int { return a.LaunchTime.Compare(b.LaunchTime) })
	return find(in, all, func(i ami.Instance) string { return string(i.InstanceID) }, ami.MatchInstance,
		func(id string) error { return notFoundInstance(ami.InstanceID(id)) })
}

// DescribeInstancesPage is DescribeInstances a page at a time.
func (r *Region) DescribeInstancesPage(ctx context.Context, in DescribeInput) (Page[ami.Instance], error) {
	all, err := r.DescribeInstances(ctx, in)
	return cut(r, in, "instances", all, err, func(i ami.Instance) string { return string(i.InstanceID) },
		func(i ami.Instance) time.Time { return i.LaunchTime })
}

// instance returns one instance of the caller with what it does now.
func (r *Region) instance(ctx context.Context, id ami.InstanceID) (ami.Instance, error) {
	all, err := r.DescribeInstances(ctx, DescribeInput{IDs: []string{string(id)}})
	if err != nil {
		return ami.Instance{}, err
	}
	return all[0], nil
}

// instances returns several instances, or the first error: all or none.
func (r *Region) instances(ctx context.Context, ids []ami.InstanceID) ([]ami.Instance, error) {
	if len(ids) == 0 {
		return nil, ami.Errorf(ami.CodeMissingParameter, "No instance was given.")
	}
	text := make([]string, len(ids))
	for i, id := range ids {
		text[i] = string(id)
	}
	return r.DescribeInstances(ctx, DescribeInput{IDs: text})
}

// observe asks each hypervisor once what its guests do and brings the records up
// to date. An unreachable hypervisor spoils only its own instances' states.
func (r *Region) observe(ctx context.Context, all []ami.Instance) []ami.Instance {
	states := map[string]map[ami.InstanceID]hypervisor.State{}
	failed := map[string]error{}
	for i, inst := range all {
		if inst.State.Name != ami.InstanceRunning && inst.State.Name != ami.InstanceStopping {
			continue
		}
		if _, asked := states[inst.Connect]; !asked {
			driver, err := r.driver(ctx, inst.Connect)
			if err == nil {
				states[inst.Connect], err = driver.States(ctx)
			}
			if err != nil {
				states[inst.Connect], failed[inst.Connect] = nil, err
				r.progress.Note("what guests do at %s is not known, and what is shown is of before: %s", inst.Connect, firstLine(err))
			}
		}
		if err := failed[inst.Connect]; err != nil {
			all[i].StateReason = &ami.StateReason{
				Code: "Server.InternalError", Message: "Last known state; the hypervisor does not answer: " + firstLine(err),
			}
			continue
		}
		switch state := states[inst.Connect][inst.InstanceID]; {
		case state == hypervisor.StateRunning:
			all[i].PrivateIPAddress = r.address(ctx, inst)
			r.paused.Delete(inst.InstanceID)
		case state.On():
			all[i].StateReason = r.notePaused(inst.InstanceID, state)
		default:
			all[i] = r.noticeOff(ctx, inst)
		}
	}
	return all
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// noticeOff brings up to date the record of a guest that is off without having
// been stopped by a command: it shut itself down, or died with its host.
func (r *Region) noticeOff(ctx context.Context, inst ami.Instance) ami.Instance {
	lock, err := r.tryLockInstance(inst.InstanceID)
	if err != nil || lock == nil {
		return r.recorded(ctx, inst) // its power is another command's business now
	}
	keep := false
	defer func() { lock.unlock(keep) }()
	// What was seen before the lock may be of the past: another command may
	// have stopped the guest since, or stopped it and started it again.
	if inst = r.recorded(ctx, inst); inst.State.Name != ami.InstanceRunning {
		return inst
	}
	if off, err := r.isOff(ctx, inst); err != nil || !off {
		keep = lock.interrupted
		return inst
	}
	if held, err := r.guestHolds(inst); err != nil || held {
		keep = lock.interrupted
		inst.StateReason = &ami.StateReason{
			Code: "Server.InternalError", Message: "Last known state: a process has its disks open that " + inst.Connect + " knows nothing of",
		}
		return inst
	}
	inst.StateReason = &ami.StateReason{
		Code: "Client.InstanceInitiatedShutdown", Message: "Client.InstanceInitiatedShutdown: Instance initiated shutdown",
	}
	if lock.interrupted { // not of its own will: nothing of it may be lost
		inst.StateReason = &ami.StateReason{
			Code: "Server.InternalError", Message: "Server.InternalError: A command that was changing its power was interrupted",
		}
	} else if diedWithHost(inst) {
		inst.StateReason = &ami.StateReason{
			Code: "Server.InternalError", Message: "Server.InternalError: Its host was switched off or restarted",
		}
	} else if r.hasCrashed(ctx, inst) {
		inst.StateReason = &ami.StateReason{
			Code: "Server.InternalError", Message: "Server.InternalError: Its process crashed or was ended from outside",
		}
	} else if inst.ShutdownBehavior == ami.ShutdownTerminate {
		if err := r.terminate(ctx, inst, true); err != nil {
			r.progress.Note("%s shut itself down and cannot be terminated: %v", inst.InstanceID, err)
			return inst
		}
		return r.recorded(ctx, inst)
	}
	if err := r.putStopped(ctx, inst.InstanceID, inst.StateReason); err != nil {
		r.progress.Note("%v", err)
	}
	inst.State = ami.StateRecord(ami.InstanceStopped)
	return inst
}

// recorded is inst as its record has it now, or inst where that cannot be read.
func (r *Region) recorded(ctx context.Context, inst ami.Instance) ami.Instance {
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		fresh, err := tx.Instance(inst.InstanceID)
		if err == nil {
			inst = fresh
		}
		return err
	})
	if err != nil {
		r.progress.Note("the record of %s cannot be read: %v", inst.InstanceID, err)
	}
	return inst
}

func (r *Region) isOff(ctx context.Context, inst ami.Instance) (bool, error) {
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return false, err
	}
	state, err := driver.State(ctx, inst.InstanceID)
	return !state.On(), err
}

// StartInstances starts stopped instances and lets paused guests go on. One that
// runs already is no error.
func (r *Region) StartInstances(ctx context.Context, ids []ami.InstanceID, dry bool) ([]ami.Instance, error) {
	all, err := r.instances(ctx, ids)
	if err != nil {
		return nil, err
	}
	for _, inst := range all {
		if s := inst.State.Name; s != ami.InstanceStopped && s != ami.InstanceRunning {
			return nil, incorrectState(inst, "started", "stopped")
		}
		if err := r.checkStarts(ctx, inst); err != nil {
			return nil, err
		}
		if !hasDevice(inst, inst.RootDeviceName) {
			return nil, ami.Errorf(ami.CodeIncorrectInstanceState, "The instance '%s' does not have a volume attached at root (%s).", inst.InstanceID, inst.RootDeviceName)
		}
	}
	if dry {
		return nil, dryRun("start %s", joinIDs(all))
	}
	for _, inst := range all {
		if err := r.turnOn(ctx, inst); err != nil {
			return nil, err
		}
	}
	return r.instances(ctx, ids)
}

// StopInstances shuts instances down cleanly, by force after a limit.
func (r *Region) StopInstances(ctx context.Context, in StopInput) ([]ami.Instance, error) {
	all, err := r.instances(ctx, in.InstanceIDs)
	if err != nil {
		return nil, err
	}
	for _, inst := range all {
		if s := inst.State.Name; s != ami.InstanceStopped && s != ami.InstanceRunning {
			return nil, incorrectState(inst, "stopped", "running")
		}
		if err := checkStops(inst); err != nil {
			return nil, err
		}
	}
	if in.DryRun {
		return nil, dryRun("stop %s", joinIDs(all))
	}
	if in.Timeout <= 0 {
		in.Timeout = DefaultStopTimeout
	}
	for _, inst := range all {
		if inst.State.Name == ami.InstanceStopped {
			continue
		}
		err := r.whileLocked(ctx, inst.InstanceID, func(now ami.Instance) error {
			if now.State.Name != ami.InstanceRunning { // another command was quicker
				return nil
			}
			if _, err := r.powerOff(ctx, now, in.Timeout, in.Force); err != nil {
				return err
			}
			return r.putStopped(ctx, now.InstanceID, userShutdown())
		})
		if err != nil {
			return nil, err
		}
	}
	return r.instances(ctx, in.InstanceIDs)
}

// RebootInstances asks running guests to reboot cleanly.
func (r *Region) RebootInstances(ctx context.Context, ids []ami.InstanceID, dry bool) error {
	all, err := r.instances(ctx, ids)
	if err != nil {
		return err
	}
	for _, inst := range all {
		if inst.State.Name != ami.InstanceRunning {
			return incorrectState(inst, "rebooted", "running")
		}
	}
	if dry {
		return dryRun("reboot %s", joinIDs(all))
	}
	for _, inst := range all {
		err := r.whileLocked(ctx, inst.InstanceID, func(now ami.Instance) error { return r.rebootOne(ctx, now) })
		if err != nil {
			return err
		}
	}
	return nil
}

// TerminateInstances ends instances for good. Terminating twice is no error.
func (r *Region) TerminateInstances(ctx context.Context, ids []ami.InstanceID, dry bool) ([]ami.Instance, error) {
	all, err := r.instances(ctx, ids)
	if err != nil {
		return nil, err
	}
	for _, inst := range all {
		if inst.DisableAPITermination {
			return nil, ami.Errorf(ami.CodeOperationNotPermitted, "The instance '%s' may not be terminated. Modify its 'disableApiTermination' instance attribute and try again.", inst.InstanceID)
		}
	}
	if dry {
		return nil, dryRun("terminate %s", joinIDs(all))
	}
	for _, inst := range all {
		if inst.State.Name == ami.InstanceTerminated {
			continue
		}
		err := r.whileLocked(ctx, inst.InstanceID, func(now ami.Instance) error {
			switch now.State.Name {
			case ami.InstanceTerminated: // another command was quicker
				return nil
			case ami.InstancePending:
				return incorrectState(now, "terminated", "running or stopped: it is just being launched")
			}
			now.StateReason = nil // of what it is, and not of its end
			return r.terminate(ctx, now, false)
		})
		if err != nil {
			return nil, err
		}
	}
	return r.instances(ctx, ids)
}

// terminateLimit is how long a guest may take to shut down before it ends.
const terminateLimit = 20 * time.Second

// terminate ends the guest, deletes the volumes that go with it and detaches the
// others. The record stays a while as a tombstone.
func (r *Region) terminate(ctx context.Context, inst ami.Instance, force bool) error {
	if inst.State.Name == ami.InstanceRunning {
		// Nothing that goes with the instance needs a clean shutdown; a volume
		// that outlives it does.
		keeps := slices.ContainsFunc(inst.BlockDeviceMappings, func(bd ami.InstanceBlockDevice) bool { return !bd.Ebs.DeleteOnTermination })
		if _, err := r.powerOff(ctx, inst, terminateLimit, force || !keeps); err != nil {
			return err
		}
	}
	if held, err := r.guestHolds(inst); err == nil && held { // also one whose record says stopped
		if driver, derr := r.driver(ctx, inst.Connect); derr == nil {
			if err := driver.Destroy(ctx, inst.InstanceID); err != nil {
				return storeError(err, "The guest of %s cannot be stopped.", inst.InstanceID)
			}
		}
	}
	if err := r.letGo(ctx, inst); err != nil {
		return err
	}
	var drop []ami.VolumeID
	reason := userShutdown()
	if inst.State.Name == ami.InstanceRunning && inst.StateReason != nil {
		reason = inst.StateReason
	}
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		drop = nil
		inst, err := tx.Instance(inst.InstanceID) // with what others wrote meanwhile
		if err != nil {
			return err
		}
		inst.State, inst.Terminated = ami.StateRecord(ami.InstanceTerminated), time.Now().UTC()
		inst.StateReason, inst.BlockDeviceMappings = reason, nil
		vols, err := tx.VolumesOf(inst.InstanceID)
		if err != nil {
			return err
		}
		for _, v := range vols {
			if len(v.Attachments) > 0 && !v.Attachments[0].DeleteOnTermination {
				v.Attachments, v.State = nil, ami.VolumeAvailable
				if err := tx.PutVolume(v); err != nil {
					return err
				}
				continue
			}
			if err := tx.DeleteVolume(v.VolumeID); err != nil {
				return err
			}
			drop = append(drop, v.VolumeID)
		}
		return tx.PutInstance(inst)
	})
	if err != nil {
		return storeError(err, "The instance %s cannot be recorded.", inst.InstanceID)
	}
	errs := []error{removeAll(r.instanceDir(inst.InstanceID)), r.removeAgentSocket(inst)}
	errs = append(errs, r.removeFiles(context.WithoutCancel(ctx), "", drop...))
	return storeError(errors.Join(errs...), "What %s leaves behind cannot be removed.", inst.InstanceID)
}

func incorrectState(inst ami.Instance, verb, want string) error {
	return ami.Errorf(ami.CodeIncorrectInstanceState, "The instance '%s' is not in a state from which it can be %s.", inst.InstanceID, verb).
		WithHint("It is %s; it has to be %s.", inst.State.Name, want)
}

func joinIDs(all []ami.Instance) string {
	ids := make([]string, len(all))
	for i, inst := range all {
		ids[i] = string(inst.InstanceID)
	}
	return strings.Join(ids, ", ")
}
