package region

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/launch"
)

// maxVolumeGiB is EC2's largest volume.
const maxVolumeGiB = 64 << 10

// CreateVolume makes a volume, blank or from a snapshot. It costs nothing until
// it is written to.
func (r *Region) CreateVolume(ctx context.Context, in CreateVolumeInput) (ami.Volume, error) {
	if err := ami.ValidateTags(in.Tags); err != nil {
		return ami.Volume{}, err
	}
	v := ami.Volume{
		VolumeID: ami.NewVolumeID(), OwnerID: r.account, Size: in.Size, SizeBytes: in.Size * gib,
		VolumeType: in.VolumeType, State: ami.VolumeCreating, CreateTime: time.Now().UTC().Truncate(time.Millisecond), Tags: in.Tags,
	}
	if v.VolumeType == "" {
		v.VolumeType = "gp3"
	}
	if types := []string{"standard", "gp2", "gp3", "io1", "io2", "st1", "sc1"}; !slices.Contains(types, v.VolumeType) {
		return ami.Volume{}, ami.Errorf(ami.CodeInvalidParameterValue, "The volume type %q is not one of %s.", v.VolumeType, strings.Join(types, ", "))
	}
	if in.Size < 0 || in.Size > maxVolumeGiB {
		return ami.Volume{}, ami.Errorf(ami.CodeInvalidParameterValue, "The size %d GiB is not from 1 to %d.", in.Size, maxVolumeGiB)
	}
	if in.SnapshotID == "" && in.Size == 0 {
		return ami.Volume{}, ami.Errorf(ami.CodeMissingParameter, "The request must contain the parameter size/snapshot.").
			WithHint("Give --size in GiB, or --snapshot.")
	}
	var snap ami.Snapshot
	var err error
	if in.SnapshotID != "" {
		if snap, err = r.ownSnapshot(ctx, in.SnapshotID); err != nil {
			return ami.Volume{}, err
		}
		if err := checkCompleted(snap); err != nil {
			return ami.Volume{}, err
		}
		if in.Size != 0 && in.Size < snap.VolumeSize {
			return ami.Volume{}, ami.Errorf(ami.CodeInvalidParameterValue, "The size %d GiB is smaller than the snapshot's %d GiB.", in.Size, snap.VolumeSize)
		}
		v.SnapshotID = snap.SnapshotID
		if in.Size <= snap.VolumeSize {
			v.Size, v.SizeBytes = snap.VolumeSize, snap.SizeBytes
		}
	}
	if v.KmsKeyID, err = r.keyFor(ctx, in.Encrypted, in.KmsKeyID, snap, in.DryRun); err != nil {
		return ami.Volume{}, err
	}
	v.Encrypted = v.KmsKeyID != ""
	if in.DryRun {
		return ami.Volume{}, dryRun("create a volume of %d GiB", v.Size)
	}
	j, err := r.begin(ctx, func(tx *catalog.Tx) error { return r.beginVolume(tx, &v) }, string(v.VolumeID))
	if err != nil {
		return ami.Volume{}, storeError(err, "The volume cannot be recorded.")
	}
	defer j.close(ctx)
	if _, err := r.layers.CreateHead(v.VolumeID, v.SizeBytes, v.Layer, v.KmsKeyID); err != nil {
		return ami.Volume{}, storeError(err, "The volume %s cannot be made.", v.VolumeID)
	}
	v.State = ami.VolumeAvailable
	err = j.commit(ctx, func(tx *catalog.Tx) error { return finishVolume(tx, &v) })
	return v, storeError(err, "The volume %s cannot be recorded.", v.VolumeID)
}

// DeleteVolume removes a volume that is not attached.
func (r *Region) DeleteVolume(ctx context.Context, id ami.VolumeID, dry bool) error {
	_, unlock, err := r.lockVolume(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		v, err := tx.Volume(id)
		if err != nil {
			return notFoundOr(err, notFoundVolume(id))
		}
		if len(v.Attachments) > 0 {
			return volumeInUse(v)
		}
		if dry {
			return dryRun("delete %s", id)
		}
		return tx.DeleteVolume(id)
	})
	if err != nil {
		return storeError(err, "The volume %s cannot be deleted.", id)
	}
	if err := r.removeFiles(ctx, "", id); err != nil {
		return storeError(err, "The file of %s cannot be removed.", id)
	}
	os.Remove(r.lockPath(string(id))) // held by us, and nobody will ask for it again
	return nil
}

func volumeInUse(v ami.Volume) error {
	return ami.Errorf(ami.CodeVolumeInUse, "Volume %s is currently attached to %s", v.VolumeID, v.Attachments[0].InstanceID).
		WithHint("kami volume detach %s first.", v.VolumeID)
}

// AttachVolume gives a volume to an instance, at once when it runs.
func (r *Region) AttachVolume(ctx context.Context, in AttachVolumeInput) (ami.VolumeAttachment, error) {
	fail := func(err error) (ami.VolumeAttachment, error) { return ami.VolumeAttachment{}, err }
	v, unlock, err := r.lockVolume(ctx, in.VolumeID)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	inst, err := r.instance(ctx, in.InstanceID)
	if err != nil {
		return fail(err)
	}
	if len(v.Attachments) > 0 {
		return fail(volumeInUse(v))
	}
	if v.State != ami.VolumeAvailable {
		return fail(ami.Errorf(ami.CodeIncorrectState, "Volume '%s' is in the '%s' state.", v.VolumeID, v.State))
	}
	device, err := attachable(inst, in.Device)
	if err == nil {
		err = r.checkAttachedPaid(ctx, v, inst)
	}
	if err != nil {
		return fail(err)
	}
	if in.DryRun {
		return fail(dryRun("attach %s to %s as %s", v.VolumeID, inst.InstanceID, device))
	}
	at := ami.VolumeAttachment{
		VolumeID: v.VolumeID, InstanceID: inst.InstanceID, State: "attached", AttachTime: time.Now().UTC().Truncate(time.Millisecond),
	}
	err = r.whileLocked(ctx, inst.InstanceID, func(now ami.Instance) error {
		if at.Device, err = attachable(now, in.Device); err != nil {
			return err
		}
		if err := r.checkAttachedPaid(ctx, v, now); err != nil {
			return err
		}
		if now.State.Name == ami.InstanceRunning {
			if err := r.plug(ctx, now, at.Device, v.VolumeID); err != nil {
				return err
			}
		}
		return r.catalog.Update(context.WithoutCancel(ctx), func(tx *catalog.Tx) error {
			fresh, err := tx.Instance(inst.InstanceID)
			if err != nil {
				return err
			}
			v, err := tx.Volume(v.VolumeID) // with the tags that it has by now
			if err != nil {
				return err
			}
			fresh.BlockDeviceMappings = append(fresh.BlockDeviceMappings, ami.InstanceBlockDevice{
				DeviceName: at.Device, Ebs: ami.InstanceBlockEBS{VolumeID: v.VolumeID, AttachTime: at.AttachTime, Status: "attached"},
			})
			fresh.ProductCodes = ami.JoinProductCodes(fresh.ProductCodes, v.ProductCodes)
			v.Attachments, v.State = []ami.VolumeAttachment{at}, ami.VolumeInUse
			if err := tx.PutVolume(v); err != nil {
				return err
			}
			return tx.PutInstance(fresh)
		})
	})
	return at, storeError(err, "The volume %s cannot be attached.", v.VolumeID)
}

// attachable checks that an instance can be given a volume now, and where: at
// the device that was asked for, or at the next free one.
func attachable(inst ami.Instance, want string) (string, error) {
	if s := inst.State.Name; s != ami.InstanceRunning && s != ami.InstanceStopped {
		return "", incorrectState(inst, "attached to", "running or stopped")
	}
	if want == "" {
		for c := 'f'; c <= 'p'; c++ { // EC2's recommendation for data volumes
			if d := fmt.Sprintf("/dev/sd%c", c); !hasDevice(inst, d) {
				return d, nil
			}
		}
		return "", ami.Errorf(ami.CodeResourceLimitExceeded, "The instance '%s' has no free device name.", inst.InstanceID)
	}
	if err := ami.CheckDeviceName(want); err != nil {
		return "", err
	}
	if hasDevice(inst, want) {
		return "", ami.Errorf(ami.CodeInvalidParameterValue, "Invalid value '%s' for unixDevice. Attachment point %s is already in use", want, want)
	}
	return want, nil
}

func (r *Region) plug(ctx context.Context, inst ami.Instance, device string, id ami.VolumeID) error {
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return err
	}
	plugger, ok := driver.(hypervisor.Plugger)
	if !ok {
		return ami.Errorf(ami.CodeUnsupportedOperation, "The driver %s cannot attach to a running guest.", driver.Name()).
			WithHint("Stop the instance first.")
	}
	d, err := r.planDisk(ctx, device, id)
	if err != nil {
		return err
	}
	return storeError(plugger.AttachDisk(ctx, inst.InstanceID, launch.MachineDisk(d)), "The guest does not take %s.", id)
}

// DetachVolume takes a volume from its instance.
func (r *Region) DetachVolume(ctx context.Context, id ami.VolumeID, force, dry bool) (ami.VolumeAttachment, error) {
	fail := func(err error) (ami.VolumeAttachment, error) { return ami.VolumeAttachment{}, err }
	v, unlock, err := r.lockVolume(ctx, id)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if len(v.Attachments) == 0 {
		return fail(ami.Errorf(ami.CodeIncorrectState, "Volume '%s' is in the 'available' state.", id))
	}
	at := v.Attachments[0]
	inst, err := r.instance(ctx, at.InstanceID)
	if err != nil {
		return fail(err)
	}
	if err := detachable(inst, at); err != nil {
		return fail(err)
	}
	if dry {
		return fail(dryRun("detach %s from %s", id, at.InstanceID))
	}
	err = r.whileLocked(ctx, inst.InstanceID, func(now ami.Instance) error {
		if err := detachable(now, at); err != nil {
			return err
		}
		if now.State.Name == ami.InstanceRunning {
			if err := r.unplug(ctx, now, id, force); err != nil {
				return err
			}
		}
		return r.catalog.Update(context.WithoutCancel(ctx), func(tx *catalog.Tx) error {
			fresh, err := tx.Instance(inst.InstanceID)
			if err != nil {
				return err
			}
			v, err := tx.Volume(id)
			if err != nil {
				return err
			}
			fresh.BlockDeviceMappings = slices.DeleteFunc(fresh.BlockDeviceMappings, func(bd ami.InstanceBlockDevice) bool { return bd.Ebs.VolumeID == id })
			v.Attachments, v.State = nil, ami.VolumeAvailable
			if err := tx.PutVolume(v); err != nil {
				return err
			}
			return tx.PutInstance(fresh)
		})
	})
	at.State = "detached"
	return at, storeError(err, "The volume %s cannot be detached.", id)
}

func detachable(inst ami.Instance, at ami.VolumeAttachment) error {
	if inst.State.Name == ami.InstanceRunning && ami.DeviceKey(at.Device) == ami.DeviceKey(inst.RootDeviceName) {
		return ami.Errorf(ami.CodeOperationNotPermitted, "Unable to detach root volume '%s' from instance '%s'", at.VolumeID, inst.InstanceID).
			WithHint("Stop the instance first.")
	}
	return nil
}

func (r *Region) unplug(ctx context.Context, inst ami.Instance, id ami.VolumeID, force bool) error {
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return err
	}
	plugger, ok := driver.(hypervisor.Plugger)
	if !ok {
		return ami.Errorf(ami.CodeUnsupportedOperation, "The driver %s cannot detach from a running guest.", driver.Name())
	}
	step := r.progress.Step(fmt.Sprintf("waiting until the guest of %s lets go of %s", inst.InstanceID, id), 0)
	err = plugger.DetachDisk(ctx, inst.InstanceID, r.layers.HeadPath(id))
	step.Done(err)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && !force {
		return ami.Errorf(ami.CodeIncorrectState, "The guest of '%s' does not let go of %s.", inst.InstanceID, id).
			WithHint("Unmount it in the guest and try again, stop the instance first, or use --force.")
	}
	if err != nil && force {
		// What cannot be unplugged is only detached where nobody has it open.
		busy, berr := r.layers.HeadBusy(id)
		if berr == nil && !busy {
			return nil
		}
		err = errors.Join(err, berr)
		return ami.Errorf(ami.CodeIncorrectState, "The guest of '%s' has %s open: %w", inst.InstanceID, id, err).
			WithHint("Stop the instance: kami instance stop --force %s.", inst.InstanceID)
	}
	return storeError(err, "The guest does not let go of %s.", id)
}
