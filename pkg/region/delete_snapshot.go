package region

import (
	"context"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// DeleteSnapshot deletes a snapshot, and its layer where nothing else needs it, or
// puts it into the recycle bin where a rule says so.
func (r *Region) DeleteSnapshot(ctx context.Context, id ami.SnapshotID, dry bool) error {
	_, err := r.deleteSnapshot(ctx, id, dry)
	return err
}

// deleteSnapshot is DeleteSnapshot, and says what it freed.
func (r *Region) deleteSnapshot(ctx context.Context, id ami.SnapshotID, dry bool) (SnapshotReturnCode, error) {
	res := SnapshotReturnCode{SnapshotID: id, ReturnCode: "success"}
	snap, err := r.ownSnapshot(ctx, id)
	if err != nil {
		return res, err
	}
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		users, err := tx.ImagesUsingSnapshot(id)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return ami.Errorf(ami.CodeInvalidSnapshotInUse, "The snapshot %s is currently in use by %s", id, users[0]).
				WithHint("Deregister that image first; kami image deregister --delete-snapshots does both.")
		}
		if snap, err = tx.Snapshot(id); err != nil || snap.State == ami.SnapshotRecoverable {
			return notFoundOr(err, notFoundSnapshot(id))
		}
		if err := r.checkUnlocked(tx, snap); err != nil {
			return err
		}
		if dry {
			return dryRun("delete %s", id)
		}
		if snap.State == ami.SnapshotCompleted {
			if snap.RecycleBin, err = r.retain(tx, RecycleSnapshots, snap.Tags); err != nil {
				return err
			}
			if snap.RecycleBin != nil {
				snap.State, snap.Lock = ami.SnapshotRecoverable, nil
				return tx.PutSnapshot(snap)
			}
		}
		// Whether there is a draft now says nothing: one may just be made. That of
		// a snapshot which is not pending any more is noted as gone already.
		if snap.State == ami.SnapshotPending {
			if err := putGoneDraft(tx, id); err != nil {
				return err
			}
		}
		return tx.DeleteSnapshot(id)
	})
	if err != nil {
		return res, storeError(err, "The snapshot %s cannot be deleted.", id)
	}
	if snap.RecycleBin != nil {
		res.RecycleBinExit = snap.RecycleBin.ExitTime
		return res, nil
	}
	if snap.State == ami.SnapshotPending {
		r.removeDraft(ctx, id, "")
	}
	if res.Freed, err = r.dropLayers(ctx, snap.Layer); err != nil {
		r.progress.Note("the layer of %s could not be removed; kami store gc will: %v", id, err)
	}
	return res, nil
}

// checkUnlocked refuses to delete a snapshot that is locked.
func (r *Region) checkUnlocked(tx *catalog.Tx, snap ami.Snapshot) error {
	if snap.Lock == nil {
		return nil
	}
	now, err := r.seen(tx)
	if err == nil && snap.Locked(now) {
		return ami.Errorf(ami.CodeOperationNotPermitted, "The snapshot %s is locked (%s) until %s.", snap.SnapshotID, snap.Lock.State(now), snap.Lock.ExpiresOn.Format(time.RFC3339)).
			WithHint("kami snapshot unlock %s takes a lock off that can be taken off.", snap.SnapshotID)
	}
	return err
}
