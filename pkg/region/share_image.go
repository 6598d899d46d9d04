package region

import (
	"context"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// EC2's limits on sharing.
const (
	maxShares = 1000 // permissions of one image
	maxPublic = 5    // public images of one account in a region
)

// ImagePermissions are who may launch an image besides its owner.
type ImagePermissions struct {
	ImageID           ami.ImageID            `json:"ImageId"`
	LaunchPermissions []ami.LaunchPermission `json:"LaunchPermissions"`
}

// ShareImageInput asks for permissions to be added and removed, all or none.
type ShareImageInput struct {
	ImageID ami.ImageID
	Add     []ami.LaunchPermission
	Remove  []ami.LaunchPermission
	DryRun  bool
}

// DescribeLaunchPermissions says who may launch an image of the caller's.
func (r *Region) DescribeLaunchPermissions(ctx context.Context, id ami.ImageID) (ImagePermissions, error) {
	image, err := r.ownImage(ctx, id)
	return ImagePermissions{image.ImageID, image.LaunchPermissions}, err
}

// ShareImage changes who may launch an image of the caller's: EC2's
// ModifyImageAttribute of launchPermission. What is there already is added, and what
// is not there is removed, without an error.
func (r *Region) ShareImage(ctx context.Context, in ShareImageInput) (ImagePermissions, error) {
	if len(in.Add)+len(in.Remove) == 0 {
		return ImagePermissions{}, ami.Errorf(ami.CodeMissingParameter, "Nobody was named to share %s with.", in.ImageID).
			WithHint("Name accounts, all, or organisations by their ARNs.")
	}
	for _, p := range slices.Concat(in.Add, in.Remove) {
		if err := p.Check(); err != nil {
			return ImagePermissions{}, err
		}
		if slices.Contains(in.Add, p) && slices.Contains(in.Remove, p) {
			return ImagePermissions{}, ami.Errorf(ami.CodeInvalidParameterCombination, "The permission of %s is to be added and removed at once.", p)
		}
	}
	image, err := r.editImage(ctx, in.ImageID, in.DryRun, "change who may launch", func(tx *catalog.Tx, i *ami.Image) error {
		all := slices.DeleteFunc(slices.Clone(i.LaunchPermissions), func(p ami.LaunchPermission) bool { return slices.Contains(in.Remove, p) })
		for _, p := range in.Add {
			if !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
		if len(in.Add) > 0 {
			if i.State != ami.ImageAvailable {
				return ami.Errorf(ami.CodeIncorrectState, "The image %s is %s, and only an available one can be shared.", i.ImageID, i.State)
			}
			if len(all) > maxShares {
				return ami.Errorf(ami.CodeResourceLimitExceeded, "The image %s would be shared with %d; at most %d are allowed.", i.ImageID, len(all), maxShares).
					WithHint("Share it with an organisation.")
			}
		}
		public := i.Public
		i.SetLaunchPermissions(all)
		if i.Public && !public {
			return r.publish(tx, i)
		}
		return nil
	})
	return ImagePermissions{image.ImageID, image.LaunchPermissions}, err
}

// publish checks whether an image may be public, and sets when it is deprecated at
// the latest.
func (r *Region) publish(tx *catalog.Tx, i *ami.Image) error {
	refuse := func(why string) *ami.Error {
		return ami.Errorf(ami.CodeOperationNotPermitted, "The image %s cannot be public: %s", i.ImageID, why)
	}
	blocked, err := r.publicBlocked(tx)
	switch {
	case err != nil:
		return err
	case blocked:
		return refuse("public access is blocked for this account in this region.").
			WithHint("kami region block-public-access unblocked lifts that.")
	}
	// The mapping may be older than what a snapshot is now.
	encrypted, sold := i.HasEncrypted(), len(i.ProductCodes) > 0
	for _, id := range snapshotsOf(*i) {
		snap, err := tx.Snapshot(id)
		if err != nil {
			return notFoundOr(err, notFoundSnapshot(id))
		}
		encrypted, sold = encrypted || snap.Encrypted, sold || len(snap.ProductCodes) > 0
	}
	if sold {
		return refuse("it has product codes, and is paid for.")
	}
	if encrypted {
		return refuse("it has encrypted snapshots.").WithHint("It can be shared with accounts.")
	}
	all, err := tx.Images()
	if err = r.legible(err); err != nil {
		return err
	}
	public := 0
	for _, o := range all {
		if o.Public && o.OwnerID == r.account && o.ImageID != i.ImageID && o.State != ami.ImageDeregistered {
			public++
		}
	}
	if public >= maxPublic {
		return ami.Errorf(ami.CodeResourceLimitExceeded, "This account has %d public images in the region, and at most %d are allowed.", public, maxPublic).
			WithHint("Make another one private first: kami image permission remove IMAGE all")
	}
	if limit := publicDeprecation(*i); i.DeprecationTime.IsZero() || i.DeprecationTime.After(limit) {
		i.DeprecationTime = limit
	}
	return nil
}

// ResetLaunchPermissions leaves an image to its owner alone.
func (r *Region) ResetLaunchPermissions(ctx context.Context, id ami.ImageID, dry bool) error {
	_, err := r.editImage(ctx, id, dry, "take all launch permissions from", func(_ *catalog.Tx, i *ami.Image) error {
		i.SetLaunchPermissions(nil)
		return nil
	})
	return err
}

// CancelLaunchPermission gives up the caller's own permission to launch an image of
// another account's.
func (r *Region) CancelLaunchPermission(ctx context.Context, id ami.ImageID, dry bool) error {
	if err := parseAnyImageID(string(id)); err != nil {
		return err
	}
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		image, err := tx.Image(id)
		if err != nil || !r.sees(image) {
			return notFoundOr(err, notFoundImage(id))
		}
		mine := ami.LaunchPermission{UserID: r.account}
		switch {
		case image.State == ami.ImageDeregistered:
			return unavailableImage(id)
		case image.OwnerID == r.account:
			return ami.Errorf(ami.CodeOperationNotPermitted, "The image %s is this account's own, which may always launch it.", id)
		case !slices.Contains(image.LaunchPermissions, mine):
			return ami.Errorf(ami.CodeOperationNotPermitted, "The image %s was not shared with this account by its number, but with %s.", id, r.lender(image)).
				WithHint("Its owner can change that.")
		case dry:
			return dryRun("give up the permission to launch %s (%s)", id, image.Name)
		}
		image.SetLaunchPermissions(slices.DeleteFunc(slices.Clone(image.LaunchPermissions), func(p ami.LaunchPermission) bool { return p == mine }))
		return tx.PutImage(image)
	})
	return storeError(err, "The permission cannot be given up.")
}

// lender says by what the caller sees another's image.
func (r *Region) lender(i ami.Image) string {
	var by []string
	if i.Public {
		by = append(by, "everybody")
	}
	for _, arn := range r.organizations() {
		if i.SharedWith("", arn) {
			by = append(by, arn)
		}
	}
	slices.Sort(by)
	return strings.Join(by, " and ")
}

// AccessBlock is whether an account's images may become public.
type AccessBlock string

// The states, EC2's. Images that are public already stay so.
const (
	BlockNewSharing AccessBlock = "block-new-sharing"
	Unblocked       AccessBlock = "unblocked"
)

const settingAccessBlock = "image-block-public-access"

// ImageBlockPublicAccess says whether the caller's images may become public.
func (r *Region) ImageBlockPublicAccess(ctx context.Context) (state AccessBlock, err error) {
	state = Unblocked
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error { return tx.Setting(r.account, settingAccessBlock, &state) })
	return state, storeError(err, "The setting cannot be read.")
}

// SetImageBlockPublicAccess sets whether the caller's images may become public.
func (r *Region) SetImageBlockPublicAccess(ctx context.Context, state AccessBlock, dry bool) error {
	if state != BlockNewSharing && state != Unblocked {
		return ami.Errorf(ami.CodeInvalidParameterValue, "The state %q is not one of %s and %s.", state, BlockNewSharing, Unblocked)
	}
	if dry {
		return dryRun("set the public access of images to %s", state)
	}
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error { return tx.PutSetting(r.account, settingAccessBlock, state) })
	return storeError(err, "The setting cannot be written.")
}

func (r *Region) publicBlocked(tx *catalog.Tx) (bool, error) {
	var state AccessBlock
	err := tx.Setting(r.account, settingAccessBlock, &state)
	return state == BlockNewSharing, err
}
