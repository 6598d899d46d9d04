package region

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// List returns the regions of a home, by name; the default one is always there.
func List(ctx context.Context, home string) ([]Info, error) {
	entries, err := os.ReadDir(filepath.Join(home, "regions"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, storeError(err, "The regions of %s cannot be listed.", home)
	}
	names := []string{}
	for _, e := range entries {
		if e.IsDir() && regionName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	if at, found := slices.BinarySearch(names, DefaultRegion); !found {
		names = slices.Insert(names, at, DefaultRegion)
	}
	out := make([]Info, 0, len(names))
	for _, name := range names {
		info, err := describe(ctx, home, name)
		if err != nil { // one broken region does not hide the others
			info = Info{RegionName: name, Path: filepath.Join(home, "regions", name)}
		}
		out = append(out, info)
	}
	return out, nil
}

func describe(ctx context.Context, home, name string) (Info, error) {
	r, err := Open(ctx, Options{Home: home, Name: name})
	if err != nil {
		return Info{}, err
	}
	defer r.Close()
	images, err := r.DescribeImages(ctx, DescribeInput{})
	if err != nil {
		return Info{}, err
	}
	instances, err := r.DescribeInstances(ctx, DescribeInput{})
	return Info{RegionName: name, Path: r.dir, Images: len(images), Instances: len(instances)}, err
}

// Create makes a region. One of that name must not exist.
func Create(ctx context.Context, home, name string, dry bool) (Info, error) {
	if !regionName.MatchString(name) {
		return Info{}, badRegionName(name)
	}
	dir := filepath.Join(home, "regions", name)
	if dry {
		if _, err := os.Lstat(dir); err == nil {
			return Info{}, regionExists(name)
		}
		return Info{}, dryRun("create the region %q at %s", name, dir)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return Info{}, storeError(err, "The region cannot be made.")
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return Info{}, regionExists(name)
		}
		return Info{}, storeError(err, "The region cannot be made.")
	}
	if err := makeRoot(dir); err != nil {
		return Info{}, storeError(err, "The region cannot be made.")
	}
	return describe(ctx, home, name)
}

func regionExists(name string) error {
	return ami.Errorf(ami.CodeInvalidParameterValue, "The region %q exists already.", name)
}

// Delete removes a region that holds nothing any more, of any account.
func Delete(ctx context.Context, home, name string, dry bool) error {
	r, err := Open(ctx, Options{Home: home, Name: name})
	if err != nil {
		return err
	}
	defer r.Close()
	var images []ami.Image
	var snaps []ami.Snapshot
	var vols []ami.Volume
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		var errs [3]error
		images, errs[0] = tx.Images()
		snaps, errs[1] = tx.Snapshots()
		vols, errs[2] = tx.Volumes()
		return errors.Join(errs[:]...)
	})
	if err != nil {
		return storeError(err, "The region %q cannot be read.", name)
	}
	images = slices.DeleteFunc(images, func(i ami.Image) bool { return i.State == ami.ImageDeregistered })
	if n := len(images) + len(snaps) + len(vols); n > 0 {
		return ami.Errorf(ami.CodeIncorrectState, "The region %q still holds %d images, %d snapshots and %d volumes.", name, len(images), len(snaps), len(vols)).
			WithHint("Deregister and delete them first.")
	}
	if dry {
		return dryRun("delete the region %q", name)
	}
	// Renamed first: what is half removed is no region any more.
	gone := filepath.Join(home, "regions", ".deleted-"+name)
	if err := os.RemoveAll(gone); err != nil { // of one that was killed here
		return storeError(err, "The region %q cannot be removed.", name)
	}
	if err := durable.Rename(r.dir, gone); err != nil {
		return storeError(err, "The region %q cannot be removed.", name)
	}
	return storeError(os.RemoveAll(gone), "The region %q cannot be removed whole.", name)
}
