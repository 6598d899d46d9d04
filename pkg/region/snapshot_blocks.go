package region

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/qcow2"
)

// BlockSize is the unit of the block operations, EBS direct's, in bytes.
const BlockSize = qcow2.BlockSize

// Block is one block of a snapshot.
type Block struct {
	Index  int64             `json:"BlockIndex"`
	SHA256 [sha256.Size]byte `json:"-"`
}

// ChangedBlock is a block in which two snapshots differ. A digest of zeros says
// that the snapshot has only zeros there.
type ChangedBlock struct {
	Index         int64 `json:"BlockIndex"`
	First, Second [sha256.Size]byte
}

// SnapshotDiff is how two snapshots differ.
type SnapshotDiff struct {
	First        ami.SnapshotID `json:"FirstSnapshotId"`
	Second       ami.SnapshotID `json:"SecondSnapshotId"`
	BlockSize    int64          `json:"BlockSize"`
	ChangedBytes int64          `json:"ChangedBytes"` // whole blocks
	Blocks       []ChangedBlock `json:"-"`
	Indexes      []int64        `json:"ChangedBlocks"`
}

// completed returns a snapshot that can be read and its list of blocks.
func (r *Region) completed(ctx context.Context, id ami.SnapshotID) (ami.Snapshot, *qcow2.Blocks, error) {
	snap, err := r.snapshot(ctx, id)
	if err != nil {
		return snap, nil, err
	}
	if snap.State != ami.SnapshotCompleted {
		return snap, nil, ami.Errorf(ami.CodeIncorrectState, "The snapshot %s is %s, not completed.", id, snap.State)
	}
	blocks, err := r.layers.Blocks(ctx, snap.Layer)
	return snap, blocks, storeError(err, "The blocks of %s cannot be read.", id)
}

// ListSnapshotBlocks returns the blocks of a snapshot that hold data, from index
// start on, at most limit of them (0 for all).
func (r *Region) ListSnapshotBlocks(ctx context.Context, id ami.SnapshotID, start int64, limit int) ([]Block, error) {
	_, blocks, err := r.completed(ctx, id)
	if err != nil {
		return nil, err
	}
	var out []Block
	blocks.Held(func(i int64, sum [sha256.Size]byte) bool {
		if i >= start {
			out = append(out, Block{i, sum})
		}
		return limit <= 0 || len(out) < limit
	})
	return out, nil
}

// DiffSnapshots returns the blocks in which two snapshots differ: what changed
// from the first to the second. Their lineage does not matter.
func (r *Region) DiffSnapshots(ctx context.Context, first, second ami.SnapshotID) (SnapshotDiff, error) {
	_, a, err := r.completed(ctx, first)
	if err != nil {
		return SnapshotDiff{}, err
	}
	_, b, err := r.completed(ctx, second)
	if err != nil {
		return SnapshotDiff{}, err
	}
	d := SnapshotDiff{First: first, Second: second, BlockSize: BlockSize, Indexes: b.Changed(a)}
	if d.Indexes == nil {
		d.Indexes = []int64{}
	}
	for _, i := range d.Indexes {
		d.Blocks = append(d.Blocks, ChangedBlock{i, held(a, i), held(b, i)})
	}
	d.ChangedBytes = int64(len(d.Indexes)) * BlockSize
	return d, nil
}

func held(b *qcow2.Blocks, i int64) [sha256.Size]byte {
	if i >= b.Len() || b.Zero(i) {
		return [sha256.Size]byte{}
	}
	return b.Get(i)
}

// GetSnapshotBlock reads one block of a snapshot, filled up with zeros at the
// disk's end, and checks it against its digest.
func (r *Region) GetSnapshotBlock(ctx context.Context, id ami.SnapshotID, index int64) ([]byte, [sha256.Size]byte, error) {
	snap, blocks, err := r.completed(ctx, id)
	if err != nil {
		return nil, [sha256.Size]byte{}, err
	}
	if index < 0 || index >= blocks.Len() {
		return nil, [sha256.Size]byte{}, ami.Errorf(ami.CodeInvalidParameterValue, "The snapshot %s has no block %d; it has %d.", id, index, blocks.Len())
	}
	img, err := r.layers.OpenLayer(snap.Layer)
	if err != nil {
		return nil, [sha256.Size]byte{}, storeError(err, "The layer of %s cannot be read.", id)
	}
	defer img.Close()
	data := make([]byte, BlockSize)
	if _, err := img.ReadAt(data, index*BlockSize); err != nil && !errors.Is(err, io.EOF) {
		return nil, [sha256.Size]byte{}, storeError(err, "The block %d of %s cannot be read.", index, id)
	}
	sum := sha256.Sum256(data)
	if sum != blocks.Get(index) {
		return nil, sum, ami.Errorf(ami.CodeInternalError, "The block %d of %s is damaged.", index, id).
			WithHint("kami store verify says what else is.")
	}
	return data, sum, nil
}
