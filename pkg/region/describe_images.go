package region

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// DescribeImages returns the images that the caller may launch, oldest first. Kernels
// and ramdisks are among them where their ids, or a filter of image types, ask for
// them.
func (r *Region) DescribeImages(ctx context.Context, in DescribeInput) ([]ami.Image, error) {
	p, err := r.DescribeImagesPage(ctx, in)
	return p.Items, err
}

// DescribeImagesPage is DescribeImages a page at a time.
func (r *Region) DescribeImagesPage(ctx context.Context, in DescribeInput) (Page[ami.Image], error) {
	var page Page[ami.Image]
	for _, id := range in.IDs {
		if err := parseAnyImageID(id); err != nil {
			return page, err
		}
	}
	var errs []error
	for _, f := range in.Filters {
		errs = append(errs, ami.CheckImageFilter(f.Name))
	}
	after, err := in.after(r, "images")
	if err := errors.Join(append(errs, err)...); err != nil {
		return page, err
	}
	where, err := r.imageClauses(in)
	if err != nil {
		return page, err
	}
	q := catalog.ImageQuery{
		Viewers: append([]string{r.account, ami.GroupAll}, r.organizations()...), Where: where, Account: r.account,
		Now: r.now(), Deprecated: in.IncludeDeprecated, Disabled: in.IncludeDisabled, After: after, Limit: in.MaxResults,
	}
	if len(in.IDs) > 0 {
		page.Items, err = r.imagesByID(ctx, in, q)
		return page, err
	}
	var end *catalog.Position
	err = r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		page.Items, end, err = tx.FindImages(q)
		if err = r.legible(err); err != nil {
			return err
		}
		page.Items, end = withBuiltins(page.Items, end, q)
		page.Items, err = r.audited(tx, page.Items, in.Filters)
		return err
	})
	if err != nil {
		return Page[ami.Image]{}, storeError(err, "The images cannot be read.")
	}
	for n, i := range page.Items {
		page.Items[n] = r.shown(i)
	}
	if end != nil {
		page.NextToken = in.token(r, "images", *end)
	}
	return page, nil
}

// imageClauses are what an image has to fit beside being visible.
func (r *Region) imageClauses(in DescribeInput) (where []catalog.AnyOf, err error) {
	own := catalog.Filter("owner-id", r.account)
	for _, f := range in.Filters {
		if f.Name == filterAllowed { // which no record tells
			continue
		}
		where = append(where, catalog.Filter(f.Name, f.Values...))
		if f.Name == "tag-key" || strings.HasPrefix(f.Name, "tag:") {
			where = append(where, own) // tags are not shared with the image
		}
	}
	byType := slices.ContainsFunc(in.Filters, func(f Filter) bool { return f.Name == "image-type" })
	if !byType && len(in.IDs) == 0 {
		where = append(where, catalog.Filter("image-type", ami.ImageTypeMachine))
	}
	owners, err := r.owners(in.Owners)
	if err != nil {
		return nil, err
	}
	if len(owners) > 0 {
		where = append(where, owners)
	}
	var users catalog.AnyOf
	for _, u := range in.ExecutableUsers {
		switch {
		case u == "self" || u == r.account:
			for _, who := range append([]string{r.account}, r.organizations()...) {
				users = append(users, catalog.ExecutableBy("", who)...)
			}
		case u == ami.GroupAll:
			users = append(users, catalog.ExecutableBy("", u)...)
		case ami.IsAccount(u): // to whom else an image is shared only its owner knows
			users = append(users, catalog.ExecutableBy(r.account, u)...)
		default:
			return nil, badUser(u)
		}
	}
	if len(users) > 0 {
		where = append(where, users)
	}
	return where, nil
}

// owners are the terms of what DescribeInput has as Owners.
func (r *Region) owners(said []string) (terms catalog.AnyOf, err error) {
	for _, o := range said {
		switch {
		case o == "self":
			terms = append(terms, catalog.Filter("owner-id", r.account)...)
		case ami.IsAccount(o):
			terms = append(terms, catalog.Filter("owner-id", o)...)
		case slices.Contains(ownerAliases(), o):
			terms = append(terms, catalog.Filter("owner-alias", o)...)
		default:
			return nil, badUser(o)
		}
	}
	return terms, nil
}

// ownerAliases are EC2's, of whom none has images here, and that of what every region
// has.
func ownerAliases() []string {
	return []string{"amazon", "aws-backup-vault", "aws-marketplace", ami.BuiltinAlias}
}

func badUser(id string) error {
	return ami.Errorf(ami.CodeInvalidUserIDMalformed, "Invalid user id: %q", id).
		WithHint("An account is 12 digits; self is the one that asks.")
}

// imagesByID reads the images of ids, all of which the caller has to see, and leaves
// those that fit the query. Who names an image finds it though it is deprecated or
// disabled.
func (r *Region) imagesByID(ctx context.Context, in DescribeInput, q catalog.ImageQuery) ([]ami.Image, error) {
	var all []ami.Image
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		for _, id := range in.IDs {
			image, err := tx.Image(ami.ImageID(id))
			if id == string(ami.PVGrub) {
				image, err = pvGrub(), nil
			}
			if err != nil || !r.sees(image) || image.State == ami.ImageDeregistered {
				return notFoundOr(err, notFoundImage(ami.ImageID(id)))
			}
			if err := r.checkAllowed(tx, image); err != nil {
				return err
			}
			if q.Fits(image) {
				all = append(all, r.shown(image))
			}
		}
		var err error
		all, err = r.audited(tx, all, in.Filters)
		return err
	})
	return all, storeError(err, "The images cannot be read.")
}

// withBuiltins puts what every region has where it belongs on a page.
func withBuiltins(images []ami.Image, end *catalog.Position, q catalog.ImageQuery) ([]ami.Image, *catalog.Position) {
	for _, i := range []ami.Image{pvGrub()} {
		at := catalog.PositionOf(i)
		if !q.Fits(i) || !q.After.Before(at) || end != nil && end.Before(at) {
			continue
		}
		n := slices.IndexFunc(images, func(o ami.Image) bool { return at.Before(catalog.PositionOf(o)) })
		if n < 0 {
			n = len(images)
		}
		images = slices.Insert(images, n, i)
		if q.Limit > 0 && len(images) > q.Limit {
			images = images[:q.Limit]
			last := catalog.PositionOf(images[q.Limit-1])
			end = &last
		}
	}
	return images, end
}
