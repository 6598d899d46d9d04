package region

import (
	"context"
	"errors"
	"os"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/qcow2"
)

// BundleInstanceInput asks for a bundle of an instance's root disk.
type BundleInstanceInput struct {
	BundleSpec
	InstanceID ami.InstanceID
	Require    ami.Consistency // fail rather than take the disk with less; "" takes any
	Decrypt    bool            // has to be said of an encrypted volume
}

// BundleInstance packs the root disk of an instance, as it is at one instant. What
// is not said of the bundle is the instance's.
func (r *Region) BundleInstance(ctx context.Context, in BundleInstanceInput) (Bundle, error) {
	inst, err := r.instance(ctx, in.InstanceID)
	if err != nil {
		return Bundle{}, err
	}
	if s := inst.State.Name; s != ami.InstanceRunning && s != ami.InstanceStopped {
		return Bundle{}, incorrectState(inst, "bundled", "running or stopped")
	}
	if err := checkRequire(in.Require); err != nil {
		return Bundle{}, err
	}
	root, err := r.rootVolume(ctx, inst)
	if err != nil {
		return Bundle{}, err
	}
	if root.Encrypted && !in.Decrypt {
		return Bundle{}, ami.Errorf(ami.CodeOperationNotPermitted, "The volume %s is encrypted, and the bundle would not be.", root.VolumeID).
			WithHint("Say --decrypt if that is what you want.")
	}
	store, sizes, err := r.bundleTarget(ctx, in.BundleSpec)
	if err != nil {
		return Bundle{}, err
	}
	defer store.Close()
	if in.DryRun {
		return Bundle{}, dryRun("pack the root disk of %s into the bundle %q", inst.InstanceID, in.Location)
	}
	unlock, err := r.lockVolumes(ctx, []ami.Volume{root})
	if err != nil {
		return Bundle{}, err
	}
	defer unlock()
	var out Bundle
	err = r.whileLocked(ctx, inst.InstanceID, func(now ami.Instance) error {
		if now.State.Name != inst.State.Name {
			return incorrectState(now, "bundled", string(inst.State.Name))
		}
		vols, err := r.reload(ctx, now, []ami.Volume{root})
		if err != nil {
			return err
		}
		pack := func(src qcow2.Source, c ami.Consistency) (err error) {
			out, err = r.packInstance(ctx, store, in, now, src, c, sizes)
			return err
		}
		if now.State.Name == ami.InstanceRunning {
			return r.readLive(ctx, now, vols[0], in.Require, pack)
		}
		return r.readStopped(ctx, vols[0], pack)
	})
	return out, err
}

// rootVolume is the volume at an instance's root device.
func (r *Region) rootVolume(ctx context.Context, inst ami.Instance) (ami.Volume, error) {
	vols, err := r.imagedVolumes(ctx, inst, nil)
	if err != nil {
		return ami.Volume{}, err
	}
	return vols[0], nil
}

// readStopped gives fn the content of a volume that no guest writes to.
func (r *Region) readStopped(ctx context.Context, v ami.Volume, fn func(qcow2.Source, ami.Consistency) error) error {
	if err := r.checkAtRest(ctx, v.VolumeID); err != nil {
		return err
	}
	head, err := r.layers.OpenHead(v.VolumeID, v.Layer)
	if err != nil {
		return storeError(err, "The volume %s cannot be read.", v.VolumeID)
	}
	defer head.Close()
	return fn(qcow2.Flatten(head), ami.ConsistencyStopped)
}

// readLive gives fn the content of a volume at one instant, while its guest goes
// on. What is known of the volume's changes stays as it is.
func (r *Region) readLive(ctx context.Context, inst ami.Instance, v ami.Volume, require ami.Consistency, fn func(qcow2.Source, ami.Consistency) error) error {
	enc, err := r.layers.HeadEncryption(v.VolumeID)
	if err != nil {
		return storeError(err, "The volume %s cannot be read.", v.VolumeID)
	}
	disk := hypervisor.BackupDisk{Path: r.layers.HeadPath(v.VolumeID), Bitmap: v.TrackedBy}
	if disk.Key, err = r.copiesKey(enc); err != nil {
		return err
	}
	view, c, done, err := r.viewLive(ctx, inst, require, hypervisor.Backup{Disks: []hypervisor.BackupDisk{disk}})
	if err != nil {
		return err
	}
	defer done()
	dv, err := view.Disk(disk.Path)
	if err != nil {
		return storeError(err, "The volume %s cannot be read.", v.VolumeID)
	}
	err = fn(viewSource{dv, func() {}, enc}.Flat(), c)
	if err != nil && ctx.Err() != nil {
		return ctx.Err() // not that the view was closed for it
	}
	return err
}

// packInstance packs what was read, through the safety filter.
func (r *Region) packInstance(ctx context.Context, store object.Store, in BundleInstanceInput, inst ami.Instance, src qcow2.Source, c ami.Consistency, sizes bundle.ChunkSizes) (Bundle, error) {
	image, err := r.image(ctx, inst.ImageID)
	if err != nil { // deregistered since: the instance says the rest
		image = ami.Image{ImageID: inst.ImageID}
	}
	m := bundle.Manifest{
		Name: in.Name, Description: image.Description, Architecture: inst.Architecture, VirtualizationType: inst.VirtualizationType,
		BootMode: inst.BootMode, RootDeviceName: inst.RootDeviceName, BlockDeviceMappings: ephemeral(inst, image),
		KernelID: inst.KernelID, RamdiskID: inst.RamdiskID, KernelCmdline: inst.KernelCmdline,
		SourceImageID: inst.ImageID, SourceInstanceID: inst.InstanceID, Consistency: c,
		ProductCodes: ami.ProductCodeIDs(inst.ProductCodes),
	}
	if m.Name == "" {
		m.Name = bundleName(in.Location)
	}
	if in.Architecture != "" {
		m.Architecture = in.Architecture
	}
	if m, err = r.bundleManifest(ctx, in.BundleSpec, m); err != nil {
		return Bundle{}, err
	}
	if m.Partition, err = bundle.PartitionOf(ctx, src); err != nil {
		return Bundle{}, storeError(err, "The root disk of %s cannot be read.", inst.InstanceID)
	}
	scratch, err := durable.NewScratch(r.path("tmp"), "bundle")
	if err != nil {
		return Bundle{}, storeError(err, "No work folder can be made.")
	}
	defer scratch.Close()
	write := bundle.CreateInput{Source: src, Manifest: m, ChunkSizes: sizes}
	var left bundle.Left
	if !in.NoFilter || len(in.Exclude) > 0 {
		raw, err := os.OpenFile(scratch.Path("root.raw"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return Bundle{}, storeError(err, "The root disk of %s cannot be copied.", inst.InstanceID)
		}
		defer raw.Close()
		if write.Source, left, err = r.cleaned(ctx, in, inst, src, raw); err != nil {
			return Bundle{}, err
		}
		write.Packed = func() { os.Remove(raw.Name()); raw.Truncate(0) } //nolint:errcheck // it goes with its folder
	}
	b, err := r.writeBundle(ctx, store, in.BundleSpec, write)
	if left.Files > 0 {
		b.Left = &left
		r.progress.Note("the safety filter left %d files out, such as %s; --include PATTERN or --no-filter keep them", left.Files, left.Paths[0])
	}
	return b, err
}

// cleaned copies a disk to raw and takes out of it what the safety filter says.
func (r *Region) cleaned(ctx context.Context, in BundleInstanceInput, inst ami.Instance, src qcow2.Source, raw *os.File) (qcow2.Source, bundle.Left, error) {
	step := r.progress.Step("reading the root disk of "+string(inst.InstanceID), src.Size())
	err := qcow2.WriteRaw(ctx, raw, src, step.Add)
	step.Done(err)
	if err != nil {
		return nil, bundle.Left{}, storeError(err, "The root disk of %s cannot be copied.", inst.InstanceID)
	}
	step = r.progress.Step("taking out what the safety filter says", 0)
	left, err := bundle.Clean(ctx, raw, bundle.Filter{Off: in.NoFilter, Include: in.Include, Exclude: in.Exclude})
	step.Done(err)
	if errors.Is(err, bundle.ErrNotCleaned) {
		return nil, left, ami.Errorf(ami.CodeUnsupportedOperation, "%w.", err).
			WithHint("With --no-filter the disk is packed block by block, with all that is on it.")
	}
	if err != nil {
		return nil, left, templateError(err, string(inst.InstanceID))
	}
	clean, err := qcow2.RawSource(raw)
	return clean, left, storeError(err, "The root disk of %s cannot be read.", inst.InstanceID)
}

// ephemeral is the part of an instance's mapping that a bundle can carry: its
// ephemeral disks, and those of its image.
func ephemeral(inst ami.Instance, image ami.Image) (out []ami.BlockDeviceMapping) {
	seen := map[string]bool{}
	add := func(device, virtual string) {
		if virtual != "" && virtual != ami.VirtualRoot && !seen[ami.DeviceKey(device)] {
			seen[ami.DeviceKey(device)] = true
			out = append(out, ami.BlockDeviceMapping{DeviceName: device, VirtualName: virtual})
		}
	}
	for _, d := range inst.BlockDeviceMappings {
		add(d.DeviceName, d.Virtual)
	}
	for _, m := range image.BlockDeviceMappings {
		add(m.DeviceName, m.VirtualName)
	}
	return out
}
