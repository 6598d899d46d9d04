package region

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// sees says whether the caller may find and launch an image.
func (r *Region) sees(i ami.Image) bool { return i.VisibleTo(r.account, r.organizations()...) }

// The organisations, and units of them, that the caller's account is in, by ARN.
func (r *Region) organizations() []string {
	arns := slices.Collect(maps.Keys(r.opts.Organizations))
	return slices.DeleteFunc(arns, func(arn string) bool { return !slices.Contains(r.opts.Organizations[arn], r.account) })
}

// shown is an image as the caller is told of it: what its owner alone is to know,
// its tags and to whom else it is shared, is not there for others.
func (r *Region) shown(i ami.Image) ami.Image {
	if i.OwnerID != r.account {
		i.Tags, i.LaunchPermissions, i.DeregistrationProtection = nil, nil, ""
		i.LastLaunchedTime, i.CooldownExpiresOn = time.Time{}, time.Time{}
	}
	return i
}

// lent says whether the caller may read a snapshot: its own, or one that its owner
// lends it through an image which the caller was found to see. What is lent is so for
// that image alone: it is not read, copied or mapped apart from it.
func (r *Region) lent(snap ami.Snapshot, through []ami.Image) bool {
	return snap.OwnerID == r.account || slices.ContainsFunc(through, func(i ami.Image) bool {
		return i.OwnerID == snap.OwnerID && slices.Contains(snapshotsOf(i), snap.SnapshotID)
	})
}

// ownImage returns an image, kernel or ramdisk of the caller's, which may be
// disabled. One that it can only launch is AuthFailure.
func (r *Region) ownImage(ctx context.Context, id ami.ImageID) (image ami.Image, err error) {
	if err := parseAnyImageID(string(id)); err != nil {
		return image, err
	}
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		image, err = r.ownImageNow(tx, id)
		return err
	})
	return image, storeError(err, "The image %s cannot be read.", id)
}

// ownImageNow is ownImage as the record is in a transaction.
func (r *Region) ownImageNow(tx *catalog.Tx, id ami.ImageID) (ami.Image, error) {
	image, err := tx.Image(id)
	switch {
	case id == ami.ImageID(ami.PVGrub):
		return image, notAuthorized(id)
	case err != nil, !r.sees(image):
		return image, notFoundOr(err, notFoundImage(id))
	case image.OwnerID != r.account:
		return image, notAuthorized(id)
	case image.State == ami.ImageDeregistered:
		return image, unavailableImage(id)
	}
	return image, nil
}

func notAuthorized(id ami.ImageID) error {
	return ami.Errorf(ami.CodeAuthFailure, "Not authorized for image:%s", id).
		WithHint("It was shared with this account, which may launch it; its owner alone may change it.")
}

// editImage changes an image of the caller's as it is now, durably, unless edit
// refuses or it is a dry run; then would says what would be done.
func (r *Region) editImage(ctx context.Context, id ami.ImageID, dry bool, would string, edit func(*catalog.Tx, *ami.Image) error) (image ami.Image, err error) {
	if err := parseAnyImageID(string(id)); err != nil {
		return image, err
	}
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if image, err = r.ownImageNow(tx, id); err != nil {
			return err
		}
		if err := edit(tx, &image); err != nil {
			return err
		}
		if dry {
			return dryRun("%s %s (%s)", would, id, image.Name)
		}
		return tx.PutImage(image)
	})
	if errors.Is(err, catalog.ErrExists) {
		return image, duplicateName(image.Name, "")
	}
	return image, storeError(err, "The image %s cannot be changed.", id)
}

func unavailableImage(id ami.ImageID) error {
	return ami.Errorf(ami.CodeInvalidAMIIDUnavailable, "The image id '[%s]' is no longer available", id)
}

func notAvailable(i ami.Image) error {
	return ami.Errorf(ami.CodeInvalidAMIIDUnavailable, "The image id '[%s]' is %s, not available.", i.ImageID, i.State)
}

// ResolveOwnImage finds an image, kernel or ramdisk of the caller's by id or by name,
// available or disabled. Of a name the available one goes first.
func (r *Region) ResolveOwnImage(ctx context.Context, ref string) (ami.ImageID, error) {
	if parseAnyImageID(ref) == nil {
		image, err := r.ownImage(ctx, ami.ImageID(ref))
		return image.ImageID, err
	}
	var found []ami.Image
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		all, err := tx.Images()
		found = slices.DeleteFunc(all, func(i ami.Image) bool {
			return i.OwnerID != r.account || i.Name != ref || i.State != ami.ImageAvailable && i.State != ami.ImageDisabled
		})
		return r.legible(err)
	})
	if n := slices.IndexFunc(found, func(i ami.Image) bool { return i.State == ami.ImageAvailable }); n >= 0 {
		found = found[n : n+1]
	}
	switch {
	case err != nil:
		return "", storeError(err, "The images cannot be read.")
	case len(found) == 0 && strings.HasPrefix(ref, "ami-"):
		return "", parseAnyImageID(ref)
	case len(found) == 0:
		return "", ami.Errorf(ami.CodeInvalidAMIIDNotFound, "No image of this account's has the name %q.", ref).
			WithHint("kami image list --include-disabled shows the images there are.")
	case len(found) > 1:
		return "", ami.Errorf(ami.CodeInvalidParameterValue, "%d disabled images have the name %q.", len(found), ref).WithHint("Give one's id.")
	}
	return found[0].ImageID, nil
}
