package region

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// find selects from all: every id of in must be there (notFound makes the
// error), then every filter must match.
func find[T any](in DescribeInput, all []T, id func(T) string, match func(T, string, []string) (bool, error), notFound func(string) error) ([]T, error) {
	var out []T
	if len(in.IDs) > 0 {
		byID := make(map[string]T, len(all))
		for _, o := range all {
			byID[id(o)] = o
		}
		for _, want := range in.IDs {
			o, ok := byID[want]
			if !ok {
				return nil, notFound(want)
			}
			out = append(out, o)
		}
		all, out = out, nil
	}
	for _, o := range all {
		ok := true
		for _, f := range in.Filters {
			m, err := match(o, f.Name, f.Values)
			if err != nil {
				return nil, err
			}
			if ok = ok && m; !ok {
				break
			}
		}
		if ok {
			out = append(out, o)
		}
	}
	return out, nil
}

// checkFilters finds a filter name that does not exist also where there is
// nothing to match it with.
func checkFilters[T any](filters []Filter, match func(T, string, []string) (bool, error)) error {
	var zero T
	var errs []error
	for _, f := range filters {
		if _, err := match(zero, f.Name, f.Values); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// legible takes from what the reading of several records came to the damage to
// some of them, of which it tells once: the others are as good as ever.
func (r *Region) legible(err error) error {
	if !errors.Is(err, catalog.ErrDamaged) {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if text := err.Error(); !r.damage[text] {
		r.damage[text] = true
		r.progress.Note("%s; the rest goes on without it", text)
	}
	return nil
}

// image returns one image that the caller may use.
func (r *Region) image(ctx context.Context, id ami.ImageID) (ami.Image, error) {
	if _, err := ami.ParseImageID(string(id)); err != nil {
		return ami.Image{}, err
	}
	var image ami.Image
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		if image, err = tx.Image(id); err == nil && r.sees(image) {
			err = r.checkAllowed(tx, image)
		}
		return err
	})
	switch {
	case errors.Is(err, catalog.ErrNotFound), err == nil && !r.sees(image):
		return ami.Image{}, notFoundImage(id)
	case err != nil:
		return ami.Image{}, storeError(err, "The image %s cannot be read.", id)
	case image.State == ami.ImageDeregistered:
		return ami.Image{}, unavailableImage(id)
	}
	return image, nil
}

// ResolveImage finds an available image by id, by name, or, with latest, the
// newest whose name matches a pattern.
func (r *Region) ResolveImage(ctx context.Context, ref string, latest bool) (ami.Image, error) {
	if strings.HasPrefix(ref, "ami-") && !latest {
		if id, err := ami.ParseImageID(ref); err == nil {
			image, err := r.image(ctx, id)
			return r.shown(image), err
		}
	}
	if isKernelID(ref) && parseAnyImageID(ref) == nil {
		_, err := ami.ParseImageID(ref)
		return ami.Image{}, err
	}
	images, err := r.DescribeImages(ctx, DescribeInput{Filters: []Filter{
		{Name: "name", Values: []string{ref}}, {Name: "state", Values: []string{string(ami.ImageAvailable)}},
	}})
	if err != nil {
		return ami.Image{}, err
	}
	switch {
	case len(images) == 0 && strings.HasPrefix(ref, "ami-"):
		_, err := ami.ParseImageID(ref)
		if err == nil {
			err = notFoundImage(ami.ImageID(ref))
		}
		return ami.Image{}, err
	case len(images) == 0:
		return ami.Image{}, ami.Errorf(ami.CodeInvalidAMIIDNotFound, "No available image has the name %q.", ref).
			WithHint("kami image list shows the images there are; kami build and kami import make one.")
	case !latest && len(images) == 1 && images[0].Name != ref:
		return ami.Image{}, ami.Errorf(ami.CodeInvalidParameterValue, "%q is a pattern; the image %q matches it.", ref, images[0].Name).
			WithHint("Give its whole name or its id.")
	case len(images) > 1 && !latest:
		return ami.Image{}, ami.Errorf(ami.CodeInvalidParameterValue, "%d images match the name %q.", len(images), ref).
			WithHint("Give one's id, or --latest for the newest.")
	}
	return images[len(images)-1], nil
}

// DescribeSnapshotsPage is DescribeSnapshots a page at a time.
func (r *Region) DescribeSnapshotsPage(ctx context.Context, in DescribeInput) (Page[ami.Snapshot], error) {
	all, err := r.DescribeSnapshots(ctx, in)
	return cut(r, in, "snapshots", all, err, func(s ami.Snapshot) string { return string(s.SnapshotID) },
		func(s ami.Snapshot) time.Time { return s.StartTime })
}

// DescribeSnapshots returns the caller's snapshots, oldest first.
func (r *Region) DescribeSnapshots(ctx context.Context, in DescribeInput) ([]ami.Snapshot, error) {
	for _, id := range in.IDs {
		if _, err := ami.ParseSnapshotID(id); err != nil {
			return nil, err
		}
	}
	if err := checkFilters(in.Filters, ami.MatchSnapshot); err != nil {
		return nil, err
	}
	owners, err := r.owners(in.Owners)
	if err != nil {
		return nil, err
	}
	var all []ami.Snapshot
	err = r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		all, err = tx.Snapshots()
		return r.legible(err)
	})
	if err != nil {
		return nil, storeError(err, "The snapshots cannot be read.")
	}
	all = slices.DeleteFunc(all, func(s ami.Snapshot) bool { return s.OwnerID != r.account || s.State == ami.SnapshotRecoverable })
	if len(owners) > 0 && !slices.ContainsFunc(owners, func(o catalog.Term) bool { return o.Name == "owner-id" && o.Pattern == r.account }) {
		all = nil // none of others' is listed
	}
	slices.SortStableFunc(all, func(a, b ami.Snapshot) int { return a.StartTime.Compare(b.StartTime) })
	return find(in, all, func(s ami.Snapshot) string { return string(s.SnapshotID) }, ami.MatchSnapshot,
		func(id string) error { return notFoundSnapshot(ami.SnapshotID(id)) })
}

// snapshot returns one snapshot that the caller may launch from: its own, or one
// that an image maps of those through which it launches.
func (r *Region) snapshot(ctx context.Context, id ami.SnapshotID, through ...ami.Image) (ami.Snapshot, error) {
	if _, err := ami.ParseSnapshotID(string(id)); err != nil {
		return ami.Snapshot{}, err
	}
	var snap ami.Snapshot
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		snap, err = tx.Snapshot(id)
		if err == nil && (!r.lent(snap, through) || snap.State == ami.SnapshotRecoverable) {
			err = catalog.ErrNotFound
		}
		return err
	})
	if errors.Is(err, catalog.ErrNotFound) {
		return ami.Snapshot{}, notFoundSnapshot(id)
	}
	return snap, storeError(err, "The snapshot %s cannot be read.", id)
}

// ownSnapshot returns one of the caller's snapshots.
func (r *Region) ownSnapshot(ctx context.Context, id ami.SnapshotID) (ami.Snapshot, error) {
	snap, err := r.snapshot(ctx, id)
	if err == nil && snap.OwnerID != r.account {
		return ami.Snapshot{}, notFoundSnapshot(id)
	}
	return snap, err
}

// DescribeVolumesPage is DescribeVolumes a page at a time.
func (r *Region) DescribeVolumesPage(ctx context.Context, in DescribeInput) (Page[ami.Volume], error) {
	all, err := r.DescribeVolumes(ctx, in)
	return cut(r, in, "volumes", all, err, func(v ami.Volume) string { return string(v.VolumeID) },
		func(v ami.Volume) time.Time { return v.CreateTime })
}

// DescribeVolumes returns the caller's volumes, oldest first.
func (r *Region) DescribeVolumes(ctx context.Context, in DescribeInput) ([]ami.Volume, error) {
	for _, id := range in.IDs {
		if _, err := ami.ParseVolumeID(id); err != nil {
			return nil, err
		}
	}
	if err := checkFilters(in.Filters, ami.MatchVolume); err != nil {
		return nil, err
	}
	var all []ami.Volume
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		all, err = tx.Volumes()
		return r.legible(err)
	})
	if err != nil {
		return nil, storeError(err, "The volumes cannot be read.")
	}
	all = slices.DeleteFunc(all, func(v ami.Volume) bool { return v.OwnerID != r.account || v.Ephemeral })
	slices.SortStableFunc(all, func(a, b ami.Volume) int { return a.CreateTime.Compare(b.CreateTime) })
	return find(in, all, func(v ami.Volume) string { return string(v.VolumeID) }, ami.MatchVolume,
		func(id string) error { return notFoundVolume(ami.VolumeID(id)) })
}

// volume returns one of the caller's volumes. An ephemeral disk is part of its
// instance and no volume to anybody.
func (r *Region) volume(ctx context.Context, id ami.VolumeID) (ami.Volume, error) {
	v, err := r.volumeRecord(ctx, id)
	if err == nil && (v.OwnerID != r.account || v.Ephemeral) {
		return ami.Volume{}, notFoundVolume(id)
	}
	return v, err
}

// volumeRecord returns any volume.
func (r *Region) volumeRecord(ctx context.Context, id ami.VolumeID) (ami.Volume, error) {
	if _, err := ami.ParseVolumeID(string(id)); err != nil {
		return ami.Volume{}, err
	}
	var vol ami.Volume
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		vol, err = tx.Volume(id)
		return err
	})
	if errors.Is(err, catalog.ErrNotFound) {
		return ami.Volume{}, notFoundVolume(id)
	}
	return vol, storeError(err, "The volume %s cannot be read.", id)
}
