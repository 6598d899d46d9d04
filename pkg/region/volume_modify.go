package region

import (
	"context"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor"
)

// ModifyVolumeInput asks for a larger volume.
type ModifyVolumeInput struct {
	VolumeID ami.VolumeID
	Size     int64 // GiB, not less than it has
	DryRun   bool
}

// VolumeModification is EC2's answer to a change of a volume.
type VolumeModification struct {
	VolumeID          ami.VolumeID `json:"VolumeId"`
	ModificationState string       `json:"ModificationState"` // completed
	OriginalSize      int64        `json:"OriginalSize"`      // GiB
	TargetSize        int64        `json:"TargetSize"`        // GiB
}

// ModifyVolume makes a volume larger, also while its guest runs and sees it
// grow. A volume never shrinks. What the guest makes of the room is its business.
func (r *Region) ModifyVolume(ctx context.Context, in ModifyVolumeInput) (VolumeModification, error) {
	fail := func(err error) (VolumeModification, error) { return VolumeModification{}, err }
	v, unlock, err := r.lockVolume(ctx, in.VolumeID)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if v, err = r.healSize(ctx, v); err != nil {
		return fail(storeError(err, "The volume %s cannot be read.", in.VolumeID))
	}
	if in.Size < v.Size || in.Size > maxVolumeGiB {
		return fail(ami.Errorf(ami.CodeInvalidParameterValue, "The size %d GiB is not from %d, which the volume has, to %d.", in.Size, v.Size, maxVolumeGiB).
			WithHint("A volume does not shrink: make a smaller one and copy what is on it."))
	}
	if in.DryRun {
		return fail(dryRun("make %s %d GiB large", v.VolumeID, in.Size))
	}
	m := VolumeModification{VolumeID: v.VolumeID, ModificationState: "completed", OriginalSize: v.Size, TargetSize: in.Size}
	size := in.Size * gib
	grow := func(guest *ami.Instance) error {
		if err := r.growHead(ctx, v, size, guest); err != nil {
			return err
		}
		return r.catalog.Update(context.WithoutCancel(ctx), func(tx *catalog.Tx) error {
			fresh, err := tx.Volume(v.VolumeID)
			if err != nil {
				return err
			}
			fresh.Size, fresh.SizeBytes = in.Size, size
			return tx.PutVolume(fresh)
		})
	}
	if len(v.Attachments) == 0 {
		return m, storeError(grow(nil), "The volume %s cannot be made larger.", v.VolumeID)
	}
	// Nobody changes the guest's power while its disk grows.
	err = r.whileLocked(ctx, v.Attachments[0].InstanceID, func(now ami.Instance) error {
		if now.State.Name == ami.InstanceStopped {
			return grow(nil)
		}
		return grow(&now)
	})
	return m, storeError(err, "The volume %s cannot be made larger.", v.VolumeID)
}

// healSize records the size that a volume's disk has, where a command that made it
// larger came to no more than that. The caller holds the volume's lock.
func (r *Region) healSize(ctx context.Context, v ami.Volume) (ami.Volume, error) {
	size, err := r.layers.HeadSize(v.VolumeID)
	if err != nil || size <= v.SizeBytes {
		return v, err
	}
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if v, err = tx.Volume(v.VolumeID); err != nil {
			return err
		}
		grown(&v, size)
		return tx.PutVolume(v)
	})
	return v, err
}

// grown makes the record of a volume as large as its disk is.
func grown(v *ami.Volume, size int64) {
	v.SizeBytes, v.Size = max(v.SizeBytes, size), max(v.Size, gibCeil(size))
}

// growHead gives a volume's disk its new size: through the hypervisor where a
// running guest has it, else in the file. Done twice it does nothing.
func (r *Region) growHead(ctx context.Context, v ami.Volume, size int64, guest *ami.Instance) error {
	if guest == nil {
		return r.layers.GrowHead(ctx, v.VolumeID, size)
	}
	driver, err := r.driver(ctx, guest.Connect)
	if err != nil {
		return err
	}
	resizer, ok := driver.(hypervisor.Resizer)
	if !ok {
		return ami.Errorf(ami.CodeUnsupportedOperation, "The driver %s cannot make the disk of a running guest larger.", driver.Name()).
			WithHint("Stop the instance first.")
	}
	return resizer.ResizeDisk(ctx, guest.InstanceID, r.layers.HeadPath(v.VolumeID), size)
}
