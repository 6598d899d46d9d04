package region

import (
	"context"
	"errors"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

const gib = 1 << 30

func gibCeil(bytes int64) int64 { return (bytes + gib - 1) / gib }

// newImage fills in what every new image has.
func (r *Region) newImage(name, description string, tags []ami.Tag) ami.Image {
	image := ami.Image{
		ImageID: ami.NewImageID(), Name: name, Description: description, OwnerID: r.account,
		State: ami.ImagePending, CreationDate: time.Now().UTC().Truncate(time.Millisecond),
		Architecture: ami.ArchX8664, VirtualizationType: "hvm", Hypervisor: "kvm", ImageType: "machine",
		RootDeviceType: "ebs", RootDeviceName: "/dev/sda1", ImageLocation: r.account + "/" + name, Tags: tags,
	}
	image.SetUsage("")
	return image
}

// checkNewName finds a bad or used image name before any work begins.
func (r *Region) checkNewName(ctx context.Context, name, description string, tags []ami.Tag) error {
	errs := []error{ami.CheckName(name), ami.ValidateTags(tags)}
	if len(description) > 255 {
		errs = append(errs, ami.Errorf(ami.CodeInvalidParameterValue, "The description has %d characters; at most 255 are allowed.", len(description)))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var image ami.Image
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		image, err = tx.ImageByName(r.account, name)
		return err
	})
	switch {
	case err == nil:
		return duplicateName(name, image.ImageID)
	case !errors.Is(err, catalog.ErrNotFound):
		return storeError(err, "The catalog cannot be read.")
	}
	return nil
}

// checkBoot checks what an image is said to boot with and on; "" is not said.
func checkBoot(mode ami.BootMode, arch ami.Architecture) error {
	switch arch {
	case "", ami.ArchX8664, ami.ArchARM64, ami.ArchI386:
	default:
		return ami.Errorf(ami.CodeInvalidParameterValue, "The architecture %q is not one of x86_64, arm64 and i386.", arch)
	}
	if _, err := bootMode(mode, arch); err != nil {
		return err
	}
	switch {
	case arch == ami.ArchARM64 && mode != "" && mode != ami.BootUEFI:
		return ami.Errorf(ami.CodeInvalidParameterCombination, "The boot mode %s does not go with the architecture arm64, whose guests boot by UEFI alone.", mode).
			WithHint("Use the boot mode uefi, or say none.")
	case arch == ami.ArchI386 && mode == ami.BootUEFI:
		return ami.Errorf(ami.CodeInvalidParameterCombination, "The boot mode uefi does not go with the architecture i386, whose guests boot by legacy BIOS alone.").
			WithHint("Use the boot mode legacy-bios, or say none.")
	}
	return nil
}

func duplicateName(name string, id ami.ImageID) error {
	used := string(id)
	if used == "" {
		used = "another image"
	}
	return ami.Errorf(ami.CodeInvalidAMINameDuplicate, "AMI name %s is already in use by AMI %s", name, used).
		WithHint("Choose another name, or deregister that image first.")
}

// beginImage writes the pending records of an image and its snapshots; two
// commands that race for one name meet here, and one of them loses.
func (r *Region) beginImage(ctx context.Context, image ami.Image, snaps []ami.Snapshot) (*job, error) {
	ids := []string{string(image.ImageID)}
	for _, s := range snaps {
		ids = append(ids, string(s.SnapshotID))
	}
	j, err := r.begin(ctx, func(tx *catalog.Tx) error {
		if err := checkMapped(tx, image.BlockDeviceMappings); err != nil {
			return err
		}
		if err := r.putSnapshots(tx, snaps...); err != nil {
			return err
		}
		return tx.PutImage(image)
	}, ids...)
	if errors.Is(err, catalog.ErrExists) {
		return nil, duplicateName(image.Name, "")
	}
	return j, storeError(err, "The image cannot be recorded.")
}

// newSnapshot fills in a pending snapshot.
func (r *Region) newSnapshot(vol ami.VolumeID, description string, size int64, tags []ami.Tag) ami.Snapshot {
	return ami.Snapshot{
		SnapshotID: ami.NewSnapshotID(), VolumeID: vol, OwnerID: r.account, Description: description,
		State: ami.SnapshotPending, StartTime: time.Now().UTC().Truncate(time.Millisecond), Progress: "0%",
		VolumeSize: gibCeil(size), SizeBytes: size, Tags: tags,
	}
}

// fill writes the layer of a pending snapshot from src over parent and returns
// the completed record.
func (r *Region) fill(ctx context.Context, snap ami.Snapshot, src qcow2.Source, parent digest.Digest, consistency ami.Consistency) (ami.Snapshot, error) {
	layer, err := r.writeLayer(ctx, snap.SnapshotID, src, parent)
	if err != nil {
		return snap, storeError(err, "The layer of %s cannot be written.", snap.SnapshotID)
	}
	durable.Step("snapshot.layer")
	snap.State, snap.Progress = ami.SnapshotCompleted, "100%"
	snap.Layer, snap.ContentDigest, snap.LayerBytes = layer.Digest, layer.Content, layer.FileSize
	// As large as the disk is, which may have grown without its record.
	snap.SizeBytes, snap.VolumeSize = src.Size(), max(snap.VolumeSize, gibCeil(src.Size()))
	snap.Consistency = consistency
	if e, ok := src.(snapshot.Encrypted); ok && e.Encryption() != nil {
		snap.Encrypted, snap.KmsKeyID = true, e.Encryption().KeyID()
	}
	return snap, nil
}
