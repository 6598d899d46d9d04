package region

import (
	"context"
	"errors"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// DisableImage takes an image of the caller's out of use: it cannot be launched or
// shared, and whoever it was shared with loses it for good. Its instances live on.
func (r *Region) DisableImage(ctx context.Context, id ami.ImageID, dry bool) (ami.Image, error) {
	return r.editImage(ctx, id, dry, "disable", func(_ *catalog.Tx, i *ami.Image) error {
		if i.ImageType != ami.ImageTypeMachine {
			return ami.Errorf(ami.CodeUnsupportedOperation, "%s is a %s, which cannot be disabled.", id, i.ImageType)
		}
		if i.State != ami.ImageAvailable {
			return ami.Errorf(ami.CodeIncorrectState, "The image %s is %s, not available.", id, i.State)
		}
		i.State = ami.ImageDisabled
		i.SetLaunchPermissions(nil)
		return nil
	})
}

// EnableImage takes a disabled image into use again. The permissions that it had do
// not come back.
func (r *Region) EnableImage(ctx context.Context, id ami.ImageID, dry bool) (ami.Image, error) {
	return r.editImage(ctx, id, dry, "enable", func(tx *catalog.Tx, i *ami.Image) error {
		if i.State != ami.ImageDisabled {
			return ami.Errorf(ami.CodeIncorrectState, "The image %s is %s, not disabled.", id, i.State)
		}
		i.State = ami.ImageAvailable
		return r.nameFree(tx, *i)
	})
}

// nameFree refuses to bring an image back whose name another one has by now.
func (r *Region) nameFree(tx *catalog.Tx, i ami.Image) error {
	other, err := tx.ImageByName(i.OwnerID, i.Name)
	if err == nil && other.ImageID != i.ImageID {
		return duplicateName(i.Name, other.ImageID)
	}
	if errors.Is(err, catalog.ErrNotFound) {
		return nil
	}
	return err
}
