package region

import (
	"context"
	"os"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// ReplaceRootInput asks for an instance's root as it was: at launch, in a
// snapshot, or in another image.
type ReplaceRootInput struct {
	InstanceID           ami.InstanceID
	SnapshotID           ami.SnapshotID // "" with no ImageID is the state at launch
	ImageID              ami.ImageID
	DeleteReplacedVolume bool
	DryRun               bool
}

// ReplaceRootTask is EC2's answer to it.
type ReplaceRootTask struct {
	InstanceID   ami.InstanceID `json:"InstanceId"`
	TaskState    string         `json:"TaskState"` // succeeded
	SnapshotID   ami.SnapshotID `json:"SnapshotId"`
	VolumeID     ami.VolumeID   `json:"VolumeId"`         // the new root
	ReplacedID   ami.VolumeID   `json:"ReplacedVolumeId"` // the old one, detached or deleted
	StartTime    time.Time      `json:"StartTime"`
	CompleteTime time.Time      `json:"CompleteTime"`
}

// ReplaceRootVolume gives an instance a fresh root volume in the place of the one
// that it has. A running instance is shut down cleanly and started again; its
// address, its identity and its other volumes stay.
func (r *Region) ReplaceRootVolume(ctx context.Context, in ReplaceRootInput) (ReplaceRootTask, error) {
	task := ReplaceRootTask{InstanceID: in.InstanceID, StartTime: time.Now().UTC().Truncate(time.Millisecond), TaskState: "succeeded"}
	inst, err := r.instance(ctx, in.InstanceID)
	if err != nil {
		return task, err
	}
	snap, err := r.rootSnapshot(ctx, inst, in)
	if err != nil {
		return task, err
	}
	if s := inst.State.Name; s != ami.InstanceRunning && s != ami.InstanceStopped {
		return task, incorrectState(inst, "given another root", "running or stopped")
	}
	if in.DryRun {
		return task, dryRun("replace the root of %s by %s", in.InstanceID, snap.SnapshotID)
	}
	task.SnapshotID = snap.SnapshotID
	err = r.whileLocked(ctx, in.InstanceID, func(now ami.Instance) (err error) {
		running := now.State.Name == ami.InstanceRunning
		if running {
			if _, err := r.powerOff(ctx, now, DefaultStopTimeout, false); err != nil {
				return err
			}
		}
		task.VolumeID, task.ReplacedID, err = r.swapRoot(ctx, now, snap, in)
		if !running {
			return err
		}
		// Also where the swap failed: then with the root that it had.
		again, ierr := r.instanceRecord(context.WithoutCancel(ctx), now.InstanceID)
		if ierr != nil {
			return ierr
		}
		if serr := r.startAgain(ctx, again); serr != nil {
			return serr
		}
		return err
	})
	task.CompleteTime = time.Now().UTC().Truncate(time.Millisecond)
	return task, storeError(err, "The root of %s cannot be replaced.", in.InstanceID)
}

// rootSnapshot finds what the new root is made of.
func (r *Region) rootSnapshot(ctx context.Context, inst ami.Instance, in ReplaceRootInput) (ami.Snapshot, error) {
	root, err := rootOf(inst)
	if err != nil {
		return ami.Snapshot{}, err
	}
	if err := checkReplaces(inst, ami.Image{}); err != nil {
		return ami.Snapshot{}, err
	}
	id := in.SnapshotID
	var through []ami.Image // which another's snapshot is read through
	switch {
	case in.SnapshotID != "" && in.ImageID != "":
		return ami.Snapshot{}, ami.Errorf(ami.CodeInvalidParameterCombination, "Give a snapshot or an image, not both.")
	case in.ImageID != "":
		image, err := r.image(ctx, in.ImageID)
		if err != nil {
			return ami.Snapshot{}, err
		}
		if err := r.checkRootImage(ctx, inst, image); err != nil {
			return ami.Snapshot{}, err
		}
		through = []ami.Image{image}
		for _, m := range image.BlockDeviceMappings {
			if sameDevice(m.DeviceName, image.RootDeviceName) && m.Ebs != nil {
				id = m.Ebs.SnapshotID
			}
		}
	case id == "":
		v, err := r.volumeRecord(ctx, root.Ebs.VolumeID)
		if err != nil {
			return ami.Snapshot{}, err
		}
		id = v.SnapshotID
		if image, err := r.image(ctx, inst.ImageID); err == nil { // without it the snapshot has to be one's own
			through = []ami.Image{image}
		}
	}
	snap, err := r.snapshot(ctx, id, through...)
	if err == nil {
		err = checkCompleted(snap)
	}
	for _, image := range through {
		snap.ProductCodes = ami.JoinProductCodes(snap.ProductCodes, image.ProductCodes)
	}
	if err == nil {
		err = r.catalog.View(ctx, func(tx *catalog.Tx) error { return r.checkFreshRoot(tx, in, &snap) })
	}
	return snap, storeError(err, "The product codes of %s cannot be read.", id)
}

// checkRootImage refuses an image that is not to be launched, or whose root is of
// another kind than the instance's.
func (r *Region) checkRootImage(ctx context.Context, inst ami.Instance, image ami.Image) error {
	differ := func(is, has string) error {
		return ami.Errorf(ami.CodeInvalidParameterCombination, "The image %s is %s, and the instance is %s.", image.ImageID, is, has)
	}
	if err := checkReplaces(inst, image); err != nil {
		return err
	}
	switch {
	case image.State != ami.ImageAvailable:
		return notAvailable(image)
	case image.VirtualizationType != inst.VirtualizationType:
		return differ(image.VirtualizationType, inst.VirtualizationType)
	case image.Architecture != inst.Architecture:
		return differ(string(image.Architecture), string(inst.Architecture))
	}
	if err := r.noteAudit(ctx, image); err != nil {
		return err
	}
	return r.checkSignedLaunch(ctx, image, nil)
}

// checkFreshRoot gives the snapshot of a root the product codes that its image has by
// now, and refuses what was taken out of use since it was looked up, or is not paid for.
// The root that the instance was launched with is.
func (r *Region) checkFreshRoot(tx *catalog.Tx, in ReplaceRootInput, snap *ami.Snapshot) error {
	if in.ImageID != "" {
		image, err := r.launchedNow(tx, in.ImageID)
		if err != nil {
			return err
		}
		snap.ProductCodes = ami.JoinProductCodes(snap.ProductCodes, image.ProductCodes)
	}
	if in.ImageID == "" && in.SnapshotID == "" {
		return nil
	}
	return r.checkSubscribed(tx, "The snapshot "+string(snap.SnapshotID), snap.ProductCodes)
}

// rootOf is the root among an instance's devices, in place.
func rootOf(inst ami.Instance) (*ami.InstanceBlockDevice, error) {
	for i, bd := range inst.BlockDeviceMappings {
		if sameDevice(bd.DeviceName, inst.RootDeviceName) {
			return &inst.BlockDeviceMappings[i], nil
		}
	}
	return nil, ami.Errorf(ami.CodeIncorrectState, "The instance '%s' has no root volume.", inst.InstanceID)
}

// swapRoot makes the new root and gives it the old one's place, in one commit.
func (r *Region) swapRoot(ctx context.Context, inst ami.Instance, snap ami.Snapshot, in ReplaceRootInput) (fresh, old ami.VolumeID, err error) {
	root, err := rootOf(inst)
	if err != nil {
		return "", "", err
	}
	unlock, err := r.lockVolumes(ctx, []ami.Volume{{VolumeID: root.Ebs.VolumeID}})
	if err != nil {
		return "", "", err
	}
	defer unlock()
	was, err := r.volumeRecord(ctx, root.Ebs.VolumeID)
	if err == nil {
		err = checkAttached(was, inst.InstanceID)
	}
	if err != nil {
		return "", "", err
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	v := ami.Volume{
		VolumeID: ami.NewVolumeID(), OwnerID: r.account, VolumeType: was.VolumeType, State: ami.VolumeCreating, CreateTime: now,
		SnapshotID: snap.SnapshotID,
		// As large as the one before, which may have grown.
		Size: max(snap.VolumeSize, was.Size), SizeBytes: max(snap.SizeBytes, was.SizeBytes), Tags: was.Tags,
	}
	// Encrypted if the old one was, or the snapshot is.
	if v.KmsKeyID = snap.KmsKeyID; v.KmsKeyID == "" {
		v.KmsKeyID = was.KmsKeyID
	}
	v.Encrypted = v.KmsKeyID != ""
	j, err := r.begin(ctx, func(tx *catalog.Tx) error {
		if err := r.checkFreshRoot(tx, in, &snap); err != nil {
			return err
		}
		v.ProductCodes = snap.ProductCodes
		return r.beginVolume(tx, &v)
	}, string(v.VolumeID))
	if err != nil {
		return "", "", err
	}
	defer j.close(ctx)
	if _, err := r.layers.CreateHead(v.VolumeID, v.SizeBytes, v.Layer, v.KmsKeyID); err != nil {
		return "", "", err
	}
	durable.Step("root.head")
	err = j.commit(ctx, func(tx *catalog.Tx) error {
		record, err := tx.Instance(inst.InstanceID)
		if err != nil {
			return err
		}
		root, err := rootOf(record)
		if err != nil {
			return err
		}
		if was, err = tx.Volume(was.VolumeID); err != nil {
			return err
		}
		if err := checkAttached(was, inst.InstanceID); err != nil {
			return err
		}
		at := was.Attachments[0]
		at.VolumeID, at.AttachTime = v.VolumeID, now
		v.Attachments, v.State = []ami.VolumeAttachment{at}, ami.VolumeInUse
		root.Ebs = ami.InstanceBlockEBS{VolumeID: v.VolumeID, DeleteOnTermination: at.DeleteOnTermination, AttachTime: now, Status: "attached"}
		record.ProductCodes = ami.JoinProductCodes(record.ProductCodes, v.ProductCodes)
		if err := tx.PutInstance(record); err != nil {
			return err
		}
		if err := finishVolume(tx, &v); err != nil {
			return err
		}
		if in.DeleteReplacedVolume {
			return tx.DeleteVolume(was.VolumeID)
		}
		was.Attachments, was.State = nil, ami.VolumeAvailable
		return tx.PutVolume(was)
	})
	if err != nil {
		return "", "", err
	}
	if in.DeleteReplacedVolume {
		err = r.removeFiles(context.WithoutCancel(ctx), "", was.VolumeID)
		os.Remove(r.lockPath(string(was.VolumeID))) // held by us, and nobody will ask for it again
	}
	return v.VolumeID, was.VolumeID, err
}

// instanceRecord is an instance as its record has it.
func (r *Region) instanceRecord(ctx context.Context, id ami.InstanceID) (inst ami.Instance, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		inst, err = tx.Instance(id)
		return err
	})
	return inst, storeError(err, "The instance %s cannot be read.", id)
}
