package region

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// Names lists the regions of a home, by name, without looking into them; the
// default one is always there.
func Names(home string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(home, "regions"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, storeError(err, "The regions of %s cannot be listed.", home)
	}
	names := []string{}
	for _, e := range entries {
		name, far := strings.CutSuffix(e.Name(), remoteSuffix)
		if (e.IsDir() || far || e.Type()&fs.ModeSymlink != 0) && regionName.MatchString(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if at, found := slices.BinarySearch(names, DefaultRegion); !found {
		names = slices.Insert(names, at, DefaultRegion)
	}
	return names, nil
}

// lookFor is how long a list of regions waits for one in an object store.
const lookFor = 5 * time.Second

// List returns the regions of a home, by name; the default one is always there. One
// that cannot be read, or not reached soon, is there without what it holds.
func List(ctx context.Context, home string) ([]Info, error) {
	names, err := Names(home)
	if err != nil {
		return nil, err
	}
	out := make([]Info, 0, len(names))
	for _, name := range names {
		look, done := context.WithTimeout(ctx, lookFor)
		info, err := describe(look, home, name)
		done()
		if err != nil { // one broken region does not hide the others
			info = Info{RegionName: name, Path: filepath.Join(home, "regions", name)}
			if at, err := remoteAt(home, name); err == nil {
				info.Path = at
			}
		}
		out = append(out, info)
	}
	return out, nil
}

func describe(ctx context.Context, home, name string) (Info, error) {
	if IsRemote(home, name) {
		f, err := openRemote(ctx, home, name)
		if err != nil {
			return Info{}, err
		}
		defer f.store.Close()
		return f.info(ctx)
	}
	r, err := Open(ctx, Options{Home: home, Name: name})
	if err != nil {
		return Info{}, err
	}
	defer r.Close()
	images, err := r.DescribeImages(ctx, DescribeInput{IncludeDeprecated: true, IncludeDisabled: true})
	if err != nil {
		return Info{}, err
	}
	instances, err := r.DescribeInstances(ctx, DescribeInput{})
	return Info{RegionName: name, Path: r.dir, Images: len(images), Instances: len(instances)}, err
}

// Create makes a region. One of that name must not exist.
func Create(ctx context.Context, home, name string, dry bool) (Info, error) {
	return CreateAt(ctx, home, name, "", dry)
}

// CreateAt is Create of a region that lies elsewhere: in another folder of this
// host, where it may be already, as that of another home; or in an object store, at
// an address with a scheme, from where images can only be copied. "" is in the home.
func CreateAt(ctx context.Context, home, name, at string, dry bool) (Info, error) {
	if !regionName.MatchString(name) {
		return Info{}, badRegionName(name)
	}
	dir := filepath.Join(home, "regions", name)
	if far, err := isRemote(home, name); err != nil {
		return Info{}, err
	} else if far {
		return Info{}, regionExists(name)
	}
	if at != "" {
		if _, err := os.Lstat(dir); err == nil {
			return Info{}, regionExists(name)
		}
		if strings.Contains(at, "://") {
			return createRemote(ctx, home, name, at, dry)
		}
		return createLinked(ctx, home, name, at, dry)
	}
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

// createLinked makes a region in another folder of this host, which the home has a
// link to, or links to the one that is there.
func createLinked(ctx context.Context, home, name, at string, dry bool) (Info, error) {
	if !filepath.IsAbs(at) {
		return Info{}, ami.Errorf(ami.CodeInvalidParameterValue, "The folder %q is not an absolute path.", at)
	}
	_, err := os.Stat(filepath.Join(at, "catalog.db"))
	if err != nil {
		entries, err := os.ReadDir(at)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Info{}, storeError(err, "The folder %s cannot be read.", at)
		}
		if len(entries) > 0 {
			return Info{}, ami.Errorf(ami.CodeInvalidParameterValue, "The folder %s holds something else than a region.", at).
				WithHint("Name a folder that is empty or not there, or that of a region, such as HOME/regions/local-1.")
		}
	}
	if dry {
		return Info{}, dryRun("make the region %q in %s", name, at)
	}
	if err := makeRoot(at); err != nil {
		return Info{}, storeError(err, "The region cannot be made in %s.", at)
	}
	if err := os.MkdirAll(filepath.Join(home, "regions"), 0o711); err != nil {
		return Info{}, storeError(err, "The region cannot be made.")
	}
	if err := os.Symlink(at, filepath.Join(home, "regions", name)); err != nil {
		return Info{}, storeError(err, "The region cannot be made.")
	}
	if err := durable.SyncDir(filepath.Join(home, "regions")); err != nil {
		return Info{}, storeError(err, "The region cannot be made.")
	}
	return describe(ctx, home, name)
}

func regionExists(name string) error {
	return ami.Errorf(ami.CodeInvalidParameterValue, "The region %q exists already.", name)
}

// Delete removes a region that holds nothing any more, of any account. Of one that
// lies elsewhere the home only forgets where, and what it holds stays.
func Delete(ctx context.Context, home, name string, dry bool) error {
	link := filepath.Join(home, "regions", name)
	elsewhere := IsRemote(home, name)
	if elsewhere {
		link = remotePath(home, name)
	} else if st, err := os.Lstat(link); err == nil && regionName.MatchString(name) && st.Mode()&fs.ModeSymlink != 0 {
		elsewhere = true
	}
	if elsewhere {
		if dry {
			return dryRun("forget where the region %q lies", name)
		}
		return storeError(durable.Remove(link), "The region %q cannot be removed.", name)
	}
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
	images = slices.DeleteFunc(images, func(i ami.Image) bool { return i.State == ami.ImageDeregistered && i.RecycleBin == nil })
	if n := len(images) + len(snaps) + len(vols); n > 0 {
		return ami.Errorf(ami.CodeIncorrectState, "The region %q still holds %d images, %d snapshots and %d volumes.", name, len(images), len(snaps), len(vols)).
			WithHint("Deregister and delete them first.")
	}
	bundles, err := r.ListBundles(ctx, "", "", true)
	if err != nil {
		return err
	}
	if len(bundles) > 0 {
		return ami.Errorf(ami.CodeIncorrectState, "The region %q still holds %d bundles.", name, len(bundles)).
			WithHint("kami --region %s bundle list --allow-unsigned shows them; delete them, or move what is to stay to another store.", name)
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
