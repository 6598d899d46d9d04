package region

import (
	"errors"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// What was looked at before a record is written may be gone when it is: these
// look once more, in the transaction that writes.

func checkCompleted(snap ami.Snapshot) error {
	if snap.State != ami.SnapshotCompleted {
		return ami.Errorf(ami.CodeIncorrectState, "The snapshot %s is %s, not completed.", snap.SnapshotID, snap.State)
	}
	return nil
}

// completedNow is a snapshot as its record is now. It refuses one that is not
// there or not completed.
func completedNow(tx *catalog.Tx, id ami.SnapshotID) (ami.Snapshot, error) {
	snap, err := tx.Snapshot(id)
	if errors.Is(err, catalog.ErrNotFound) {
		return snap, notFoundSnapshot(id)
	}
	if err != nil {
		return snap, err
	}
	return snap, checkCompleted(snap)
}

// checkMapped checks every snapshot of a mapping.
func checkMapped(tx *catalog.Tx, mapping []ami.BlockDeviceMapping) error {
	for _, m := range mapping {
		if m.Ebs == nil || m.Ebs.SnapshotID == "" {
			continue
		}
		if _, err := completedNow(tx, m.Ebs.SnapshotID); err != nil {
			return err
		}
	}
	return nil
}

// checkAttached refuses a volume that an instance does not have any more.
func checkAttached(v ami.Volume, id ami.InstanceID) error {
	if len(v.Attachments) == 0 || v.Attachments[0].InstanceID != id {
		return ami.Errorf(ami.CodeIncorrectState, "The volume %s was detached from '%s' meanwhile.", v.VolumeID, id)
	}
	return nil
}

// beginVolume writes the pending record of a volume, whose snapshot must be there,
// and says on which layer it is to stand: the one that the snapshot has now, since
// its chain may have been merged after it was looked at.
//
// So the layer is always named: by the snapshot up to this commit, by the volume
// from then on. Who removes layers and looked before it saw the one, who looks
// after it sees the other, and the head can be made without a lock.
func (r *Region) beginVolume(tx *catalog.Tx, v *ami.Volume) error {
	if v.SnapshotID != "" {
		snap, err := completedNow(tx, v.SnapshotID)
		if err != nil {
			return err
		}
		v.Layer = snap.Layer
		v.ProductCodes = ami.JoinProductCodes(v.ProductCodes, snap.ProductCodes)
		v.UsageOperation = snap.UsageOperation
	}
	r.track(v)
	return tx.PutVolume(*v)
}

// finishVolume writes the finished record of a volume, with the tags that it was
// given while it was pending. One that was deleted meanwhile does not come back.
func finishVolume(tx *catalog.Tx, v *ami.Volume) error {
	now, err := tx.Volume(v.VolumeID)
	if err := stillPending(err, now.State == ami.VolumeCreating, "volume", string(v.VolumeID)); err != nil {
		return err
	}
	v.Tags = now.Tags
	return tx.PutVolume(*v)
}

// finishSnapshot is finishVolume for a snapshot.
func finishSnapshot(tx *catalog.Tx, s *ami.Snapshot) error {
	now, err := tx.Snapshot(s.SnapshotID)
	if err := stillPending(err, now.State == ami.SnapshotPending, "snapshot", string(s.SnapshotID)); err != nil {
		return err
	}
	s.Tags = now.Tags
	return tx.PutSnapshot(*s)
}

// finishImage is finishVolume for an image, after its snapshots.
func finishImage(tx *catalog.Tx, i *ami.Image) error {
	now, err := tx.Image(i.ImageID)
	if err := stillPending(err, now.State == ami.ImagePending, "image", string(i.ImageID)); err != nil {
		return err
	}
	if err := checkMapped(tx, i.BlockDeviceMappings); err != nil {
		return err
	}
	if err := tellEncrypted(tx, i.BlockDeviceMappings); err != nil {
		return err
	}
	i.Tags = now.Tags
	return tx.PutImage(*i)
}

// tellEncrypted says in an image's mapping which of its snapshots are encrypted.
func tellEncrypted(tx *catalog.Tx, mapping []ami.BlockDeviceMapping) error {
	for i, m := range mapping {
		if m.Ebs == nil || m.Ebs.SnapshotID == "" {
			continue
		}
		snap, err := tx.Snapshot(m.Ebs.SnapshotID)
		if err != nil {
			return err
		}
		if snap.Encrypted {
			ebs := *m.Ebs
			ebs.Encrypted = &snap.Encrypted
			mapping[i].Ebs = &ebs
		}
	}
	return nil
}

// stillPending turns what reading a record came to into an error unless it is
// there and pending.
func stillPending(err error, pending bool, noun, id string) error {
	if errors.Is(err, catalog.ErrNotFound) || err == nil && !pending {
		return ami.Errorf(ami.CodeIncorrectState, "The %s %s was deleted while it was being made.", noun, id)
	}
	return err
}
