package region

import (
	"context"
	"errors"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/qcow2"
)

// parentOf is the nearest layer that a new layer of v can stand on. A cluster
// that the head does not hold reads the same through both candidates.
func (r *Region) parentOf(v ami.Volume) digest.Digest {
	if v.TrackedLayer != "" {
		if _, err := r.layers.Layer(v.TrackedLayer); err == nil {
			return v.TrackedLayer
		}
	}
	return v.Layer
}

// snapshotStopped fills snaps from the heads of volumes that no guest writes to.
func (r *Region) snapshotStopped(ctx context.Context, vols []ami.Volume, snaps []ami.Snapshot, c ami.Consistency) ([]ami.Snapshot, error) {
	out := make([]ami.Snapshot, len(snaps))
	for i, v := range vols {
		head, err := r.layers.OpenHead(v.VolumeID, v.Layer)
		if err != nil {
			return nil, storeError(err, "The volume %s cannot be read.", v.VolumeID)
		}
		out[i], err = r.fill(ctx, snaps[i], head, r.parentOf(v), c)
		head.Close()
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// snapshotRebooted shuts the guest down cleanly, fills snaps and starts the
// guest again, also when something in between failed.
func (r *Region) snapshotRebooted(ctx context.Context, inst ami.Instance, vols []ami.Volume, snaps []ami.Snapshot) (_ []ami.Snapshot, err error) {
	clean, err := r.powerOff(ctx, inst, DefaultStopTimeout, false)
	if err != nil {
		return nil, err
	}
	defer func() {
		if serr := r.startAgain(ctx, inst); serr != nil {
			err = errors.Join(err, serr)
		}
	}()
	c := ami.ConsistencyRebooted
	if !clean {
		c = ami.ConsistencyCrash
	}
	return r.snapshotStopped(ctx, vols, snaps, c)
}

// freezeLimit bounds how long the guest agent may take to freeze.
const freezeLimit = 5 * time.Second

// snapshotLive fills snaps from a point-in-time view while the guest goes on,
// and returns the volumes whose lineage moved on.
func (r *Region) snapshotLive(ctx context.Context, inst ami.Instance, vols []ami.Volume, snaps []ami.Snapshot) ([]ami.Snapshot, []ami.Volume, error) {
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return nil, nil, err
	}
	snapper, ok := driver.(hypervisor.Snapshotter)
	if !ok {
		return nil, nil, ami.Errorf(ami.CodeUnsupportedOperation, "The driver %s cannot snapshot a running guest.", driver.Name())
	}
	scratch, err := r.guestScratch(inst.InstanceID)
	if err != nil {
		return nil, nil, err
	}
	defer scratch.Close()
	backup := hypervisor.Backup{Next: hypervisor.BitmapPrefix + string(snaps[0].SnapshotID), Dir: scratch.Dir()}
	for _, v := range vols {
		backup.Disks = append(backup.Disks, hypervisor.BackupDisk{Path: r.layers.HeadPath(v.VolumeID), Bitmap: v.TrackedBy})
	}
	c := ami.ConsistencyCrash
	freezer, canFreeze := driver.(hypervisor.Freezer)
	if canFreeze {
		if n, ferr := freezer.Freeze(ctx, inst.InstanceID, freezeLimit); ferr == nil && n > 0 {
			c = ami.ConsistencyFrozen
		}
	}
	view, err := snapper.Backup(ctx, inst.InstanceID, backup)
	if canFreeze {
		if terr := freezer.Thaw(context.WithoutCancel(ctx), inst.InstanceID); terr != nil && c == ami.ConsistencyFrozen {
			r.progress.Note("the guest's file systems could not be thawed: %v", terr)
		}
	}
	if err != nil {
		return nil, nil, storeError(err, "The disks of %s cannot be read while it runs.", inst.InstanceID)
	}
	defer view.Close()
	if c == ami.ConsistencyCrash {
		r.progress.Note("no guest agent answered: the disks are taken as after a power cut (crash-consistent)")
	}
	out := make([]ami.Snapshot, len(snaps))
	moved := make([]ami.Volume, len(vols))
	for i, v := range vols {
		dv, err := view.Disk(backup.Disks[i].Path)
		if err != nil {
			return nil, nil, storeError(err, "The volume %s cannot be read.", v.VolumeID)
		}
		parent := v.Layer
		if dv.Incremental() {
			parent = r.parentOf(v)
		} else if v.TrackedBy != "" {
			r.progress.Note("%s has lost its record of changed blocks: the whole disk is compared", v.VolumeID)
		}
		if out[i], err = r.fill(ctx, snaps[i], viewSource{dv}, parent, c); err != nil {
			return nil, nil, err
		}
		v.TrackedBy, v.TrackedLayer = backup.Next, out[i].Layer
		moved[i] = v
	}
	return out, moved, nil
}

// viewSource reads a layer from a hypervisor's view of a disk.
type viewSource struct{ hypervisor.DiskView }

// Extents calls fn with what may differ from the parent.
func (s viewSource) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state qcow2.ExtentState) error) error {
	return s.DiskView.Extents(ctx, off, length, func(off, length int64, dirty, zero bool) error {
		switch {
		case !dirty:
			return fn(off, length, qcow2.Unallocated)
		case zero:
			return fn(off, length, qcow2.Zero)
		}
		return fn(off, length, qcow2.Data)
	})
}

// CreateSnapshot makes a snapshot of one volume, attached or not.
func (r *Region) CreateSnapshot(ctx context.Context, in CreateSnapshotInput) (ami.Snapshot, error) {
	v, err := r.volume(ctx, in.VolumeID)
	if err != nil {
		return ami.Snapshot{}, err
	}
	if err := ami.ValidateTags(in.Tags); err != nil {
		return ami.Snapshot{}, err
	}
	if in.DryRun {
		return ami.Snapshot{}, dryRun("create a snapshot of %s", v.VolumeID)
	}
	unlock, err := r.lockVolumes(ctx, []ami.Volume{v})
	if err != nil {
		return ami.Snapshot{}, err
	}
	defer unlock()
	if v, err = r.volume(ctx, in.VolumeID); err != nil {
		return ami.Snapshot{}, err
	}
	snap := r.newSnapshot(v.VolumeID, in.Description, v.SizeBytes, in.Tags)
	j, err := r.begin(ctx, func(tx *catalog.Tx) error { return tx.PutSnapshot(snap) }, string(snap.SnapshotID))
	if err != nil {
		return ami.Snapshot{}, storeError(err, "The snapshot cannot be recorded.")
	}
	defer j.close(ctx)
	var tracked []ami.Volume
	snaps := []ami.Snapshot{snap}
	if len(v.Attachments) == 0 {
		snaps, err = r.snapshotStopped(ctx, []ami.Volume{v}, snaps, ami.ConsistencyStopped)
	} else { // nobody starts or stops its guest meanwhile, or reads the guest's disks
		err = r.whileLocked(ctx, v.Attachments[0].InstanceID, func(now ami.Instance) error {
			if now.State.Name == ami.InstanceStopped {
				snaps, err = r.snapshotStopped(ctx, []ami.Volume{v}, snaps, ami.ConsistencyStopped)
			} else {
				snaps, tracked, err = r.snapshotLive(ctx, now, []ami.Volume{v}, snaps)
			}
			return err
		})
	}
	if err != nil {
		return ami.Snapshot{}, err
	}
	err = j.commit(ctx, func(tx *catalog.Tx) error {
		if err := putTracked(tx, tracked); err != nil {
			return err
		}
		return tx.PutSnapshot(snaps[0])
	})
	return snaps[0], storeError(err, "The snapshot %s cannot be recorded.", snap.SnapshotID)
}

// putTracked records what the heads of volumes are tracked by now, and leaves
// the rest as others may have written it meanwhile.
func putTracked(tx *catalog.Tx, tracked []ami.Volume) error {
	for _, t := range tracked {
		v, err := tx.Volume(t.VolumeID)
		if err != nil {
			return err
		}
		v.TrackedBy, v.TrackedLayer = t.TrackedBy, t.TrackedLayer
		if err := tx.PutVolume(v); err != nil {
			return err
		}
	}
	return nil
}
