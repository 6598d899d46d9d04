package region

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/qcow2"
)

// BlockSize is the unit of the block operations, EBS direct's, in bytes.
const BlockSize = qcow2.BlockSize

const (
	// The least and the most blocks of one page, as in EBS direct.
	minBlockResults, maxBlockResults = 100, 10000
	// blockExpiry is how long EBS direct's block tokens are good for. Ours, the
	// digests of what never changes, are good for as long as the snapshot is.
	blockExpiry = 7 * 24 * time.Hour
)

// Checksum is the SHA-256 of a block, or of several blocks' SHA-256s. As text it
// is base64, EBS direct's form.
type Checksum [sha256.Size]byte

// ParseChecksum reads a SHA-256 in base64. It returns InvalidParameterValue.
func ParseChecksum(s string) (c Checksum, err error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != len(c) {
		return c, ami.Errorf(ami.CodeInvalidParameterValue, "The checksum %q is not a SHA-256 in base64.", s).
			WithHint("It is that of the digest's %d bytes, not of its hexadecimal digits.", len(c))
	}
	return Checksum(b), nil
}

// String is the checksum in base64.
func (c Checksum) String() string { return base64.StdEncoding.EncodeToString(c[:]) }

// MarshalText is String.
func (c Checksum) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is ParseChecksum.
func (c *Checksum) UnmarshalText(b []byte) (err error) {
	*c, err = ParseChecksum(string(b))
	return err
}

// Block is one block of a snapshot. What EBS direct has a token for is here the
// block's checksum.
type Block struct {
	Index int64    `json:"BlockIndex"`
	Token Checksum `json:"BlockToken"`
}

// ChangedBlock is a block in which two snapshots differ.
type ChangedBlock struct {
	Index  int64    `json:"BlockIndex"`
	First  Checksum `json:"FirstBlockToken,omitzero"`  // zero: the snapshot has nothing there
	Second Checksum `json:"SecondBlockToken,omitzero"` // likewise
}

// BlocksInput asks for a page of a list of blocks.
type BlocksInput struct {
	NextToken          string // of the page before; "" begins
	MaxResults         int    // 0 is 10,000, the most; fewer than 100 are taken for 100
	StartingBlockIndex int64  // where to begin; NextToken goes before it
}

// BlocksPage is what each page of a list of blocks says.
type BlocksPage struct {
	ExpiryTime time.Time `json:"ExpiryTime"` // of the tokens, for EBS direct's sake: they do not expire
	VolumeSize int64     `json:"VolumeSize"` // GiB
	BlockSize  int64     `json:"BlockSize"`  // bytes
	NextToken  string    `json:"NextToken,omitempty"`
}

// SnapshotBlocks is a page of the blocks of a snapshot, in order.
type SnapshotBlocks struct {
	Blocks []Block `json:"Blocks"`
	BlocksPage
}

// ChangedBlocks is a page of the blocks in which a second snapshot differs from a
// first one, in order.
type ChangedBlocks struct {
	Blocks []ChangedBlock `json:"ChangedBlocks"`
	BlocksPage
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
	snap, err := r.readable(ctx, id)
	if err != nil {
		return snap, nil, err
	}
	blocks, err := r.lists.get(snap.Layer, func() (*qcow2.Blocks, error) { return r.layers.Blocks(ctx, snap.Layer) })
	if err == nil && snap.Encrypted { // that it is known already opens it to nobody
		_, err = r.passphrase(snap.KmsKeyID)
	}
	return snap, blocks, storeError(err, "The blocks of %s cannot be read.", id)
}

// readable returns a snapshot that can be read.
func (r *Region) readable(ctx context.Context, id ami.SnapshotID) (ami.Snapshot, error) {
	snap, err := r.snapshot(ctx, id)
	if err != nil {
		return snap, err
	}
	return snap, checkCompleted(snap)
}

// blockLists are the lists of blocks that were read last, by layer, whose blocks
// never change. Who reads a snapshot, or compares two, asks for the same ones all
// the time.
type blockLists struct {
	mu   sync.Mutex
	last [2]struct { // the last one first
		of   digest.Digest
		list *qcow2.Blocks
	}
}

// get returns the list of a layer, which is read if it is not known.
func (b *blockLists) get(of digest.Digest, read func() (*qcow2.Blocks, error)) (*qcow2.Blocks, error) {
	b.mu.Lock()
	for i, known := range b.last {
		if known.list != nil && known.of == of {
			b.last[0], b.last[i] = known, b.last[0]
			b.mu.Unlock()
			return known.list, nil
		}
	}
	b.mu.Unlock()
	list, err := read() // which takes its time
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last[0].of != of { // who asked at the same time may have been faster
		b.last[1] = b.last[0]
	}
	b.last[0].of, b.last[0].list = of, list
	return list, nil
}

// ListSnapshotBlocks lists the blocks of a snapshot that are not all zeros. What
// it lists never changes, so the pages always fit together.
func (r *Region) ListSnapshotBlocks(ctx context.Context, id ami.SnapshotID, in BlocksInput) (SnapshotBlocks, error) {
	at, most, err := in.page(id)
	if err != nil {
		return SnapshotBlocks{}, err
	}
	snap, blocks, err := r.completed(ctx, id)
	if err != nil {
		return SnapshotBlocks{}, err
	}
	out := SnapshotBlocks{Blocks: []Block{}, BlocksPage: newPage(snap)}
	blocks.Held(func(i int64, sum [sha256.Size]byte) bool {
		switch {
		case i < at:
		case len(out.Blocks) == most:
			out.NextToken = pageToken(i, id)
			return false
		default:
			out.Blocks = append(out.Blocks, Block{i, sum})
		}
		return true
	})
	return out, nil
}

// ListChangedBlocks lists the blocks of second that differ from those of first,
// whose lineage does not matter. A block of second that is all zeros now is among
// them, with the checksum of zeros. Behind the end of second there are none.
func (r *Region) ListChangedBlocks(ctx context.Context, first, second ami.SnapshotID, in BlocksInput) (ChangedBlocks, error) {
	if first == "" {
		return ChangedBlocks{}, ami.Errorf(ami.CodeMissingParameter, "The request must contain the parameter firstSnapshotId.").
			WithHint("Give the snapshot to compare %s with; ListSnapshotBlocks lists all of its blocks.", second)
	}
	at, most, err := in.page(first, second)
	if err != nil {
		return ChangedBlocks{}, err
	}
	_, a, err := r.completed(ctx, first)
	if err != nil {
		return ChangedBlocks{}, err
	}
	snap, b, err := r.completed(ctx, second)
	if err != nil {
		return ChangedBlocks{}, err
	}
	out := ChangedBlocks{Blocks: []ChangedBlock{}, BlocksPage: newPage(snap)}
	for _, i := range b.Changed(a) {
		if i < at || i >= b.Len() {
			continue
		}
		if len(out.Blocks) == most {
			out.NextToken = pageToken(i, first, second)
			break
		}
		out.Blocks = append(out.Blocks, ChangedBlock{i, held(a, i), b.Get(i)})
	}
	return out, nil
}

// DiffSnapshots returns all blocks in which two snapshots differ: what changed
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

func held(b *qcow2.Blocks, i int64) Checksum {
	if i >= b.Len() || b.Zero(i) {
		return Checksum{}
	}
	return b.Get(i)
}

// GetSnapshotBlock reads one block of a snapshot, filled up with zeros at the
// disk's end, and checks it against its checksum, which it returns. token is what
// a list has for the block; a zero one is not compared. As ExportSnapshot does, it
// hands out what has product codes to who sells it alone.
func (r *Region) GetSnapshotBlock(ctx context.Context, id ami.SnapshotID, index int64, token Checksum) ([]byte, Checksum, error) {
	snap, blocks, err := r.completed(ctx, id)
	if err == nil {
		err = r.checkRead(ctx, "The snapshot "+string(id), snap.ProductCodes)
	}
	if err != nil {
		return nil, Checksum{}, err
	}
	if err := checkIndex(id, index, blocks.Len()); err != nil {
		return nil, Checksum{}, err
	}
	want := Checksum(blocks.Get(index))
	if token != (Checksum{}) && token != want {
		return nil, Checksum{}, ami.Errorf(ami.CodeInvalidParameterValue, "The block token %s is not that of the block %d of %s.", token, index, id).
			WithHint("List the blocks again: ListSnapshotBlocks and ListChangedBlocks say the tokens.")
	}
	img, err := r.layers.OpenLayer(snap.Layer)
	if err != nil {
		return nil, Checksum{}, storeError(err, "The layer of %s cannot be read.", id)
	}
	defer img.Close()
	data := make([]byte, BlockSize)
	if _, err := img.ReadAt(data, index*BlockSize); err != nil && !errors.Is(err, io.EOF) {
		return nil, Checksum{}, storeError(err, "The block %d of %s cannot be read.", index, id)
	}
	if Checksum(sha256.Sum256(data)) != want {
		return nil, Checksum{}, ami.Errorf(ami.CodeInternalError, "The block %d of %s is damaged.", index, id).
			WithHint("kami store verify says what else is.")
	}
	return data, want, nil
}

// checkIndex refuses the index of a block that a disk of so many does not have.
func checkIndex(id ami.SnapshotID, index, blocks int64) error {
	if index < 0 || index >= blocks {
		return ami.Errorf(ami.CodeInvalidParameterValue, "The snapshot %s has no block %d; it has %d.", id, index, blocks)
	}
	return nil
}

func newPage(snap ami.Snapshot) BlocksPage {
	return BlocksPage{
		ExpiryTime: time.Now().UTC().Truncate(time.Second).Add(blockExpiry), VolumeSize: snap.VolumeSize, BlockSize: BlockSize,
	}
}

// page says where a page of the list of these snapshots begins, and how many
// blocks are on it.
func (in BlocksInput) page(of ...ami.SnapshotID) (at int64, most int, err error) {
	most = max(in.MaxResults, minBlockResults)
	if in.MaxResults == 0 {
		most = maxBlockResults
	}
	if in.MaxResults < 0 || most > maxBlockResults {
		return 0, 0, ami.Errorf(ami.CodeInvalidParameterValue, "The value %d of maxResults is not from %d to %d.", in.MaxResults, minBlockResults, maxBlockResults)
	}
	if in.NextToken == "" {
		if in.StartingBlockIndex < 0 {
			return 0, 0, ami.Errorf(ami.CodeInvalidParameterValue, "The value %d of startingBlockIndex is less than 0.", in.StartingBlockIndex)
		}
		return in.StartingBlockIndex, most, nil
	}
	b, err := base64.StdEncoding.DecodeString(in.NextToken)
	if err == nil && len(b) == 16 {
		at = int64(binary.BigEndian.Uint64(b[8:]))
	}
	if in.NextToken != pageToken(at, of...) {
		return 0, 0, ami.Errorf(ami.CodeInvalidNextToken, "The page token %q is not one of this list.", in.NextToken).
			WithHint("Give the NextToken of the page before, with the same snapshots; or begin without one.")
	}
	return at, most, nil
}

// pageToken names the page of a list of these snapshots that begins at a block.
func pageToken(at int64, of ...ami.SnapshotID) string {
	var names strings.Builder
	for _, id := range of {
		names.WriteString(string(id) + "\n")
	}
	list := sha256.Sum256([]byte(names.String()))
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64(list[:8:8], uint64(at)))
}
