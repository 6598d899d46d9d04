package catalog

import (
	"errors"
	"fmt"

	"github.com/kamivm/kami/pkg/ami"
)

// PutImage writes an image. It returns ErrExists when another pending or
// available image of the owner has the name.
func (tx *Tx) PutImage(i ami.Image) error {
	err := put(tx, "images", i, []string{"id", "owner", "name", "state", "created"},
		string(i.ImageID), i.OwnerID, i.Name, string(i.State), stamp(i.CreationDate))
	if err != nil {
		return err
	}
	if err := remove(tx, "image_snapshots", "image = ?", string(i.ImageID)); err != nil {
		return err
	}
	for _, m := range i.BlockDeviceMappings {
		if m.Ebs == nil || m.Ebs.SnapshotID == "" {
			continue
		}
		_, err := tx.conn.ExecContext(tx.ctx, "INSERT OR IGNORE INTO image_snapshots (image, snapshot) VALUES (?, ?)",
			string(i.ImageID), string(m.Ebs.SnapshotID))
		if err != nil {
			return fmt.Errorf("writing image_snapshots: %w", err)
		}
	}
	return tx.indexImage(i)
}

// Image reads an image. It returns ErrNotFound.
func (tx *Tx) Image(id ami.ImageID) (ami.Image, error) {
	return one[ami.Image](tx, "images", "id = ?", string(id))
}

// ImageByName reads the pending or available image of that name. It returns
// ErrNotFound.
func (tx *Tx) ImageByName(owner, name string) (ami.Image, error) {
	return one[ami.Image](tx, "images", "owner = ? AND name = ? AND state IN ('pending', 'available')", owner, name)
}

// Images reads all images, oldest first. It, and each method that reads several
// records, returns those that it can read also beside ErrDamaged.
func (tx *Tx) Images() ([]ami.Image, error) { return many[ami.Image](tx, "images", "TRUE") }

// DeleteImage deletes an image's record.
func (tx *Tx) DeleteImage(id ami.ImageID) error {
	return errors.Join(tx.unindexImage(id), remove(tx, "images", "id = ?", string(id)))
}

// PutSnapshot writes a snapshot.
func (tx *Tx) PutSnapshot(s ami.Snapshot) error {
	if err := tx.meterSnapshot(s); err != nil {
		return err
	}
	return put(tx, "snapshots", s, []string{"id", "owner", "state", "layer", "created"},
		string(s.SnapshotID), s.OwnerID, string(s.State), string(s.Layer), stamp(s.StartTime))
}

// Snapshot reads a snapshot. It returns ErrNotFound.
func (tx *Tx) Snapshot(id ami.SnapshotID) (ami.Snapshot, error) {
	return one[ami.Snapshot](tx, "snapshots", "id = ?", string(id))
}

// Snapshots reads all snapshots, oldest first.
func (tx *Tx) Snapshots() ([]ami.Snapshot, error) {
	return many[ami.Snapshot](tx, "snapshots", "TRUE")
}

// DeleteSnapshot deletes a snapshot's record.
func (tx *Tx) DeleteSnapshot(id ami.SnapshotID) error {
	return errors.Join(tx.meterGone(string(id)), remove(tx, "snapshots", "id = ?", string(id)))
}

// ImagesUsingSnapshot returns the pending, available and disabled images that map a
// snapshot.
func (tx *Tx) ImagesUsingSnapshot(id ami.SnapshotID) (ids []ami.ImageID, err error) {
	rows, err := tx.conn.QueryContext(tx.ctx, `SELECT images.id FROM image_snapshots JOIN images ON images.id = image
		WHERE snapshot = ? AND images.state IN ('pending', 'available', 'disabled') ORDER BY images.created`, string(id))
	if err != nil {
		return nil, fmt.Errorf("reading image_snapshots: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var image ami.ImageID
		if err := rows.Scan(&image); err != nil {
			return nil, fmt.Errorf("reading image_snapshots: %w", err)
		}
		ids = append(ids, image)
	}
	return ids, rows.Err()
}

// PutVolume writes a volume.
func (tx *Tx) PutVolume(v ami.Volume) error {
	var holder ami.InstanceID
	if len(v.Attachments) > 0 {
		holder = v.Attachments[0].InstanceID
	}
	if err := tx.meterVolume(v); err != nil {
		return err
	}
	return put(tx, "volumes", v, []string{"id", "owner", "instance", "layer", "created"},
		string(v.VolumeID), v.OwnerID, string(holder), string(v.Layer), stamp(v.CreateTime))
}

// Volume reads a volume. It returns ErrNotFound.
func (tx *Tx) Volume(id ami.VolumeID) (ami.Volume, error) {
	return one[ami.Volume](tx, "volumes", "id = ?", string(id))
}

// Volumes reads all volumes, oldest first.
func (tx *Tx) Volumes() ([]ami.Volume, error) { return many[ami.Volume](tx, "volumes", "TRUE") }

// VolumesOf reads the volumes that are attached to an instance.
func (tx *Tx) VolumesOf(id ami.InstanceID) ([]ami.Volume, error) {
	return many[ami.Volume](tx, "volumes", "instance = ?", string(id))
}

// DeleteVolume deletes a volume's record.
func (tx *Tx) DeleteVolume(id ami.VolumeID) error {
	return errors.Join(tx.meterGone(string(id)), remove(tx, "volumes", "id = ?", string(id)), tx.putGone(string(id)))
}

// PutInstance writes an instance.
func (tx *Tx) PutInstance(i ami.Instance) error {
	if err := tx.meterInstance(i); err != nil {
		return err
	}
	return put(tx, "instances", i, []string{"id", "owner", "image", "state", "created"},
		string(i.InstanceID), i.OwnerID, string(i.ImageID), string(i.State.Name), stamp(i.LaunchTime))
}

// Instance reads an instance. It returns ErrNotFound.
func (tx *Tx) Instance(id ami.InstanceID) (ami.Instance, error) {
	return one[ami.Instance](tx, "instances", "id = ?", string(id))
}

// Instances reads all instances, oldest first.
func (tx *Tx) Instances() ([]ami.Instance, error) {
	return many[ami.Instance](tx, "instances", "TRUE")
}

// DeleteInstance deletes an instance's record.
func (tx *Tx) DeleteInstance(id ami.InstanceID) error {
	return errors.Join(tx.meterGone(string(id)), remove(tx, "instances", "id = ?", string(id)), tx.putGone(string(id)))
}

// PutKeyPair writes a key pair. It returns ErrExists when another one of the
// owner has the name.
func (tx *Tx) PutKeyPair(k ami.KeyPair) error {
	return put(tx, "key_pairs", k, []string{"id", "owner", "name", "created"},
		string(k.KeyPairID), k.OwnerID, k.KeyName, stamp(k.CreateTime))
}

// KeyPair reads a key pair by its name. It returns ErrNotFound.
func (tx *Tx) KeyPair(owner, name string) (ami.KeyPair, error) {
	return one[ami.KeyPair](tx, "key_pairs", "owner = ? AND name = ?", owner, name)
}

// KeyPairs reads all key pairs, oldest first.
func (tx *Tx) KeyPairs() ([]ami.KeyPair, error) { return many[ami.KeyPair](tx, "key_pairs", "TRUE") }

// DeleteKeyPair deletes a key pair by its name.
func (tx *Tx) DeleteKeyPair(owner, name string) error {
	return remove(tx, "key_pairs", "owner = ? AND name = ?", owner, name)
}
