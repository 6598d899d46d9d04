package region

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// launchedNow is an image as its record is now. It refuses one that was taken out of
// use since it was looked up.
func (r *Region) launchedNow(tx *catalog.Tx, id ami.ImageID) (ami.Image, error) {
	image, err := tx.Image(id)
	if err != nil || !r.sees(image) {
		return image, notFoundOr(err, notFoundImage(id))
	}
	if image.State != ami.ImageAvailable {
		return image, unavailableImage(id)
	}
	return image, nil
}

// checkLaunched gives an instance that is about to be recorded, and its volumes of the
// image's snapshots, the product codes that the image has by now, and refuses what is
// not paid for.
func (r *Region) checkLaunched(tx *catalog.Tx, inst *ami.Instance, vols []ami.Volume) error {
	image, err := r.launchedNow(tx, inst.ImageID)
	if err != nil {
		return err
	}
	inst.ProductCodes = ami.JoinProductCodes(inst.ProductCodes, image.ProductCodes)
	for i, v := range vols {
		if slices.Contains(snapshotsOf(image), v.SnapshotID) {
			vols[i].ProductCodes = image.ProductCodes
		}
	}
	return r.checkSubscribed(tx, "The image "+string(image.ImageID), inst.ProductCodes)
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
