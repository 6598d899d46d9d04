package region

import (
	"context"
	"errors"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// RegisterImage makes an image over snapshots that exist.
func (r *Region) RegisterImage(ctx context.Context, in RegisterImageInput) (ami.Image, error) {
	if err := r.checkNewName(ctx, in.Name, in.Description, in.Tags); err != nil {
		return ami.Image{}, err
	}
	image := r.newImage(in.Name, in.Description, in.Tags)
	if in.RootDeviceName != "" {
		image.RootDeviceName = in.RootDeviceName
	}
	if in.Architecture != "" {
		image.Architecture = in.Architecture
	}
	image.BootMode, image.BlockDeviceMappings, image.State = in.BootMode, slices.Clone(in.BlockDeviceMappings), ami.ImageAvailable
	if err := checkBoot(in.BootMode, image.Architecture); err != nil {
		return ami.Image{}, err
	}
	if err := ami.ValidateMapping(in.BlockDeviceMappings); err != nil {
		return ami.Image{}, err
	}
	root := false
	for i, m := range image.BlockDeviceMappings {
		if m.Ebs == nil || m.Ebs.SnapshotID == "" {
			continue
		}
		if m.Ebs.Encrypted != nil || m.Ebs.KmsKeyID != "" {
			return ami.Image{}, ami.Errorf(ami.CodeInvalidBlockDeviceMapping, "The encryption of %s is its snapshot's, and cannot be set when an image is registered.", m.DeviceName).
				WithHint("Leave Encrypted away; kami snapshot copy --encrypted makes a snapshot that is.")
		}
		isRoot := sameDevice(m.DeviceName, image.RootDeviceName)
		root = root || isRoot
		snap, err := r.ownSnapshot(ctx, m.Ebs.SnapshotID)
		if err != nil {
			return ami.Image{}, err
		}
		ebs := *m.Ebs
		if ebs.VolumeSize == nil {
			ebs.VolumeSize = &snap.VolumeSize
		}
		if ebs.DeleteOnTermination == nil {
			ebs.DeleteOnTermination = &isRoot
		}
		image.BlockDeviceMappings[i].Ebs = &ebs
		if isRoot {
			image.Consistency = snap.Consistency
		}
	}
	if !root {
		return ami.Image{}, ami.Errorf(ami.CodeInvalidBlockDeviceMapping, "No snapshot is mapped to the root device %s.", image.RootDeviceName).
			WithHint("Map one: --block-device-mapping %s=snap-…", image.RootDeviceName)
	}
	if err := r.checkMapping(ctx, image.BlockDeviceMappings); err != nil {
		return ami.Image{}, err
	}
	if in.DryRun {
		return ami.Image{}, dryRun("register the image %q", in.Name)
	}
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if err := checkMapped(tx, image.BlockDeviceMappings); err != nil {
			return err
		}
		if err := tellEncrypted(tx, image.BlockDeviceMappings); err != nil {
			return err
		}
		return tx.PutImage(image)
	})
	if errors.Is(err, catalog.ErrExists) {
		return ami.Image{}, duplicateName(in.Name, "")
	}
	return image, storeError(err, "The image cannot be recorded.")
}

// DeregisterImage retires an image. Its instances live on; its snapshots stay
// unless deleteSnapshots asks for those that no other image uses to go.
func (r *Region) DeregisterImage(ctx context.Context, id ami.ImageID, deleteSnapshots, dry bool) (DeregisterResult, error) {
	image, err := r.image(ctx, id)
	if err != nil {
		return DeregisterResult{}, err
	}
	if image.OwnerID != r.account {
		return DeregisterResult{}, notFoundImage(id)
	}
	if dry {
		return DeregisterResult{}, dryRun("deregister %s (%s)", id, image.Name)
	}
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		all, err := tx.Instances()
		used := errors.Is(err, catalog.ErrDamaged) // by what cannot be read, perhaps
		if err = r.legible(err); err != nil {
			return err
		}
		for _, inst := range all {
			used = used || inst.ImageID == id && inst.State.Name != ami.InstanceTerminated
		}
		if used {
			image.State = ami.ImageDeregistered // a tombstone for its instances
			return tx.PutImage(image)
		}
		return tx.DeleteImage(id)
	})
	if err != nil {
		return DeregisterResult{}, storeError(err, "The image %s cannot be deregistered.", id)
	}
	res := DeregisterResult{ImageID: id, Return: true}
	if !deleteSnapshots {
		return res, nil
	}
	for _, m := range image.BlockDeviceMappings {
		if m.Ebs == nil || m.Ebs.SnapshotID == "" {
			continue
		}
		code := "success"
		if err := r.DeleteSnapshot(ctx, m.Ebs.SnapshotID, false); err != nil {
			switch ami.ErrorCode(err) {
			case ami.CodeInvalidSnapshotInUse:
				code = "skipped"
			case ami.CodeInternalError:
				code = "internal-error"
			default:
				code = "client-error"
			}
		}
		res.DeleteSnapshots = append(res.DeleteSnapshots, SnapshotReturnCode{m.Ebs.SnapshotID, code})
	}
	return res, nil
}

// DeleteSnapshot deletes a snapshot, and its layer where nothing else needs it.
func (r *Region) DeleteSnapshot(ctx context.Context, id ami.SnapshotID, dry bool) error {
	snap, err := r.ownSnapshot(ctx, id)
	if err != nil {
		return err
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
		if dry {
			return dryRun("delete %s", id)
		}
		if snap, err = tx.Snapshot(id); err != nil {
			return notFoundOr(err, notFoundSnapshot(id))
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
		return storeError(err, "The snapshot %s cannot be deleted.", id)
	}
	if snap.State == ami.SnapshotPending {
		r.removeDraft(ctx, id, "")
	}
	if _, err := r.dropLayers(ctx, snap.Layer); err != nil {
		r.progress.Note("the layer of %s could not be removed; kami store gc will: %v", id, err)
	}
	return nil
}
