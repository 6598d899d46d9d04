package region

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// CreateImage makes an image of an instance: of its root and of every volume
// attached to it, all at one instant. A running instance is shut down cleanly
// and started again, unless NoReboot asks for its disks as they are.
func (r *Region) CreateImage(ctx context.Context, in CreateImageInput) (ami.Image, error) {
	inst, err := r.instance(ctx, in.InstanceID)
	if err != nil {
		return ami.Image{}, err
	}
	if err := errors.Join(checkImaged(inst), r.checkNewName(ctx, in.Name, in.Description, in.Tags)); err != nil {
		return ami.Image{}, err
	}
	state := inst.State.Name
	if state != ami.InstanceRunning && state != ami.InstanceStopped {
		return ami.Image{}, ami.Errorf(ami.CodeIncorrectInstanceState,
			"The instance '%s' is %s; an image is made of one that is running or stopped.", inst.InstanceID, state)
	}
	source, err := r.image(ctx, inst.ImageID)
	if err != nil { // deregistered since: the instance says the rest
		source = ami.Image{ImageID: inst.ImageID, BootMode: inst.BootMode, UsageOperation: inst.UsageOperation}
	}
	vols, err := r.imagedVolumes(ctx, inst, in.BlockDeviceMappings)
	if err != nil {
		return ami.Image{}, err
	}
	if err := checkRequire(in.Require); err != nil {
		return ami.Image{}, err
	}
	if in.DryRun {
		return ami.Image{}, dryRun("create the image %q of %s with %d volumes", in.Name, inst.InstanceID, len(vols))
	}

	image := r.newImage(in.Name, in.Description, in.Tags)
	image.Architecture, image.BootMode, image.RootDeviceName = inst.Architecture, inst.BootMode, inst.RootDeviceName
	image.SourceImageID, image.SourceInstanceID = inst.ImageID, inst.InstanceID
	image.VirtualizationType, image.KernelID, image.RamdiskID, image.KernelCmdline = inst.VirtualizationType, inst.KernelID, inst.RamdiskID, inst.KernelCmdline
	image.ProductCodes = ami.JoinProductCodes(inst.ProductCodes, source.ProductCodes)
	image.Tags, image.ImdsSupport, image.TpmSupport = inheritTags(image.Tags, source.Tags), source.ImdsSupport, inst.TpmSupport
	image.EnaSupport, image.SriovNetSupport = source.EnaSupport, source.SriovNetSupport
	image.SetUsage(inst.UsageOperation)
	snaps := make([]ami.Snapshot, len(vols))
	for i, v := range vols {
		describe := fmt.Sprintf("Created by CreateImage(%s) for %s", inst.InstanceID, image.ImageID)
		snaps[i] = r.newSnapshot(v.VolumeID, describe, v.SizeBytes, in.Tags)
		snaps[i].ProductCodes, snaps[i].UsageOperation = v.ProductCodes, v.UsageOperation
	}
	unlock, err := r.lockVolumes(ctx, vols)
	if err != nil {
		return ami.Image{}, err
	}
	defer unlock()
	// Nobody starts the guest while its disks are read, nor takes one that is
	// off for its reboot for one that shut itself down.
	err = r.whileLocked(ctx, inst.InstanceID, func(now ami.Instance) error {
		if now.State.Name != state {
			return incorrectState(now, "imaged", string(state))
		}
		image, err = r.imageOf(ctx, now, image, vols, snaps, in)
		return err
	})
	return image, err
}

// imageOf fills the snapshots of an instance's volumes and records the image.
// The caller holds the locks of both.
func (r *Region) imageOf(ctx context.Context, inst ami.Instance, image ami.Image, vols []ami.Volume, snaps []ami.Snapshot, in CreateImageInput) (ami.Image, error) {
	vols, err := r.reload(ctx, inst, vols)
	if err != nil {
		return ami.Image{}, err
	}
	image.BlockDeviceMappings = addedDevices(inst, in.BlockDeviceMappings) // whose snapshots are in use from now on
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		codes, err := mappedCodes(tx, image.BlockDeviceMappings)
		image.ProductCodes = ami.JoinProductCodes(image.ProductCodes, codes)
		return err
	})
	if err != nil {
		return ami.Image{}, err
	}
	j, err := r.beginImage(ctx, image, snaps)
	if err != nil {
		return ami.Image{}, err
	}
	defer j.close(ctx)

	var tracked []ami.Volume
	switch state := inst.State.Name; {
	case state == ami.InstanceRunning && in.NoReboot:
		snaps, tracked, err = r.snapshotLive(ctx, inst, vols, snaps, in.Require)
	case state == ami.InstanceRunning:
		snaps, tracked, err = r.snapshotRebooted(ctx, inst, vols, snaps, in.Require)
	default:
		snaps, tracked, err = r.snapshotStopped(ctx, vols, snaps, ami.ConsistencyStopped)
	}
	if err != nil {
		return ami.Image{}, err
	}
	if inst.CurrentBootMode == ami.BootUEFI {
		if image.UEFIData, err = r.keepNVRAM(ctx, inst); err != nil {
			return ami.Image{}, err
		}
	}
	image.State, image.Consistency = ami.ImageAvailable, snaps[0].Consistency
	image.BlockDeviceMappings = imageMapping(inst, vols, snaps, in.BlockDeviceMappings)
	err = j.commit(ctx, func(tx *catalog.Tx) error {
		for i := range snaps {
			if err := finishSnapshot(tx, &snaps[i]); err != nil {
				return err
			}
		}
		if err := putTracked(tx, tracked, snaps); err != nil {
			return err
		}
		return finishImage(tx, &image)
	})
	return image, storeError(err, "The image %s cannot be recorded.", image.ImageID)
}

// imagedVolumes returns the volumes that go into an image, root first: those
// attached, less the ephemeral ones and those that over drops with NoDevice.
func (r *Region) imagedVolumes(ctx context.Context, inst ami.Instance, over []ami.BlockDeviceMapping) ([]ami.Volume, error) {
	if err := ami.ValidateMapping(over); err != nil {
		return nil, err
	}
	if err := r.checkMapping(ctx, over); err != nil {
		return nil, err
	}
	attached := map[string]bool{}
	var vols []ami.Volume
	for _, bd := range inst.BlockDeviceMappings {
		attached[ami.DeviceKey(bd.DeviceName)] = true
		o := overOf(over, bd.DeviceName)
		if bd.Virtual != "" && bd.Virtual != ami.VirtualRoot { // of which a bundle can be made
			continue
		}
		if o >= 0 {
			m := over[o]
			switch {
			case m.NoDevice != nil && sameDevice(bd.DeviceName, inst.RootDeviceName):
				return nil, ami.Errorf(ami.CodeInvalidBlockDeviceMapping, "The root device %s cannot be left out of an image.", bd.DeviceName)
			case m.NoDevice != nil:
				continue
			case m.Ebs == nil || *m.Ebs != ami.EBSBlockDevice{DeleteOnTermination: m.Ebs.DeleteOnTermination}:
				return nil, ami.Errorf(ami.CodeInvalidBlockDeviceMapping,
					"The mapping of %s changes more than DeleteOnTermination, which is all that can change for a volume that exists.", bd.DeviceName)
			}
		}
		v, err := r.volumeRecord(ctx, bd.Ebs.VolumeID)
		if err != nil {
			return nil, err
		}
		vols = append(vols, v)
	}
	slices.SortStableFunc(vols, func(a, b ami.Volume) int { return rootFirst(inst, a) - rootFirst(inst, b) })
	if len(vols) == 0 || rootFirst(inst, vols[0]) != 0 {
		return nil, ami.Errorf(ami.CodeIncorrectState, "The instance '%s' has no volume at its root device %s.", inst.InstanceID, inst.RootDeviceName).
			WithHint("Attach one there first: kami volume attach.")
	}
	for _, m := range over {
		if !attached[ami.DeviceKey(m.DeviceName)] && m.Ebs != nil && m.Ebs.SnapshotID == "" && m.Ebs.VolumeSize == nil {
			return nil, ami.Errorf(ami.CodeInvalidBlockDeviceMapping, "The new device %s needs a snapshot or a size.", m.DeviceName)
		}
	}
	return vols, nil
}

// overOf finds the entry of over that is about a device, or -1.
func overOf(over []ami.BlockDeviceMapping, device string) int {
	return slices.IndexFunc(over, func(m ami.BlockDeviceMapping) bool { return sameDevice(m.DeviceName, device) })
}

// sameDevice says whether two names are of one device, as /dev/sda1 and sda1 are.
func sameDevice(a, b string) bool { return ami.DeviceKey(a) == ami.DeviceKey(b) }

func hasDevice(inst ami.Instance, device string) bool {
	return slices.ContainsFunc(inst.BlockDeviceMappings, func(bd ami.InstanceBlockDevice) bool {
		return sameDevice(bd.DeviceName, device)
	})
}

func rootFirst(inst ami.Instance, v ami.Volume) int {
	if len(v.Attachments) > 0 && sameDevice(v.Attachments[0].Device, inst.RootDeviceName) {
		return 0
	}
	return 1
}

// imageMapping is the new image's mapping: the snapshots in the places of their
// volumes with the instance's DeleteOnTermination, changed and added to by over.
func imageMapping(inst ami.Instance, vols []ami.Volume, snaps []ami.Snapshot, over []ami.BlockDeviceMapping) []ami.BlockDeviceMapping {
	var out []ami.BlockDeviceMapping
	for _, bd := range inst.BlockDeviceMappings {
		o := overOf(over, bd.DeviceName)
		if o >= 0 && over[o].NoDevice != nil {
			continue
		}
		if bd.Virtual != "" {
			out = append(out, ami.BlockDeviceMapping{DeviceName: bd.DeviceName, VirtualName: bd.Virtual})
			continue
		}
		i := slices.IndexFunc(vols, func(v ami.Volume) bool { return v.VolumeID == bd.Ebs.VolumeID })
		if i < 0 {
			continue
		}
		size, del := max(vols[i].Size, snaps[i].VolumeSize), bd.Ebs.DeleteOnTermination
		if o >= 0 && over[o].Ebs != nil && over[o].Ebs.DeleteOnTermination != nil {
			del = *over[o].Ebs.DeleteOnTermination
		}
		out = append(out, ami.BlockDeviceMapping{DeviceName: bd.DeviceName, Ebs: &ami.EBSBlockDevice{
			SnapshotID: snaps[i].SnapshotID, VolumeSize: &size, DeleteOnTermination: &del, VolumeType: vols[i].VolumeType,
		}})
	}
	return append(out, addedDevices(inst, over)...)
}

// addedDevices is what over adds to an instance's devices.
func addedDevices(inst ami.Instance, over []ami.BlockDeviceMapping) (out []ami.BlockDeviceMapping) {
	for _, m := range over {
		if !hasDevice(inst, m.DeviceName) && m.NoDevice == nil {
			out = append(out, m)
		}
	}
	return out
}

// inheritTags carries kami's own tags of the source image (such as the login
// user) into its descendant.
func inheritTags(tags, source []ami.Tag) []ami.Tag {
	for _, t := range source {
		if t.Key == TagDefaultUser {
			tags = withTag(tags, t.Key, t.Value)
		}
	}
	return tags
}

// lockVolume takes a volume's lock, and returns the volume as it is then.
func (r *Region) lockVolume(ctx context.Context, id ami.VolumeID) (v ami.Volume, unlock func(), err error) {
	if v, err = r.volume(ctx, id); err != nil { // whose lock nobody else has to see
		return v, nil, err
	}
	if unlock, err = r.lockVolumes(ctx, []ami.Volume{v}); err != nil {
		return v, nil, err
	}
	if v, err = r.volume(ctx, id); err != nil {
		unlock()
		return v, nil, err
	}
	return v, unlock, nil
}

// lockVolumes takes the lock of every volume, in order of their ids so that two
// commands cannot wait for each other.
func (r *Region) lockVolumes(ctx context.Context, vols []ami.Volume) (unlock func(), err error) {
	ids := make([]ami.VolumeID, len(vols))
	for i, v := range vols {
		ids[i] = v.VolumeID
	}
	slices.Sort(ids)
	var held []interface{ Unlock() error }
	unlock = func() {
		for _, l := range held {
			l.Unlock()
		}
	}
	for _, id := range ids {
		lock, err := r.layers.LockVolume(ctx, id)
		if err != nil {
			unlock()
			return nil, storeError(err, "The volume %s cannot be locked.", id)
		}
		held = append(held, lock)
	}
	return unlock, nil
}

// reload reads records again that were read before their lock was held; the
// instance must have their volumes still.
func (r *Region) reload(ctx context.Context, inst ami.Instance, vols []ami.Volume) ([]ami.Volume, error) {
	out := make([]ami.Volume, len(vols))
	for i, v := range vols {
		var err error
		if out[i], err = r.volumeRecord(ctx, v.VolumeID); err != nil {
			return nil, err
		}
		if err := checkAttached(out[i], inst.InstanceID); err != nil {
			return nil, err
		}
	}
	return out, nil
}
