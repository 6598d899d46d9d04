package region

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
)

// What a retention rule covers is not deleted but put into the recycle bin: a record
// that nobody sees, whose layers are kept as any record's are. When its time is over
// the next command deletes it.

// tagInBin is on everything in the bin.
const tagInBin = "aws:recycle-bin:resource-in-bin"

// RecycledResource is an object in the bin.
type RecycledResource struct {
	ResourceID   string    `json:"ResourceId"`
	ResourceType string    `json:"ResourceType"` // one of RecycleTypes
	Name         string    `json:"Name,omitempty"`
	Description  string    `json:"Description,omitempty"`
	EnterTime    time.Time `json:"RecycleBinEnterTime"`
	ExitTime     time.Time `json:"RecycleBinExitTime"`
	Tags         []ami.Tag `json:"Tags"`
}

// retain says until when something of the caller's stays in the bin that is deleted
// now, nil where no rule covers it. The longest rule decides.
func (r *Region) retain(tx *catalog.Tx, kind string, tags []ami.Tag) (*ami.Recycled, error) {
	rules, err := rulesOf(tx, r.account)
	days := 0
	for _, rule := range rules {
		if rule.covers(kind, tags) {
			days = max(days, rule.Retention.Value)
		}
	}
	if err != nil || days == 0 {
		return nil, err
	}
	now, err := r.tick(tx)
	now = now.Truncate(time.Second)
	return &ami.Recycled{EnterTime: now, ExitTime: now.AddDate(0, 0, days)}, err
}

// RecycleBin returns what of the caller's lies in the bin, that first which leaves it
// first.
func (r *Region) RecycleBin(ctx context.Context) (out []RecycledResource, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		images, snaps, err := r.binned(tx)
		in := func(id, kind, name, description string, at ami.Recycled, tags []ami.Tag) {
			tags = append([]ami.Tag{{Key: tagInBin, Value: "true"}}, tags...)
			out = append(out, RecycledResource{id, kind, name, description, at.EnterTime, at.ExitTime, tags})
		}
		for _, i := range images {
			if i.OwnerID == r.account {
				in(string(i.ImageID), RecycleImages, i.Name, i.Description, *i.RecycleBin, i.Tags)
			}
		}
		for _, s := range snaps {
			if s.OwnerID == r.account {
				in(string(s.SnapshotID), RecycleSnapshots, "", s.Description, *s.RecycleBin, s.Tags)
			}
		}
		return err
	})
	slices.SortStableFunc(out, func(a, b RecycledResource) int { return a.ExitTime.Compare(b.ExitTime) })
	return out, storeError(err, "The recycle bin cannot be read.")
}

// binned reads what lies in the bin, of all accounts.
func (r *Region) binned(tx *catalog.Tx) (images []ami.Image, snaps []ami.Snapshot, err error) {
	images, err = tx.DeregisteredImages()
	if err = r.legible(err); err != nil {
		return nil, nil, err
	}
	images = slices.DeleteFunc(images, func(i ami.Image) bool { return i.RecycleBin == nil })
	snaps, err = tx.RecoverableSnapshots()
	snaps = slices.DeleteFunc(snaps, func(s ami.Snapshot) bool { return s.RecycleBin == nil })
	return images, snaps, r.legible(err)
}

// RestoreSnapshot takes a snapshot out of the bin.
func (r *Region) RestoreSnapshot(ctx context.Context, id ami.SnapshotID, dry bool) (snap ami.Snapshot, err error) {
	if _, err := ami.ParseSnapshotID(string(id)); err != nil {
		return snap, err
	}
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if snap, err = tx.Snapshot(id); err != nil || snap.OwnerID != r.account {
			return notFoundOr(err, notFoundSnapshot(id))
		}
		if snap.State != ami.SnapshotRecoverable {
			return notInBin(string(id), string(snap.State))
		}
		if dry {
			return dryRun("restore %s", id)
		}
		snap.State, snap.RecycleBin = ami.SnapshotCompleted, nil
		return tx.PutSnapshot(snap)
	})
	return snap, storeError(err, "The snapshot %s cannot be restored.", id)
}

// RestoreImage takes an image out of the bin, with the permissions that it had; a
// public one is so no more where it could not become so now. Its snapshots have to be
// there.
func (r *Region) RestoreImage(ctx context.Context, id ami.ImageID, dry bool) (image ami.Image, err error) {
	if _, err := ami.ParseImageID(string(id)); err != nil {
		return image, err
	}
	var private error // why it is not public any more
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if image, err = tx.Image(id); err != nil || image.OwnerID != r.account {
			return notFoundOr(err, notFoundImage(id))
		}
		if image.State == ami.ImageDeregistered && image.RecycleBin == nil {
			return unavailableImage(id)
		}
		if image.RecycleBin == nil {
			return notInBin(string(id), string(image.State))
		}
		for _, s := range snapshotsOf(image) {
			if snap, err := tx.Snapshot(s); err == nil && snap.State == ami.SnapshotRecoverable {
				return ami.Errorf(ami.CodeIncorrectState, "The snapshot %s of the image %s is in the recycle bin.", s, id).
					WithHint("Restore it first: kami bin restore %s", s)
			}
		}
		if err := checkMapped(tx, image.BlockDeviceMappings); err != nil {
			return err
		}
		image.State, image.RecycleBin = image.RecycleBin.State, nil
		if image.State == ami.ImageAvailable {
			if err := r.nameFree(tx, image); err != nil {
				return err
			}
		}
		if private, err = r.publishAgain(tx, &image); err != nil {
			return err
		}
		if dry {
			return dryRun("restore %s (%s)", id, image.Name)
		}
		return tx.PutImage(image)
	})
	if err == nil && private != nil {
		r.progress.Note("the image is restored without its permission for everybody: %v", private)
	}
	return image, storeError(err, "The image %s cannot be restored.", id)
}

// publishAgain takes the permission for everybody from an image that may not be public
// by now, and says why.
func (r *Region) publishAgain(tx *catalog.Tx, image *ami.Image) (private, err error) {
	if !image.Public {
		return nil, nil
	}
	err = r.publish(tx, image)
	if code := ami.ErrorCode(err); code != ami.CodeOperationNotPermitted && code != ami.CodeResourceLimitExceeded {
		return nil, err
	}
	everybody := ami.LaunchPermission{Group: ami.GroupAll}
	image.SetLaunchPermissions(slices.DeleteFunc(slices.Clone(image.LaunchPermissions), func(p ami.LaunchPermission) bool { return p == everybody }))
	return err, nil
}

func notInBin(id, state string) error {
	return ami.Errorf(ami.CodeIncorrectState, "%s is %s, not in the recycle bin.", id, state).
		WithHint("kami bin list shows what is there.")
}

// markEvery is how often the latest time is written, where anything is decided by it.
const markEvery = time.Minute

// sweepBin deletes what has been in the bin for as long as it was to be.
func (r *Region) sweepBin(ctx context.Context) error {
	var images []ami.Image
	var snaps []ami.Snapshot
	late := false // the latest time is written down no more
	past := func(tx *catalog.Tx) error {
		var mark time.Time
		if err := tx.Setting("", settingClock, &mark); err != nil {
			return err
		}
		if late = !mark.IsZero() && r.now().Sub(mark) > markEvery; mark.IsZero() { // nothing was ever put there
			return nil
		}
		now, err := r.seen(tx)
		if err != nil {
			return err
		}
		images, snaps, err = r.binned(tx)
		images = slices.DeleteFunc(images, func(i ami.Image) bool { return now.Before(i.RecycleBin.ExitTime) })
		snaps = slices.DeleteFunc(snaps, func(s ami.Snapshot) bool { return now.Before(s.RecycleBin.ExitTime) })
		return err
	}
	if err := r.catalog.View(ctx, past); err != nil || !late && len(images)+len(snaps) == 0 {
		return err
	}
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if err := past(tx); err != nil {
			return err
		}
		for _, i := range images {
			i.RecycleBin = nil // what remains is a tombstone, of which purge knows how long it is needed
			if err := tx.PutImage(i); err != nil {
				return err
			}
		}
		for _, s := range snaps {
			if err := tx.DeleteSnapshot(s.SnapshotID); err != nil {
				return err
			}
		}
		_, err := r.tick(tx)
		return err
	})
	if err != nil {
		return err
	}
	var objects []digest.Digest
	for _, i := range images {
		objects = append(objects, objectsOf(i)...)
	}
	errs := []error{r.dropObjects(ctx, objects)}
	for _, s := range snaps {
		_, err := r.dropLayers(ctx, s.Layer)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w; kami store gc removes it", err)
	}
	return nil
}
