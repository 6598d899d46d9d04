package region

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/object"
)

// A remote region is one in an object store: a bucket, or a folder of another host.
// No guest runs there; images are copied to it and from it, and of each only the
// chunks that the other side lacks. It holds
//
//	region.json                what it is
//	images/ami-….json          the images: records, and what they stand on
//	objects/<sha256>           small things that images name
//	data/layers/<sha256>.manifest, .caibx   what each layer adds to its parent
//	data/chunks/ABCD/….cacnk   its bytes, which all layers share
//
// and is written in the order of the last to the first. The home has the file
// regions/NAME.remote, which says where it is.
type remote struct {
	name  string
	store object.Store
}

const (
	remoteSuffix  = ".remote"
	remoteVersion = 1
	remoteMark    = "region.json"
	remoteBucket  = "data"
	remoteImages  = "images/"
	maxRemote     = 64 << 10 // bytes of a small record
	maxObject     = 16 << 20
)

// remoteRecord is the file of a remote region, in the home and in the store.
type remoteRecord struct {
	Version int    `json:"Version"`
	At      string `json:"At,omitempty"` // address of the object store, in the home's file
}

func remotePath(home, name string) string { return filepath.Join(home, "regions", name+remoteSuffix) }

// isRemote says whether a region of a home is in an object store.
func isRemote(home, name string) (bool, error) {
	if !regionName.MatchString(name) {
		return false, badRegionName(name)
	}
	_, err := os.Stat(remotePath(home, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, storeError(err, "The region %q cannot be looked up.", name)
}

// IsRemote says whether a region of a home is in an object store, of which there
// is nothing but its images. What cannot be told is not.
func IsRemote(home, name string) bool {
	far, err := isRemote(home, name)
	return far && err == nil
}

// remoteOnly refuses what is not to be had in an object store.
func remoteOnly(name string) error {
	return ami.Errorf(ami.CodeUnsupportedOperation, "The region %q is an object store: it only keeps images.", name).
		WithHint("Copy an image from there to work with it: kami image copy IMAGE --from-region %s --name NAME.", name)
}

// remoteAt is the address of a remote region.
func remoteAt(home, name string) (string, error) {
	text, err := os.ReadFile(remotePath(home, name))
	var rec remoteRecord
	if err == nil {
		err = json.Unmarshal(text, &rec)
	}
	if err == nil && rec.Version != remoteVersion {
		err = fmt.Errorf("version %d of its record is not known here", rec.Version)
	}
	return rec.At, storeError(err, "The region %q cannot be looked up.", name)
}

// openRemote opens a remote region. The caller closes its store.
func openRemote(ctx context.Context, home, name string) (*remote, error) {
	at, err := remoteAt(home, name)
	if err != nil {
		return nil, err
	}
	store, err := object.Open(ctx, at, object.Options{})
	if err != nil {
		return nil, objectError(err, at)
	}
	f := &remote{name, store}
	if err := f.checkMark(ctx); err != nil {
		store.Close()
		return nil, err
	}
	return f, nil
}

// checkMark sees that there is a region in the store, of a kind that is known here.
func (f *remote) checkMark(ctx context.Context) error {
	text, err := f.read(ctx, remoteMark, maxRemote)
	if errors.Is(err, object.ErrNotFound) {
		return ami.Errorf(ami.CodeInvalidParameterValue, "There is no region in %s.", f.store.URL()).
			WithHint("kami region create NAME --at %s makes one.", f.store.URL())
	}
	var rec remoteRecord
	if err == nil {
		err = json.Unmarshal(text, &rec)
	}
	if err == nil && rec.Version != remoteVersion {
		return ami.Errorf(ami.CodeUnsupportedOperation, "The region in %s has version %d; this kami knows version %d.", f.store.URL(), rec.Version, remoteVersion)
	}
	return objectError(err, f.store.URL())
}

// createRemote makes a region in an object store, or finds the one that is there,
// and gives it a name in the home.
func createRemote(ctx context.Context, home, name, at string, dry bool) (Info, error) {
	store, err := object.Open(ctx, at, object.Options{})
	if err != nil {
		return Info{}, objectError(err, at)
	}
	defer store.Close()
	f := &remote{name, store}
	if dry {
		return Info{}, dryRun("make the region %q in %s", name, store.URL())
	}
	text, err := json.Marshal(remoteRecord{Version: remoteVersion})
	if err != nil {
		return Info{}, err
	}
	err = store.PutNew(ctx, remoteMark, bytes.NewReader(text), int64(len(text)))
	if err != nil && !errors.Is(err, object.ErrExists) {
		return Info{}, objectError(err, at)
	}
	if err := f.checkMark(ctx); err != nil {
		return Info{}, err
	}
	if text, err = json.Marshal(remoteRecord{remoteVersion, at}); err != nil {
		return Info{}, err
	}
	if err := os.MkdirAll(filepath.Join(home, "regions"), 0o711); err != nil {
		return Info{}, storeError(err, "The region cannot be made.")
	}
	err = durable.WriteFile(remotePath(home, name), 0o600, func(w *os.File) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
	if err != nil {
		return Info{}, storeError(err, "The region cannot be made.")
	}
	return f.info(ctx)
}

func (f *remote) info(ctx context.Context) (Info, error) {
	info := Info{RegionName: f.name, Path: f.store.URL()}
	names, err := f.imageRecords(ctx)
	info.Images = len(names)
	return info, objectError(err, f.store.URL())
}

// imageRecords lists the names of the images' records. What lies beside them is of
// bundles, where the store has a bucket of that name.
func (f *remote) imageRecords(ctx context.Context) (names []string, err error) {
	err = f.store.List(ctx, remoteImages+"ami-", func(o object.Info) error {
		if strings.HasSuffix(o.Name, ".json") {
			names = append(names, o.Name)
		}
		return nil
	})
	return names, err
}

// read reads a small object.
func (f *remote) read(ctx context.Context, name string, limit int64) ([]byte, error) {
	return object.ReadSmall(ctx, f.store, name, limit)
}

func (f *remote) write(ctx context.Context, name string, b []byte) error {
	return object.WriteSmall(ctx, f.store, name, b)
}

func imageRecord(id ami.ImageID) string { return remoteImages + string(id) + ".json" }

func objectRecord(d digest.Digest) string { return "objects/" + d.Hex() }

// images returns all images of the region. One whose record cannot be read is
// told of and left out; known is false then.
func (f *remote) images(ctx context.Context, tell ami.Progress) (all []parcel, known bool, err error) {
	names, err := f.imageRecords(ctx)
	known = true
	for _, name := range names {
		if err != nil {
			break
		}
		var b []byte
		b, err = f.read(ctx, name, maxParcel)
		if errors.Is(err, object.ErrNotFound) { // deregistered meanwhile
			err = nil
			continue
		}
		if err != nil {
			break
		}
		p, perr := parseParcel(b)
		if perr == nil && imageRecord(p.Image.ImageID) != name {
			perr = fmt.Errorf("%w: it is that of %s", errParcel, p.Image.ImageID)
		}
		if perr != nil {
			known = false
			tell.Note("%s in %s cannot be read and is left out: %v", name, f.store.URL(), perr)
			continue
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b parcel) int { return a.Image.CreationDate.Compare(b.Image.CreationDate) })
	return all, known, objectError(err, f.store.URL())
}

// mine says whether a caller may use an image.
func mine(i ami.Image, account string) bool { return i.OwnerID == account }

// RemoteImages returns the caller's images in a remote region, oldest first.
func RemoteImages(ctx context.Context, opts Options, in DescribeInput) ([]ami.Image, error) {
	f, err := openRemote(ctx, opts.Home, opts.Name)
	if err != nil {
		return nil, err
	}
	defer f.store.Close()
	if err := checkFilters(in.Filters, ami.MatchImage); err != nil {
		return nil, err
	}
	all, _, err := f.images(ctx, opts.tell())
	if err != nil {
		return nil, err
	}
	var out []ami.Image
	for _, p := range all {
		if mine(p.Image, opts.account()) {
			out = append(out, p.Image)
		}
	}
	return find(in, out, func(i ami.Image) string { return string(i.ImageID) }, ami.MatchImage,
		func(id string) error { return notFoundImage(ami.ImageID(id)) })
}

func (o Options) tell() ami.Progress {
	if o.Progress == nil {
		return ami.NoProgress
	}
	return o.Progress
}

func (o Options) account() string {
	if o.Account == "" {
		return ami.DefaultAccount
	}
	return o.Account
}

// find returns the caller's image of an id or a name.
func (f *remote) find(ctx context.Context, opts Options, ref string) (parcel, error) {
	if strings.HasPrefix(ref, "ami-") {
		id, err := ami.ParseImageID(ref)
		if err != nil {
			return parcel{}, err
		}
		b, err := f.read(ctx, imageRecord(id), maxParcel)
		if errors.Is(err, object.ErrNotFound) {
			return parcel{}, notFoundImage(id)
		}
		if err != nil {
			return parcel{}, objectError(err, f.store.URL())
		}
		p, err := parseParcel(b)
		if err == nil && p.Image.ImageID != id {
			err = fmt.Errorf("%w: it is that of %s", errParcel, p.Image.ImageID)
		}
		if err == nil && !mine(p.Image, opts.account()) {
			return parcel{}, notFoundImage(id)
		}
		return p, storeError(err, "The image %s in %s cannot be read.", id, f.store.URL())
	}
	all, _, err := f.images(ctx, opts.tell())
	if err != nil {
		return parcel{}, err
	}
	for _, p := range all {
		if p.Image.Name == ref && mine(p.Image, opts.account()) {
			return p, nil
		}
	}
	return parcel{}, ami.Errorf(ami.CodeInvalidAMIIDNotFound, "No available image of the region %q has the name %q.", f.name, ref).
		WithHint("kami --region %s image list shows the images there are.", f.name)
}

// DeregisterRemoteImage retires an image of a remote region, with its snapshots,
// which nothing else can use there, and deletes the bytes that no other one needs.
func DeregisterRemoteImage(ctx context.Context, opts Options, ref string, dry bool) (DeregisterResult, error) {
	f, err := openRemote(ctx, opts.Home, opts.Name)
	if err != nil {
		return DeregisterResult{}, err
	}
	defer f.store.Close()
	p, err := f.find(ctx, opts, ref)
	if err != nil {
		return DeregisterResult{}, err
	}
	if dry {
		return DeregisterResult{}, dryRun("deregister %s (%s) and delete what it alone needs from %s", p.Image.ImageID, p.Image.Name, f.store.URL())
	}
	if err := f.store.Delete(ctx, imageRecord(p.Image.ImageID)); err != nil {
		return DeregisterResult{}, objectError(err, f.store.URL())
	}
	durable.Step("remote.deregistered")
	res := DeregisterResult{ImageID: p.Image.ImageID, Return: true}
	for _, s := range p.Snapshots {
		res.DeleteSnapshots = append(res.DeleteSnapshots, SnapshotReturnCode{SnapshotID: s.SnapshotID, ReturnCode: "success"})
	}
	if err := f.sweep(ctx, opts.tell()); err != nil {
		opts.tell().Note("what no image needs any more could not be deleted yet: %v; the next deregistering will", err)
	}
	return res, nil
}

// sweep deletes what no image of the region needs. While somebody copies an image
// to it, that stays for the next time.
func (f *remote) sweep(ctx context.Context, tell ami.Progress) error {
	left, err := bundle.SweepUnless(ctx, f.store, remoteBucket, func(ctx context.Context) (func(name string) bool, error) {
		all, known, err := f.images(ctx, tell)
		if err != nil || !known {
			return nil, err // it may need any
		}
		needed := map[string]bool{}
		for _, p := range all {
			for _, l := range p.Layers {
				needed[layerBlob(l.Digest)] = true
			}
		}
		return func(name string) bool { return needed[name] }, nil
	})
	if err == nil && left.Left != "" {
		tell.Note("what no image needs any more stays for now: %s", left.Left)
	}
	return objectError(err, f.store.URL())
}
