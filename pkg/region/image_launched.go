package region

import (
	"context"
	"errors"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// checkLaunched refuses an image that was taken out of use since it was looked up.
func (r *Region) checkLaunched(tx *catalog.Tx, id ami.ImageID) error {
	image, err := tx.Image(id)
	if err != nil || !r.sees(image) {
		return notFoundOr(err, notFoundImage(id))
	}
	if image.State != ami.ImageAvailable {
		return unavailableImage(id)
	}
	return nil
}

// noteLaunch writes in an image's record when it was last launched, by whomever.
// The instances run: that it cannot be noted is no failure of theirs.
func (r *Region) noteLaunch(ctx context.Context, id ami.ImageID) {
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		image, err := tx.Image(id)
		if errors.Is(err, catalog.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		image.LastLaunchedTime = r.now().Truncate(time.Millisecond)
		return tx.PutImage(image)
	})
	if err != nil {
		r.progress.Note("when %s was last launched cannot be noted: %v", id, err)
	}
}
