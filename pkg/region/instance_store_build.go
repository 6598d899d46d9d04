package region

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/build"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/recipe"
)

// DefaultBucket is where the bundles of built images lie, unless another place was
// asked for.
const DefaultBucket = "images"

// bundleOf says which bundle a build of an instance-store image makes.
func bundleOf(in BuildInput) BundleSpec {
	return BundleSpec{
		Location: cmp.Or(in.ImageLocation, DefaultBucket+"/"+strings.ReplaceAll(in.Name, "/", "-")),
		Store:    in.Store, Name: in.Name, Description: in.Description,
	}
}

// checkBuildRoot finds what is wrong with where the root of a built image is to be.
func (r *Region) checkBuildRoot(ctx context.Context, in BuildInput) error {
	if in.RootDeviceType != "" && !slices.Contains(ami.RootDeviceTypes(), in.RootDeviceType) {
		return ami.Errorf(ami.CodeInvalidParameterValue, "The root device type %q is not one of %s.", in.RootDeviceType, strings.Join(ami.RootDeviceTypes(), " and "))
	}
	if in.RootDeviceType != ami.RootDeviceInstanceStore {
		if in.ImageLocation != "" || in.Store != "" {
			return ami.Errorf(ami.CodeInvalidParameterCombination, "The location of a bundle goes with the root device type instance-store, not with ebs.")
		}
		return nil
	}
	store, _, err := r.bundleTarget(ctx, bundleOf(in))
	if err != nil {
		return err
	}
	return store.Close()
}

// bundleBuilt packs a disk that was built and registers it. What fails after the
// bundle is complete leaves that, to be registered by hand.
func (r *Region) bundleBuilt(ctx context.Context, in BuildInput, rec recipe.Recipe, virtualization string, res build.Result, disk qcow2.Source) (ami.Image, error) {
	spec := bundleOf(in)
	store, sizes, err := r.bundleTarget(ctx, spec)
	if err != nil {
		return ami.Image{}, err
	}
	defer store.Close()
	m := bundle.Manifest{
		Name: in.Name, Description: in.Description, Architecture: res.Architecture, BootMode: res.BootMode, VirtualizationType: virtualization,
		Partition: bundle.PartitionGPT, RootDeviceName: cmp.Or(res.RootDeviceName, "/dev/sda1"),
	}
	if virtualization == ami.VirtualizationParavirtual {
		m.Partition = bundle.PartitionNone
	}
	if m, err = r.bundleManifest(ctx, spec, m); err != nil {
		return ami.Image{}, err
	}
	if _, err := r.writeBundle(ctx, store, spec, bundle.CreateInput{Source: disk, Manifest: m, ChunkSizes: sizes}); err != nil {
		return ami.Image{}, err
	}
	tags := in.Tags
	if res.DefaultUser != "" {
		tags = withTag(tags, TagDefaultUser, res.DefaultUser)
	}
	return r.registerBuilt(ctx, in, tags, rec)
}

// registerBuilt registers the bundle that a build has made.
func (r *Region) registerBuilt(ctx context.Context, in BuildInput, tags []ami.Tag, rec recipe.Recipe) (ami.Image, error) {
	return r.RegisterImage(ctx, RegisterImageInput{
		Name: in.Name, Description: in.Description, Tags: withTag(tags, TagRecipe, rec.Name), ImdsSupport: rec.ImdsSupport,
		BundleImageInput: BundleImageInput{ImageLocation: bundleOf(in).Location, Store: in.Store},
	})
}

// saveBuilder makes the image of a guest that a build has changed.
func (r *Region) saveBuilder(ctx context.Context, id ami.InstanceID, rec recipe.Recipe, in BuildInput, tags []ami.Tag) (ami.Image, error) {
	if in.RootDeviceType != ami.RootDeviceInstanceStore {
		return r.CreateImage(ctx, CreateImageInput{
			InstanceID: id, Name: in.Name, Description: in.Description, Tags: withTag(tags, TagRecipe, rec.Name),
		})
	}
	inst, err := r.instanceRecord(ctx, id)
	if err != nil {
		return ami.Image{}, err
	}
	source, err := r.image(ctx, inst.ImageID)
	if err != nil {
		return ami.Image{}, err
	}
	if _, err := r.BundleInstance(ctx, BundleInstanceInput{InstanceID: id, BundleSpec: bundleOf(in)}); err != nil {
		return ami.Image{}, err
	}
	if rec.ImdsSupport == "" {
		rec.ImdsSupport = source.ImdsSupport
	}
	return r.registerBuilt(ctx, in, inheritTags(tags, source.Tags), rec)
}
