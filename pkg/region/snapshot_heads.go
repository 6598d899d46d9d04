package region

import (
	"context"
	"errors"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// parentOf is the nearest layer that the new layer of v, snapshot id's, can stand
// on, and whether that is the one since which the bitmap in the head knows what
// was written. It is not where the snapshot of that layer was deleted: then the
// bitmap is of no use, for what was written before it would be missed. The layer
// stays until the job of the snapshot is over.
func (r *Region) parentOf(ctx context.Context, id ami.SnapshotID, v ami.Volume) (parent digest.Digest, tracked bool, err error) {
	for v.TrackedLayer != "" {
		held, err := r.holdLayer(ctx, string(id), v.TrackedLayer)
		if errors.Is(err, snapshot.ErrCorrupt) {
			err = nil // what stands on it could not be read either
		}
		if err != nil || held {
			return v.TrackedLayer, held, err
		}
		// Its chain may have been merged since v was read: then it is another
		// one of the same content.
		now, err := r.volumeRecord(ctx, v.VolumeID)
		if err != nil || now.TrackedLayer == v.TrackedLayer {
			return v.Layer, false, err
		}
		v = now
	}
	return "", true, nil
}

// snapshotStopped fills snaps from the heads of volumes that no guest writes to,
// and returns the volumes with their lineage moved on. What a head holds is
// compared with the layer underneath, so no bitmap is needed; the one in it knows
// of everything written since an earlier layer, and so since this one too.
func (r *Region) snapshotStopped(ctx context.Context, vols []ami.Volume, snaps []ami.Snapshot, c ami.Consistency) ([]ami.Snapshot, []ami.Volume, error) {
	out, moved := make([]ami.Snapshot, len(snaps)), make([]ami.Volume, len(vols))
	for i, v := range vols {
		if err := r.checkAtRest(ctx, v.VolumeID); err != nil {
			return nil, nil, err
		}
		head, err := r.layers.OpenHead(v.VolumeID, v.Layer)
		if err != nil {
			return nil, nil, storeError(err, "The volume %s cannot be read.", v.VolumeID)
		}
		parent, tracked, err := r.parentOf(ctx, snaps[i].SnapshotID, v)
		if err == nil {
			out[i], err = r.fill(ctx, snaps[i], head, parent, c)
		}
		head.Close()
		if err != nil {
			return nil, nil, err
		}
		if v.TrackedLayer = out[i].Layer; !tracked {
			v.TrackedBy = ""
		}
		moved[i] = v
	}
	return out, moved, nil
}

// snapshotRebooted shuts the guest down cleanly, fills snaps and starts the
// guest again, also when something in between failed.
func (r *Region) snapshotRebooted(ctx context.Context, inst ami.Instance, vols []ami.Volume, snaps []ami.Snapshot, require ami.Consistency) (_ []ami.Snapshot, _ []ami.Volume, err error) {
	done, err := r.markReboot(ctx, inst.InstanceID)
	if err != nil {
		return nil, nil, err
	}
	defer done()
	// A reboot that was begun comes to its end, also where nobody wants the image
	// any more.
	clean, err := r.powerOff(context.WithoutCancel(ctx), inst, DefaultStopTimeout, false)
	if err != nil {
		return nil, nil, err
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
	if err := checkReached(c, require, inst.InstanceID); err != nil {
		return nil, nil, err
	}
	return r.snapshotStopped(ctx, vols, snaps, c)
}

// snapshotLive fills snaps from a point-in-time view while the guest goes on,
// and returns the volumes whose lineage moved on.
func (r *Region) snapshotLive(ctx context.Context, inst ami.Instance, vols []ami.Volume, snaps []ami.Snapshot, require ami.Consistency) ([]ami.Snapshot, []ami.Volume, error) {
	backup := hypervisor.Backup{Next: hypervisor.BitmapPrefix + string(snaps[0].SnapshotID)}
	parents, encs := make([]digest.Digest, len(vols)), make([]*qcow2.Encryption, len(vols))
	for i, v := range vols {
		disk := hypervisor.BackupDisk{Path: r.layers.HeadPath(v.VolumeID)}
		parent, tracked, err := r.parentOf(ctx, snaps[i].SnapshotID, v)
		if err != nil {
			return nil, nil, storeError(err, "What the volume %s stands on cannot be told.", v.VolumeID)
		}
		if parents[i] = parent; tracked {
			disk.Bitmap = v.TrackedBy
		}
		if encs[i], err = r.layers.HeadEncryption(v.VolumeID); err != nil {
			return nil, nil, storeError(err, "The volume %s cannot be read.", v.VolumeID)
		}
		if disk.Key, err = r.copiesKey(encs[i]); err != nil {
			return nil, nil, err
		}
		backup.Disks = append(backup.Disks, disk)
	}
	view, c, done, err := r.viewLive(ctx, inst, require, backup)
	if err != nil {
		return nil, nil, err
	}
	defer done()
	out := make([]ami.Snapshot, len(snaps))
	moved := make([]ami.Volume, len(vols))
	unread := len(vols)
	finish := func() {
		if unread--; unread == 0 {
			go view.Close() // waited for below
		}
	}
	for i, v := range vols {
		dv, err := view.Disk(backup.Disks[i].Path)
		if err != nil {
			return nil, nil, storeError(err, "The volume %s cannot be read.", v.VolumeID)
		}
		if !dv.Incremental() {
			r.progress.Note("%s has no record of its changed blocks: the whole disk is compared", v.VolumeID)
		}
		out[i], err = r.fill(ctx, snaps[i], viewSource{dv, finish, encs[i]}, parents[i], c)
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err() // not that the view was closed for it
			}
			return nil, nil, err
		}
		v.TrackedBy, v.TrackedLayer = backup.Next, out[i].Layer
		moved[i] = v
	}
	return out, moved, nil
}

// viewSource reads a layer from a hypervisor's view of a disk.
type viewSource struct {
	hypervisor.DiskView
	finish func()
	enc    *qcow2.Encryption
}

// Encryption is that of the volume's head.
func (s viewSource) Encryption() *qcow2.Encryption { return s.enc }

// Finish lets the view end while the last layer is laid out.
func (s viewSource) Finish() { s.finish() }

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

// Flat is the view without regard to what has changed, for a layer that stands
// on nothing.
func (s viewSource) Flat() qcow2.Source { return flatView{viewSource{s.Whole(), s.finish, s.enc}} }

type flatView struct{ viewSource }

func (s flatView) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state qcow2.ExtentState) error) error {
	return s.DiskView.Extents(ctx, off, length, func(off, length int64, _, zero bool) error {
		if zero {
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
	if err := checkRequire(in.Require); err != nil {
		return ami.Snapshot{}, err
	}
	if in.DryRun {
		return ami.Snapshot{}, dryRun("create a snapshot of %s", v.VolumeID)
	}
	v, unlock, err := r.lockVolume(ctx, in.VolumeID)
	if err != nil {
		return ami.Snapshot{}, err
	}
	defer unlock()
	snap := r.newSnapshot(v.VolumeID, in.Description, v.SizeBytes, in.Tags)
	snap.ProductCodes, snap.UsageOperation = v.ProductCodes, v.UsageOperation
	j, err := r.begin(ctx, func(tx *catalog.Tx) error { return r.putSnapshots(tx, snap) }, string(snap.SnapshotID))
	if err != nil {
		return ami.Snapshot{}, storeError(err, "The snapshot cannot be recorded.")
	}
	defer j.close(ctx)
	var tracked []ami.Volume
	snaps := []ami.Snapshot{snap}
	if len(v.Attachments) == 0 {
		snaps, tracked, err = r.snapshotStopped(ctx, []ami.Volume{v}, snaps, ami.ConsistencyStopped)
	} else { // nobody starts or stops its guest meanwhile, or reads the guest's disks
		err = r.whileLocked(ctx, v.Attachments[0].InstanceID, func(now ami.Instance) error {
			if now.State.Name == ami.InstanceStopped {
				snaps, tracked, err = r.snapshotStopped(ctx, []ami.Volume{v}, snaps, ami.ConsistencyStopped)
			} else {
				snaps, tracked, err = r.snapshotLive(ctx, now, []ami.Volume{v}, snaps, in.Require)
			}
			return err
		})
	}
	if err != nil {
		return ami.Snapshot{}, err
	}
	err = j.commit(ctx, func(tx *catalog.Tx) error {
		if err := putTracked(tx, tracked, snaps); err != nil {
			return err
		}
		return finishSnapshot(tx, &snaps[0])
	})
	return snaps[0], storeError(err, "The snapshot %s cannot be recorded.", snap.SnapshotID)
}

// putTracked records what the heads of volumes are tracked by now, and their size
// where their snapshot shows that the record lags behind; it leaves the rest as
// others may have written it meanwhile.
func putTracked(tx *catalog.Tx, tracked []ami.Volume, snaps []ami.Snapshot) error {
	for i, t := range tracked {
		v, err := tx.Volume(t.VolumeID)
		if err != nil {
			return err
		}
		v.TrackedBy, v.TrackedLayer = t.TrackedBy, t.TrackedLayer
		grown(&v, snaps[i].SizeBytes)
		if err := tx.PutVolume(v); err != nil {
			return err
		}
	}
	return nil
}
