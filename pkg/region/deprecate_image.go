package region

import (
	"context"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// EC2's limits on how far off a deprecation may be.
const (
	maxDeprecationYears    = 10 // from now
	publicDeprecationYears = 2  // from when a public image was made
)

// publicDeprecation is when a public image is deprecated at the latest.
func publicDeprecation(i ami.Image) time.Time {
	return i.CreationDate.AddDate(publicDeprecationYears, 0, 0).Round(time.Minute)
}

// DeprecateImage sets when an image of the caller's is out of date, to the minute.
// From then on others find it only by its id; it is launched as ever.
func (r *Region) DeprecateImage(ctx context.Context, id ami.ImageID, at time.Time, dry bool) (ami.Image, error) {
	at = at.UTC().Round(time.Minute)
	return r.editImage(ctx, id, dry, "deprecate", func(_ *catalog.Tx, i *ami.Image) error {
		now := r.now()
		bad := func(format string, args ...any) error {
			return ami.Errorf(ami.CodeInvalidParameterValue, "The time of deprecation %s "+format+".", append([]any{at.Format(time.RFC3339)}, args...)...)
		}
		switch {
		case i.State == ami.ImagePending || i.State == ami.ImageFailed:
			return notAvailable(*i)
		case at.Before(now.Round(time.Minute)):
			return bad("is past")
		case at.After(now.AddDate(maxDeprecationYears, 0, 0)):
			return bad("is more than %d years from now", maxDeprecationYears)
		case i.Public && at.After(publicDeprecation(*i)):
			return bad("is more than %d years after the public image %s was made", publicDeprecationYears, id)
		}
		i.DeprecationTime = at
		return nil
	})
}

// CancelDeprecation takes back when an image of the caller's is out of date. A public
// one goes back to two years after it was made.
func (r *Region) CancelDeprecation(ctx context.Context, id ami.ImageID, dry bool) (ami.Image, error) {
	return r.editImage(ctx, id, dry, "cancel the deprecation of", func(_ *catalog.Tx, i *ami.Image) error {
		i.DeprecationTime = time.Time{}
		if i.Public {
			i.DeprecationTime = publicDeprecation(*i)
		}
		return nil
	})
}
