package region

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/launch"
	"github.com/kamivm/kami/pkg/object"
)

// An instance-store image names a bundle instead of snapshots. Its guests have a
// root of their own on the host, made of the bundle, that ends with them.
//
// The bundle is trusted once, when it is registered, and pinned by its digests from
// then on. Whoever changes it makes it another one, which no image names.

// BundleImageInput says which bundle an image is registered of.
type BundleImageInput struct {
	ImageLocation string // BUCKET/PREFIX.manifest; "" is none
	Store         string // address of its object store; "" is the region's
	AllowUnsigned bool   // take it whoever made it
}

// registerBundle makes an image of a bundle. What is not said of it is the bundle's.
func (r *Region) registerBundle(ctx context.Context, in RegisterImageInput) (ami.Image, error) {
	if err := r.checkNewName(ctx, in.Name, in.Description, in.Tags); err != nil {
		return ami.Image{}, err
	}
	store, b, err := r.openBundle(ctx, in.Store, in.ImageLocation, in.AllowUnsigned)
	if err != nil {
		return ami.Image{}, registering(err)
	}
	defer store.Close()
	image, err := r.imageOfBundle(ctx, store, b, in)
	if err != nil {
		return ami.Image{}, err
	}
	variables, err := r.registerSupport(&image, in)
	if err != nil {
		return ami.Image{}, err
	}
	if in.DryRun {
		return ami.Image{}, dryRun("register the image %q of the bundle %s", in.Name, image.ImageLocation)
	}
	err = r.keepVariables(ctx, &image, variables, func(tx *catalog.Tx) error {
		if err := errors.Join(checkMapped(tx, image.BlockDeviceMappings), checkBooted(tx, image.KernelID, image.RamdiskID)); err != nil {
			return err
		}
		codes, err := mappedCodes(tx, image.BlockDeviceMappings)
		if err != nil {
			return err
		}
		image.ProductCodes = ami.JoinProductCodes(image.ProductCodes, codes)
		if err := tellEncrypted(tx, image.BlockDeviceMappings); err != nil {
			return err
		}
		return tx.PutImage(image)
	})
	durable.Step("bundle.registered")
	if errors.Is(err, catalog.ErrExists) {
		return ami.Image{}, duplicateName(in.Name, "")
	}
	return image, storeError(err, "The image cannot be recorded.")
}

// registering gives a bundle that is not there or not to be trusted the code that
// RegisterImage has for it.
func registering(err error) error {
	var e *ami.Error
	if errors.As(err, &e) && (e.Code == ami.CodeInvalidBundleIDNotFound || e.Code == ami.CodeAuthFailure) {
		e.Code = ami.CodeInvalidManifest
	}
	return err
}

// imageOfBundle lays what was asked for over what the manifest says.
func (r *Region) imageOfBundle(ctx context.Context, store object.Store, b *bundle.Bundle, in RegisterImageInput) (ami.Image, error) {
	m := b.Manifest()
	if err := sameAsManifest(m, in); err != nil {
		return ami.Image{}, err
	}
	pinned, err := manifestDigest(ctx, store, b.Location())
	if err != nil {
		return ami.Image{}, bundleError(err, in.ImageLocation, store.URL())
	}
	image := r.newImage(in.Name, in.Description, in.Tags)
	image.State, image.RootDeviceType, image.ImageLocation = ami.ImageAvailable, ami.RootDeviceInstanceStore, b.Location().String()
	image.Architecture, image.RootDeviceName, image.BootMode = m.Architecture, m.RootDeviceName, m.BootMode
	image.Consistency, image.ImdsSupport = m.Consistency, in.ImdsSupport
	for _, code := range m.ProductCodes {
		kind := ami.MarketplaceCode
		if _, err := r.Offer(ctx, code); ami.ErrorCode(err) == ami.CodeInvalidParameterValue { // nobody's here
			kind = "devpay"
		} else if err != nil {
			return image, err
		}
		image.ProductCodes = append(image.ProductCodes, ami.ProductCode{ID: code, Type: kind})
	}
	image.SourceImageID, image.SourceInstanceID = sourceOf(m)
	image.Bundle = &ami.BundleSource{
		ManifestDigest: pinned, IndexDigest: m.Index.Digest, ContentDigest: m.Digest, SizeBytes: m.Size,
	}
	if in.Store != "" || r.opts.ObjectStore != "" {
		image.Bundle.Store = store.URL()
	}
	image.Bundle.Signer, _ = b.Signer()
	if image.Description == "" {
		image.Description = m.Description
	}
	if in.RootDeviceName != "" {
		image.RootDeviceName = in.RootDeviceName
	}
	if in.BootMode != "" {
		if m.VirtualizationType == ami.VirtualizationParavirtual {
			return image, noBootMode()
		}
		image.BootMode = in.BootMode
	}
	boot := in.PVBoot
	if m.VirtualizationType == ami.VirtualizationParavirtual {
		boot = boot.over(ami.Image{KernelID: m.KernelID, RamdiskID: m.RamdiskID, KernelCmdline: m.KernelCmdline})
	}
	if image.VirtualizationType, boot, err = r.bootOf(ctx, m.VirtualizationType, m.Architecture, boot); err != nil {
		return image, kernelOfBundle(err, m, in)
	}
	image.KernelID, image.RamdiskID, image.KernelCmdline = boot.KernelID, boot.RamdiskID, boot.KernelCmdline
	if err := errors.Join(checkBoot(image.BootMode, image.Architecture), ami.CheckDeviceName(image.RootDeviceName)); err != nil {
		return image, err
	}
	image.BlockDeviceMappings, err = r.mappingOfBundle(ctx, m, image.RootDeviceName, in.BlockDeviceMappings)
	return image, err
}

// sameAsManifest refuses what a registration cannot change, since it is in the
// bytes of the bundle.
func sameAsManifest(m bundle.Manifest, in RegisterImageInput) error {
	var errs []error
	for _, f := range []struct{ what, said, is string }{
		{"architecture", string(in.Architecture), string(m.Architecture)},
		{"virtualization type", in.VirtualizationType, m.VirtualizationType},
	} {
		if f.said != "" && f.said != f.is {
			errs = append(errs, ami.Errorf(ami.CodeInvalidParameterCombination, "The bundle's %s is %s, not %s.", f.what, f.is, f.said))
		}
	}
	return errors.Join(errs...)
}

// kernelOfBundle says what can be done about a kernel that another region had.
func kernelOfBundle(err error, m bundle.Manifest, in RegisterImageInput) error {
	var e *ami.Error
	if errors.As(err, &e) && in.KernelID == "" && m.KernelID != "" {
		return e.WithHint("The bundle asks for it: register it here (kami kernel register), or say another one with --kernel.")
	}
	return err
}

// mappingOfBundle is the mapping of a bundle's image: the manifest's without the
// root, changed by over.
func (r *Region) mappingOfBundle(ctx context.Context, m bundle.Manifest, root string, over []ami.BlockDeviceMapping) ([]ami.BlockDeviceMapping, error) {
	isRoot := func(m ami.BlockDeviceMapping) bool { return sameDevice(m.DeviceName, root) }
	if slices.ContainsFunc(over, isRoot) {
		return nil, ami.Errorf(ami.CodeInvalidBlockDeviceMapping, "The root device %s of an instance-store image is its bundle, and is not mapped.", root)
	}
	mapping, err := launch.Merge(slices.DeleteFunc(slices.Clone(m.BlockDeviceMappings), isRoot), over, root)
	if err != nil {
		return nil, err
	}
	if mapping == nil {
		mapping = []ami.BlockDeviceMapping{}
	}
	return mapping, r.checkMapping(ctx, mapping)
}

// sourceOf is what a bundle was made of, where its manifest has ids for it.
func sourceOf(m bundle.Manifest) (image ami.ImageID, inst ami.InstanceID) {
	if id, err := ami.ParseImageID(string(m.SourceImageID)); err == nil {
		image = id
	}
	if id, err := ami.ParseInstanceID(string(m.SourceInstanceID)); err == nil {
		inst = id
	}
	return image, inst
}

// maxManifest bounds the manifest of a bundle, in bytes.
const maxManifest = 1 << 20

// manifestDigest is the digest of a bundle's manifest as it lies there now.
func manifestDigest(ctx context.Context, store object.Store, l bundle.Location) (digest.Digest, error) {
	b, err := object.ReadSmall(ctx, store, l.String(), maxManifest)
	if errors.Is(err, object.ErrNotFound) {
		err = fmt.Errorf("%w: %s", bundle.ErrNotFound, l)
	}
	return digest.Of(b), err
}

// storeOf opens the object store of an image's bundle, which is not the one that is
// configured now.
func (r *Region) storeOf(ctx context.Context, image ami.Image, opts object.Options) (object.Store, error) {
	if image.Bundle.Store == "" {
		s, err := object.OpenDir(r.path("objects"))
		return s, storeError(err, "The region's object store cannot be opened.")
	}
	s, err := object.Open(ctx, image.Bundle.Store, opts)
	return s, objectError(err, image.Bundle.Store)
}

// askQuickly is for a question that need not be answered.
func askQuickly() object.Options { return object.Options{Attempts: 1, Stall: 3 * time.Second} }

// checkRoot sees that a launch of an instance-store image has a root.
func (r *Region) checkRoot(ctx context.Context, image ami.Image) error {
	cached, err := r.isCached(ctx, bundleCacheKey(*image.Bundle))
	if err != nil {
		return err
	}
	return r.checkBundle(ctx, image, cached)
}

// checkBundle sees that an image's bundle is what was registered. With cached, its
// bytes are here already, and a store that cannot be reached is no fault.
func (r *Region) checkBundle(ctx context.Context, image ami.Image, cached bool) error {
	l, err := bundle.ParseLocation(image.ImageLocation)
	if err != nil {
		return bundleError(err, image.ImageLocation, image.Bundle.Store)
	}
	opts := object.Options{}
	if cached {
		opts = askQuickly()
	}
	store, err := r.storeOf(ctx, image, opts)
	if err != nil {
		return err
	}
	defer store.Close()
	d, err := manifestDigest(ctx, store, l)
	switch {
	case cached && errors.Is(err, object.ErrUnreachable):
		r.progress.Note("whether the bundle %s is unchanged cannot be asked; the root comes from the cache: %v", image.ImageLocation, err)
		return nil
	case errors.Is(err, bundle.ErrNotFound):
		return ami.Errorf(ami.CodeInvalidManifest, "The bundle %s of the image %s is not in %s any more.", image.ImageLocation, image.ImageID, store.URL()).
			WithHint("Put it back as it was, or deregister the image.")
	case err != nil:
		return bundleError(err, image.ImageLocation, store.URL())
	case d != image.Bundle.ManifestDigest:
		return changedBundle(image)
	}
	return nil
}

func changedBundle(image ami.Image) error {
	return ami.Errorf(ami.CodeInvalidManifest, "The bundle %s was changed since the image %s was registered of it.", image.ImageLocation, image.ImageID).
		WithHint("Deregister the image, look at the bundle (kami bundle verify %s), and register it again.", image.ImageLocation)
}
