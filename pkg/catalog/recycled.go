package catalog

import "github.com/kamivm/kami/pkg/ami"

// RecoverableSnapshots reads the snapshots in the recycle bin, oldest first.
func (tx *Tx) RecoverableSnapshots() ([]ami.Snapshot, error) {
	return many[ami.Snapshot](tx, "snapshots", "state = ?", string(ami.SnapshotRecoverable))
}

// DeregisteredImages reads the deregistered images, in the recycle bin or not, oldest
// first.
func (tx *Tx) DeregisteredImages() ([]ami.Image, error) {
	return many[ami.Image](tx, "images", "state = ?", string(ami.ImageDeregistered))
}
