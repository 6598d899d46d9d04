package region

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
)

// DeregisterImage retires an image, or puts it into the recycle bin where a rule says
// so. Its instances live on; its snapshots stay unless deleteSnapshots asks for those
// that no other image uses to go. What became of each is in the result, with what was
// really freed: layers that something else needs stay.
func (r *Region) DeregisterImage(ctx context.Context, id ami.ImageID, deleteSnapshots, dry bool) (DeregisterResult, error) {
	if _, err := ami.ParseImageID(string(id)); err != nil {
		return DeregisterResult{}, err
	}
	var image ami.Image
	var layer digest.Digest
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) (err error) {
		if image, err = r.ownImageNow(tx, id); err != nil {
			return err
		}
		if err := r.checkUnprotected(tx, image); err != nil {
			return err
		}
		if dry {
			return dryRun("deregister %s (%s)", id, image.Name)
		}
		layer, err = r.deregister(tx, &image)
		return err
	})
	if err != nil {
		return DeregisterResult{}, storeError(err, "The image %s cannot be deregistered.", id)
	}
	res := DeregisterResult{ImageID: id, Return: true}
	if image.RecycleBin != nil {
		res.RecycleBinExit = image.RecycleBin.ExitTime
	} else {
		res.Freed = r.freeImage(ctx, image, layer)
	}
	if !deleteSnapshots {
		return res, nil
	}
	for _, s := range snapshotsOf(image) {
		done := r.deleteWithImage(ctx, s)
		res.Freed += done.Freed
		res.DeleteSnapshots = append(res.DeleteSnapshots, done)
	}
	return res, nil
}

// deregister takes an image's record, or makes it one that is only remembered. It
// returns the layer that was cached of its bundle and is not needed any more.
func (r *Region) deregister(tx *catalog.Tx, image *ami.Image) (layer digest.Digest, err error) {
	all, err := tx.Instances()
	used := errors.Is(err, catalog.ErrDamaged) // by what cannot be read, perhaps
	if err = r.legible(err); err != nil {
		return "", err
	}
	for _, inst := range all {
		used = used || inst.ImageID == image.ImageID && inst.State.Name != ami.InstanceTerminated
	}
	if layer, err = r.forgetBundle(tx, *image); err != nil {
		return "", err
	}
	// EC2's bin takes what stands on snapshots alone.
	if !image.IsInstanceStore() && (image.State == ami.ImageAvailable || image.State == ami.ImageDisabled) {
		if image.RecycleBin, err = r.retain(tx, RecycleImages, image.Tags); err != nil {
			return "", err
		}
	}
	if image.RecycleBin != nil {
		image.RecycleBin.State = image.State
	}
	if used || image.RecycleBin != nil {
		image.State = ami.ImageDeregistered // a tombstone for its instances
		return layer, tx.PutImage(*image)
	}
	return layer, tx.DeleteImage(image.ImageID)
}

// freeImage removes what a deregistered image had besides snapshots, and says how many
// bytes that freed.
func (r *Region) freeImage(ctx context.Context, image ami.Image, layer digest.Digest) (freed int64) {
	objects := func() (sum int64) {
		for _, d := range objectsOf(image) {
			sum += r.sizeOf(filepath.Join("objects", d.Hex()))
		}
		return sum
	}
	before := objects()
	if err := r.dropObjects(ctx, objectsOf(image)); err != nil {
		r.progress.Note("the UEFI variables of %s could not be removed; kami store gc will: %v", image.ImageID, err)
	}
	freed = before - objects()
	if layer != "" {
		n, err := r.dropLayers(ctx, layer)
		if err != nil {
			r.progress.Note("the cached root of %s could not be removed; kami store gc will: %v", image.ImageID, err)
		}
		freed += n
	}
	return freed
}

// deleteWithImage deletes a snapshot of an image that was deregistered, and says in
// EC2's codes what came of it.
func (r *Region) deleteWithImage(ctx context.Context, id ami.SnapshotID) SnapshotReturnCode {
	res, err := r.deleteSnapshot(ctx, id, false)
	if err == nil {
		return res
	}
	res = SnapshotReturnCode{SnapshotID: id, ReturnCode: "client-error", Reason: err.Error()}
	switch ami.ErrorCode(err) {
	case ami.CodeInvalidSnapshotInUse:
		res.ReturnCode = "skipped"
	case ami.CodeInternalError:
		res.ReturnCode = "internal-error"
	case ami.CodeInvalidSnapshotNotFound:
		if r.isOthers(ctx, id) {
			res.ReturnCode = "missing-permissions"
		}
	}
	return res
}

// isOthers says whether a snapshot is another account's.
func (r *Region) isOthers(ctx context.Context, id ami.SnapshotID) (others bool) {
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		snap, err := tx.Snapshot(id)
		others = snap.OwnerID != r.account
		return err
	})
	return err == nil && others
}
