package region

import (
	"context"
	"errors"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// RegisterImage makes an image over snapshots that exist, or of a bundle.
func (r *Region) RegisterImage(ctx context.Context, in RegisterImageInput) (ami.Image, error) {
	if in.ImageLocation != "" {
		return r.registerBundle(ctx, in)
	}
	if in.Store != "" || in.AllowUnsigned {
		return ami.Image{}, ami.Errorf(ami.CodeInvalidParameterCombination, "An object store goes with the location of a bundle, not with snapshots.").
			WithHint("Say which bundle: --image-location BUCKET/NAME.manifest.")
	}
	if err := r.checkNewName(ctx, in.Name, in.Description, in.Tags); err != nil {
		return ami.Image{}, err
	}
	image := r.newImage(in.Name, in.Description, in.Tags)
	if in.RootDeviceName != "" {
		image.RootDeviceName = in.RootDeviceName
	}
	if in.Architecture != "" {
		image.Architecture = in.Architecture
	}
	var err error
	if image.VirtualizationType, in.PVBoot, err = r.bootOf(ctx, in.VirtualizationType, image.Architecture, in.PVBoot); err != nil {
		return ami.Image{}, err
	}
	if image.VirtualizationType == ami.VirtualizationParavirtual && in.BootMode != "" {
		return ami.Image{}, noBootMode()
	}
	image.KernelID, image.RamdiskID, image.KernelCmdline = in.KernelID, in.RamdiskID, in.KernelCmdline
	image.BootMode, image.BlockDeviceMappings, image.State = in.BootMode, slices.Clone(in.BlockDeviceMappings), ami.ImageAvailable
	image.ImdsSupport = in.ImdsSupport
	variables, err := r.registerSupport(&image, in)
	if err != nil {
		return ami.Image{}, err
	}
	if err := ami.ValidateMapping(in.BlockDeviceMappings); err != nil {
		return ami.Image{}, err
	}
	root := false
	for i, m := range image.BlockDeviceMappings {
		if m.Ebs == nil || m.Ebs.SnapshotID == "" {
			continue
		}
		if m.Ebs.Encrypted != nil || m.Ebs.KmsKeyID != "" {
			return ami.Image{}, ami.Errorf(ami.CodeInvalidBlockDeviceMapping, "The encryption of %s is its snapshot's, and cannot be set when an image is registered.", m.DeviceName).
				WithHint("Leave Encrypted away; kami snapshot copy --encrypted makes a snapshot that is.")
		}
		isRoot := sameDevice(m.DeviceName, image.RootDeviceName)
		root = root || isRoot
		snap, err := r.ownSnapshot(ctx, m.Ebs.SnapshotID)
		if err != nil {
			return ami.Image{}, err
		}
		image.ProductCodes = ami.JoinProductCodes(image.ProductCodes, snap.ProductCodes)
		ebs := *m.Ebs
		if ebs.VolumeSize == nil {
			ebs.VolumeSize = &snap.VolumeSize
		}
		if ebs.DeleteOnTermination == nil {
			ebs.DeleteOnTermination = &isRoot
		}
		image.BlockDeviceMappings[i].Ebs = &ebs
		if isRoot {
			image.SetUsage(snap.UsageOperation)
			image.Consistency = snap.Consistency
		}
	}
	if !root {
		return ami.Image{}, ami.Errorf(ami.CodeInvalidBlockDeviceMapping, "No snapshot is mapped to the root device %s.", image.RootDeviceName).
			WithHint("Map one: --block-device-mapping %s=snap-…", image.RootDeviceName)
	}
	if err := r.checkMapping(ctx, image.BlockDeviceMappings); err != nil {
		return ami.Image{}, err
	}
	if in.DryRun {
		return ami.Image{}, dryRun("register the image %q", in.Name)
	}
	err = r.keepVariables(ctx, &image, variables, func(tx *catalog.Tx) error {
		if err := errors.Join(checkMapped(tx, image.BlockDeviceMappings), checkBooted(tx, image.KernelID, image.RamdiskID)); err != nil {
			return err
		}
		if err := tellEncrypted(tx, image.BlockDeviceMappings); err != nil {
			return err
		}
		return tx.PutImage(image)
	})
	if errors.Is(err, catalog.ErrExists) {
		return ami.Image{}, duplicateName(in.Name, "")
	}
	return image, storeError(err, "The image cannot be recorded.")
}
