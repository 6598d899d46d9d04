package region

import (
	"context"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
)

// viewLive opens a view of the disks of a running guest as they are at one instant,
// and says how consistent that is. The guest goes on, and thaws while they are read.
// done ends the view, and so does the end of ctx: a read that the guest does not
// answer ends with the command.
func (r *Region) viewLive(ctx context.Context, inst ami.Instance, require ami.Consistency, backup hypervisor.Backup) (view hypervisor.View, c ami.Consistency, done func(), err error) {
	fail := func(err error) (hypervisor.View, ami.Consistency, func(), error) { return nil, "", nil, err }
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return fail(err)
	}
	snapper, ok := driver.(hypervisor.Snapshotter)
	if !ok {
		return fail(ami.Errorf(ami.CodeUnsupportedOperation, "The driver %s cannot read the disks of a running guest.", driver.Name()).
			WithHint("Stop the instance first."))
	}
	socket, copies, err := r.guestScratch(inst)
	if err != nil {
		return fail(err)
	}
	backup.SocketDir, backup.CopiesDir = socket.Dir(), copies.Dir()
	c, thaw := ami.ConsistencyCrash, func() {}
	if require != ami.ConsistencyCrash { // who is content with that need not wait for the guest
		backup.Quiesce = func(ctx context.Context) error {
			frozen, undo, err := r.freeze(ctx, driver, inst.InstanceID)
			if err != nil {
				return err
			}
			if thaw = undo; frozen {
				c = ami.ConsistencyFrozen
			}
			return checkReached(c, require, inst.InstanceID)
		}
	}
	view, err = snapper.Backup(ctx, inst.InstanceID, backup)
	thawed := make(chan struct{})
	go func() {
		defer close(thawed)
		thaw()
	}()
	over := func() {
		<-thawed
		copies.Close()
		socket.Close()
	}
	if err != nil {
		over()
		return fail(storeError(err, "The disks of %s cannot be read while it runs.", inst.InstanceID))
	}
	stop := context.AfterFunc(ctx, func() { view.Close() })
	if c == ami.ConsistencyCrash && backup.Quiesce != nil {
		r.progress.Note("no guest agent answered: the disks are taken as after a power cut (crash-consistent)")
	}
	return view, c, func() {
		stop()
		if cerr := view.Close(); cerr != nil {
			r.progress.Note("the view of the disks of %s did not end well: %v", inst.InstanceID, cerr)
		}
		over()
	}, nil
}
