package region

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
)

// BundleRef names a bundle in an object store.
type BundleRef struct {
	Location      string // BUCKET/PREFIX
	Store         string // address; "" is the region's
	AllowUnsigned bool   // take it whoever made it
}

// ListBundles describes the bundles of a bucket; "" is all. Those that are not
// signed are listed with allowUnsigned alone.
func (r *Region) ListBundles(ctx context.Context, store, bucket string, allowUnsigned bool) ([]Bundle, error) {
	trust, err := r.bundleTrust(allowUnsigned)
	if err != nil {
		return nil, err
	}
	s, err := r.bundleStore(ctx, store)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	all, err := bundle.List(ctx, s, bucket, trust)
	if err != nil {
		return nil, bundleError(err, bucket, s.URL())
	}
	out := make([]Bundle, len(all))
	for i, e := range all {
		out[i] = Bundle{Entry: e, Store: s.URL()}
	}
	return out, nil
}

// DescribeBundle describes one bundle, whose signature and index are verified.
func (r *Region) DescribeBundle(ctx context.Context, ref BundleRef) (Bundle, error) {
	store, b, err := r.openBundle(ctx, ref.Store, ref.Location, ref.AllowUnsigned)
	if err != nil {
		return Bundle{}, err
	}
	defer store.Close()
	out := Bundle{Entry: bundle.Entry{Location: b.Location().String(), Manifest: b.Manifest()}, Store: store.URL()}
	out.Signer, out.Trusted = b.Signer()
	return out, nil
}

// VerifyBundle reads all of a bundle. What is wrong with its chunks is in the
// report.
func (r *Region) VerifyBundle(ctx context.Context, ref BundleRef) (bundle.Report, error) {
	store, b, err := r.openBundle(ctx, ref.Store, ref.Location, ref.AllowUnsigned)
	if err != nil {
		return bundle.Report{}, err
	}
	defer store.Close()
	step := r.progress.Step("verifying "+ref.Location, b.Size())
	rep, err := b.Verify(ctx, step.Add)
	step.Done(err)
	return rep, bundleError(err, ref.Location, store.URL())
}

// BundleFormats lists what a bundle can be unpacked as.
func BundleFormats() []string { return []string{"raw", "qcow2"} }

// UnpackBundleInput asks for a bundle's blob as a file.
type UnpackBundleInput struct {
	BundleRef
	Path   string // must not exist
	Format string // "" is by the path's ending, else raw
	DryRun bool
}

// UnpackBundle writes a bundle's blob to one file. A file that is not complete
// never has the name.
func (r *Region) UnpackBundle(ctx context.Context, in UnpackBundleInput) error {
	if in.Format == "" && strings.HasSuffix(in.Path, ".qcow2") {
		in.Format = "qcow2"
	} else if in.Format == "" {
		in.Format = "raw"
	}
	if !slices.Contains(BundleFormats(), in.Format) {
		return ami.Errorf(ami.CodeInvalidParameterValue, "The format %q is not one of %s.", in.Format, strings.Join(BundleFormats(), ", "))
	}
	if err := checkNewFile(in.Path); err != nil {
		return err
	}
	store, b, err := r.openBundle(ctx, in.Store, in.Location, in.AllowUnsigned)
	if err != nil {
		return err
	}
	defer store.Close()
	if err := r.checkUnpacked(ctx, "The bundle "+in.Location, b.Manifest().ProductCodes); err != nil {
		return err
	}
	if in.DryRun {
		return dryRun("unpack %s to %s as %s", in.Location, in.Path, in.Format)
	}
	step := r.progress.Step("unpacking "+in.Location, b.Size())
	err = durable.WriteFile(in.Path, 0o644, func(f *os.File) error {
		if in.Format == "qcow2" {
			_, err := qcow2.WriteLayer(ctx, f, b.ReaderAt(ctx), nil, nil, step.Add)
			return err
		}
		if err := f.Truncate(b.Size()); err != nil {
			return err
		}
		return b.Assemble(ctx, f, step.Add)
	})
	step.Done(err)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return storeError(err, "%s cannot be written.", in.Path)
	}
	return bundleError(err, in.Location, store.URL())
}

// checkUnpacked refuses a bundle that is sold, as a file of its own, to who does not
// sell it: in the bundle its product codes are with it.
func (r *Region) checkUnpacked(ctx context.Context, what string, codes []string) error {
	var all []ami.ProductCode
	for _, code := range codes { // which are mere marks where nobody offers them
		all = append(all, ami.ProductCode{ID: code})
	}
	return r.checkRead(ctx, what, all)
}

// DeleteBundleInput asks for a bundle to be deleted.
type DeleteBundleInput struct {
	Location, Store string
	DryRun          bool
}

// DeleteBundle deletes a bundle, with the chunks that no other bundle of its bucket
// needs.
func (r *Region) DeleteBundle(ctx context.Context, in DeleteBundleInput) (bundle.Swept, error) {
	l, err := bundle.ParseLocation(in.Location)
	if err != nil {
		return bundle.Swept{}, bundleError(err, in.Location, "")
	}
	store, err := r.bundleStore(ctx, in.Store)
	if err != nil {
		return bundle.Swept{}, err
	}
	defer store.Close()
	if in.DryRun {
		if _, err := bundle.Open(ctx, store, in.Location, bundle.Trust{AllowUnsigned: true}); errors.Is(err, bundle.ErrNotFound) {
			return bundle.Swept{}, bundleError(err, in.Location, store.URL())
		}
		return bundle.Swept{}, dryRun("delete the bundle %q", l)
	}
	swept, err := bundle.Delete(ctx, store, in.Location)
	if swept.Left != "" {
		r.progress.Note("the chunks that only this bundle needed stay until the next bundle of %s is deleted: %s", l.Bucket, swept.Left)
	}
	return swept, bundleError(err, in.Location, store.URL())
}

// What programs read of bundles.
type (
	BundleReport = bundle.Report
	BundleFault  = bundle.Fault
	BundleKey    = bundle.TrustedKey
)
