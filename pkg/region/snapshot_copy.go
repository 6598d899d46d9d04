package region

import (
	"context"
	"fmt"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
)

// CopySnapshotInput asks for a copy of a snapshot.
type CopySnapshotInput struct {
	SnapshotID  ami.SnapshotID
	Description string // "" names the source
	Encrypted   *bool  // nil: as the source is
	KmsKeyID    string // id or alias; "" is the source's, or the region's own
	Tags        []ami.Tag
	DryRun      bool
}

// CopySnapshot makes a snapshot of the same content. A copy costs nothing but
// where it is encrypted anew: then all of it is written, with a data key of its
// own. What is encrypted stays so.
func (r *Region) CopySnapshot(ctx context.Context, in CopySnapshotInput) (ami.Snapshot, error) {
	if err := ami.ValidateTags(in.Tags); err != nil {
		return ami.Snapshot{}, err
	}
	from, err := r.ownSnapshot(ctx, in.SnapshotID)
	if err != nil {
		return ami.Snapshot{}, err
	}
	if err := checkCompleted(from); err != nil {
		return ami.Snapshot{}, err
	}
	key, err := r.keyFor(ctx, in.Encrypted, in.KmsKeyID, from, in.DryRun)
	if err != nil {
		return ami.Snapshot{}, err
	}
	if in.DryRun {
		return ami.Snapshot{}, dryRun("copy %s", from.SnapshotID)
	}
	if in.Description == "" {
		in.Description = fmt.Sprintf("[Copied %s]", from.SnapshotID)
	}
	snap := r.newSnapshot(from.VolumeID, in.Description, from.SizeBytes, in.Tags)
	snap.ProductCodes, snap.UsageOperation = from.ProductCodes, from.UsageOperation
	snap.Encrypted, snap.KmsKeyID = key != "", key // which nobody deletes from now on
	j, err := r.begin(ctx, func(tx *catalog.Tx) error {
		if from, err = completedNow(tx, in.SnapshotID); err != nil { // with the layer that it has now
			return err
		}
		return r.putSnapshots(tx, snap)
	}, string(snap.SnapshotID))
	if err != nil {
		return ami.Snapshot{}, storeError(err, "The snapshot cannot be recorded.")
	}
	defer j.close(ctx)
	if err := r.mustHold(ctx, string(snap.SnapshotID), from.Layer); err != nil {
		return ami.Snapshot{}, storeError(err, "The layer of %s cannot be used.", from.SnapshotID)
	}
	same, err := r.needsOnly(ctx, from, key)
	if err != nil {
		return ami.Snapshot{}, err
	}
	if same || in.KmsKeyID == "" && key == from.KmsKeyID {
		snap.State, snap.Progress, snap.Consistency = ami.SnapshotCompleted, "100%", from.Consistency
		snap.Layer, snap.ContentDigest, snap.LayerBytes = from.Layer, from.ContentDigest, from.LayerBytes
	} else if snap, err = r.encryptCopy(ctx, snap, from, key); err != nil {
		return ami.Snapshot{}, err
	}
	durable.Step("snapshot.copied")
	err = j.commit(ctx, func(tx *catalog.Tx) error { return finishSnapshot(tx, &snap) })
	return snap, storeError(err, "The snapshot %s cannot be recorded.", snap.SnapshotID)
}

// needsOnly says whether a snapshot is encrypted with a key and can be read with
// that alone: what it stands on may be plain, but needs no other one.
func (r *Region) needsOnly(ctx context.Context, snap ami.Snapshot, key string) (bool, error) {
	set, err := r.layerSet(ctx)
	if err != nil {
		return false, err
	}
	chain, _ := set.chain(snap.Layer)
	for _, d := range chain {
		if k := set[d].KeyID; k != key && k != "" {
			return false, nil
		}
	}
	return snap.KmsKeyID == key, nil
}

// encryptCopy fills snap with the content of from, encrypted with a key.
func (r *Region) encryptCopy(ctx context.Context, snap, from ami.Snapshot, key string) (ami.Snapshot, error) {
	img, err := r.layers.OpenLayer(from.Layer)
	if err != nil {
		return snap, storeError(err, "The layer of %s cannot be read.", from.SnapshotID)
	}
	defer img.Close()
	src, err := r.layers.Encrypt(qcow2.Flatten(img), key)
	if err != nil {
		return snap, storeError(err, "The key %s cannot be used.", key)
	}
	return r.fill(ctx, snap, src, "", from.Consistency)
}
