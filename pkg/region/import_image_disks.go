package region

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/disk"
	"github.com/kamivm/kami/pkg/disk/foreign"
	"github.com/kamivm/kami/pkg/snapshot"
)

// checkDisks refuses what cannot be an image's disks, and says what a person
// would wonder at later. It returns what was found on the first one, the root.
func (r *Region) checkDisks(ctx context.Context, in ImportInput, disks *foreign.Disks) (disk.Report, error) {
	file := filepath.Base(in.Source)
	if disks.Blank && in.BootMode == "" {
		return disk.Report{}, ami.Errorf(ami.CodeInvalidParameterValue,
			"%s cannot be imported: the disk is blank: all of its %d bytes are zeros.", in.Source, disks.Disks[0].Size()).
			WithHint("Look whether it is the right file. If it is to be an image all the same, say how it boots: --boot-mode legacy-bios.")
	}
	var root disk.Report
	for i, d := range disks.Disks {
		report, err := disk.Inspect(ctx, d, d.Size())
		if err == nil && report.Truncated(d.Size()) {
			err = fmt.Errorf("%w: it has %d bytes, and its partitions end at %d", foreign.ErrTruncated, d.Size(), report.Claimed)
		}
		if err == nil && d.Size() > maxVolumeGiB*gib {
			err = fmt.Errorf("a disk of %d GiB is larger than the largest volume, %d GiB", gibCeil(d.Size()), int64(maxVolumeGiB))
		}
		if err != nil && d.Name != "" {
			err = fmt.Errorf("%q: %w", d.Name, err)
		}
		if err != nil {
			return root, err
		}
		if i == 0 {
			root = report
		} else {
			r.progress.Note("%q of %s becomes the volume at %s", d.Name, file, importDevice(i))
		}
	}
	if !root.BIOSBootable && !root.UEFIBootable {
		r.progress.Note("no boot loader was found in %s: the image may not boot", file)
	}
	for _, name := range disks.Empty {
		r.progress.Note("the disk %q of %s is empty and left out: kami volume create makes one", name, file)
	}
	return root, nil
}

// importDevice is the name of an imported disk behind the root.
func importDevice(i int) string { return fmt.Sprintf("/dev/sd%c", 'a'+i) }

// relative finds the layer that the disk of a snapshot is best laid over, "" for
// none, and holds it by the snapshot's lease. Nothing of the import's own names it
// until then, and what is only a saving makes no import fail: one that goes before
// it is held is none.
func (r *Region) relative(ctx context.Context, id ami.SnapshotID, d foreign.Disk) (digest.Digest, error) {
	found, err := r.layers.Relative(ctx, d)
	if err == nil && found != "" {
		err = r.mustHold(ctx, string(id), found)
	}
	if errors.Is(err, snapshot.ErrNotFound) {
		return "", nil
	}
	if err == nil && found != "" {
		r.progress.Note("the disk is laid over the layer %s, which is like it", found.Short())
	}
	return found, err
}

// adopt makes an image of disks, the first of which is the root: all of them are
// in the image, or there is none.
//
// Such disks have no lineage. Where a layer in the store is much like one, that
// is laid over it and costs what is different, unless alone is set.
func (r *Region) adopt(ctx context.Context, image ami.Image, disks []foreign.Disk, describe string, alone bool) (ami.Image, error) {
	snaps := make([]ami.Snapshot, len(disks))
	for i, d := range disks {
		snaps[i] = r.newSnapshot("", fmt.Sprintf("%s for %s", describe, image.ImageID), d.Size(), image.Tags)
		if i == 0 {
			snaps[i].UsageOperation = image.UsageOperation
		}
	}
	j, err := r.beginImage(ctx, image, snaps)
	if err != nil {
		return ami.Image{}, err
	}
	defer j.close(ctx)
	for i, d := range disks {
		var relative digest.Digest
		if !alone {
			if relative, err = r.relative(ctx, snaps[i].SnapshotID, d); err != nil {
				return ami.Image{}, storeError(err, "The store cannot be searched for what is like the disk.")
			}
		}
		if snaps[i], err = r.fill(ctx, snaps[i], d, relative, ami.ConsistencyStopped); err != nil {
			return ami.Image{}, err
		}
		device := image.RootDeviceName
		if i > 0 {
			device = importDevice(i)
		}
		size, del := snaps[i].VolumeSize, true
		image.BlockDeviceMappings = append(image.BlockDeviceMappings, ami.BlockDeviceMapping{DeviceName: device, Ebs: &ami.EBSBlockDevice{
			SnapshotID: snaps[i].SnapshotID, VolumeSize: &size, DeleteOnTermination: &del, VolumeType: "gp3",
		}})
	}
	image.State, image.Consistency = ami.ImageAvailable, ami.ConsistencyStopped
	err = j.commit(ctx, func(tx *catalog.Tx) error {
		for i := range snaps {
			if err := finishSnapshot(tx, &snaps[i]); err != nil {
				return err
			}
		}
		return finishImage(tx, &image)
	})
	return image, storeError(err, "The image %s cannot be recorded.", image.ImageID)
}
