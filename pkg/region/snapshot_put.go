package region

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// How long a snapshot that is put together may wait for its next block.
const (
	defaultDraftTimeout = time.Hour
	minDraftTimeout     = 10 * time.Minute
	maxDraftTimeout     = 72 * time.Hour
)

// StartSnapshotInput asks for a snapshot that is put together block by block.
type StartSnapshotInput struct {
	VolumeSize       int64          // GiB
	ParentSnapshotID ami.SnapshotID // what is there where no block is put; "" for zeros
	Description      string
	Tags             []ami.Tag
	Timeout          time.Duration // between blocks, from 10 minutes to 3 days; 0 is an hour
	ClientToken      string        // the same one again gets the same snapshot; "" always gets another
}

// StartedSnapshot is a snapshot that blocks can be put to.
type StartedSnapshot struct {
	ami.Snapshot
	BlockSize        int64          `json:"BlockSize"` // bytes
	ParentSnapshotID ami.SnapshotID `json:"ParentSnapshotId,omitempty"`
}

// StartSnapshot makes a pending snapshot, to which PutSnapshotBlock puts blocks and
// which CompleteSnapshot completes. Until then it is nobody's work in particular:
// it outlives the process, and ends in error when no block came for Timeout. It
// returns IdempotentParameterMismatch for a client token that was given with
// another request.
func (r *Region) StartSnapshot(ctx context.Context, in StartSnapshotInput) (StartedSnapshot, error) {
	if in.Timeout == 0 {
		in.Timeout = defaultDraftTimeout
	}
	if err := in.check(); err != nil {
		return StartedSnapshot{}, err
	}
	snap, err := r.startOnce(ctx, in)
	if err != nil {
		return StartedSnapshot{}, storeError(err, "The snapshot cannot be started.")
	}
	return StartedSnapshot{snap, BlockSize, in.ParentSnapshotID}, nil
}

func (in StartSnapshotInput) check() error {
	errs := []error{ami.ValidateTags(in.Tags)}
	if in.VolumeSize < 1 || in.VolumeSize > maxVolumeGiB {
		errs = append(errs, ami.Errorf(ami.CodeInvalidParameterValue, "The volume size %d GiB is not from 1 to %d.", in.VolumeSize, maxVolumeGiB))
	}
	if in.Timeout < minDraftTimeout || in.Timeout > maxDraftTimeout {
		errs = append(errs, ami.Errorf(ami.CodeInvalidParameterValue, "The timeout %s is not from %s to %s.", in.Timeout, minDraftTimeout, maxDraftTimeout))
	}
	if len(in.Description) > 255 {
		errs = append(errs, ami.Errorf(ami.CodeInvalidParameterValue, "The description has %d characters; at most 255 are allowed.", len(in.Description)))
	}
	if len(in.ClientToken) > 255 || strings.ContainsFunc(in.ClientToken, func(c rune) bool { return c <= ' ' || c > '~' }) {
		errs = append(errs, ami.Errorf(ami.CodeInvalidParameterValue, "The client token %q is not of at most 255 ASCII characters that can be seen.", in.ClientToken))
	}
	return errors.Join(errs...)
}

// startSnapshot makes the record and the draft of a snapshot. remember is called
// with its id when both are there and would still be undone.
func (r *Region) startSnapshot(ctx context.Context, in StartSnapshotInput, remember func(ami.SnapshotID) error) (ami.Snapshot, error) {
	snap := r.newSnapshot("", in.Description, in.VolumeSize*gib, in.Tags)
	if in.ParentSnapshotID != "" {
		parent, err := r.ownSnapshot(ctx, in.ParentSnapshotID)
		if err == nil {
			err = in.checkParent(parent)
		}
		if err != nil {
			return snap, err
		}
	}
	j, err := r.begin(ctx, func(tx *catalog.Tx) error {
		if in.ParentSnapshotID != "" {
			parent, err := completedNow(tx, in.ParentSnapshotID)
			if err != nil {
				return err
			}
			// What it stands on so far: the layer stays, whatever becomes of the parent.
			snap.Layer = parent.Layer
			snap.ProductCodes, snap.UsageOperation = parent.ProductCodes, parent.UsageOperation
		}
		return r.putDraft(tx, snap)
	}, string(snap.SnapshotID))
	if err != nil {
		return snap, err
	}
	defer j.close(ctx)
	if err := r.layers.CreateDraft(snap.SnapshotID, snap.SizeBytes, in.Timeout); err != nil {
		return snap, err
	}
	durable.Step("snapshot.draft")
	if err := remember(snap.SnapshotID); err != nil {
		return snap, err
	}
	// No longer a job of this process: from here on the draft speaks for it.
	return snap, j.commit(ctx, func(tx *catalog.Tx) error { return finishSnapshot(tx, &snap) })
}

func (in StartSnapshotInput) checkParent(parent ami.Snapshot) error {
	switch {
	case parent.VolumeSize > in.VolumeSize:
		return ami.Errorf(ami.CodeInvalidParameterValue, "The volume size %d GiB is smaller than the parent snapshot's %d GiB.", in.VolumeSize, parent.VolumeSize)
	case parent.Encrypted: // what is put would lie in the draft for all to read
		return ami.Errorf(ami.CodeUnsupportedOperation, "The parent snapshot %s is encrypted: blocks cannot be put over it.", parent.SnapshotID).
			WithHint("Start a snapshot without a parent, and put all blocks.")
	}
	return checkCompleted(parent)
}

// PutSnapshotBlockInput is one block for a pending snapshot.
type PutSnapshotBlockInput struct {
	SnapshotID ami.SnapshotID
	BlockIndex int64
	Data       []byte // BlockSize bytes
	Checksum   Checksum
	Progress   int // of the whole, in percent; 0 says nothing
}

// PutSnapshotBlock puts a block to a snapshot that StartSnapshot made, and returns
// its checksum when it is durable. A block may be put again; the last one counts.
// Any number of goroutines and processes may put at once.
func (r *Region) PutSnapshotBlock(ctx context.Context, in PutSnapshotBlockInput) (Checksum, error) {
	if len(in.Data) != BlockSize {
		return Checksum{}, ami.Errorf(ami.CodeInvalidParameterValue, "The block has %d bytes, not %d.", len(in.Data), BlockSize)
	}
	if in.Progress < 0 || in.Progress > 100 {
		return Checksum{}, ami.Errorf(ami.CodeInvalidParameterValue, "The progress %d is not from 0 to 100.", in.Progress)
	}
	sum := Checksum(sha256.Sum256(in.Data))
	if sum != in.Checksum {
		return Checksum{}, ami.Errorf(ami.CodeInvalidParameterValue, "The block %d has the checksum %s, not %s as given.", in.BlockIndex, sum, in.Checksum).
			WithHint("It was damaged on its way: put it again.")
	}
	d, snap, err := r.draft(ctx, in.SnapshotID, (*snapshot.Draft).Share)
	if err != nil {
		return Checksum{}, err
	}
	defer d.Close()
	if err := checkIndex(in.SnapshotID, in.BlockIndex, snap.SizeBytes/BlockSize); err != nil {
		return Checksum{}, err
	}
	if err := d.Put(in.BlockIndex, in.Data, sum); err != nil {
		return Checksum{}, storeError(err, "The block %d cannot be put to %s.", in.BlockIndex, in.SnapshotID)
	}
	return sum, storeError(r.advance(ctx, snap, in.Progress), "The progress of %s cannot be recorded.", in.SnapshotID)
}

// advance records how far a pending snapshot has come. It never goes back: of
// those that put blocks at once, the last one to say so may be behind.
func (r *Region) advance(ctx context.Context, snap ami.Snapshot, percent int) error {
	isBehind := func(s ami.Snapshot) bool {
		had, err := strconv.Atoi(strings.TrimSuffix(s.Progress, "%"))
		return s.State == ami.SnapshotPending && (err != nil || had < percent)
	}
	if !isBehind(snap) {
		return nil
	}
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		now, err := tx.Snapshot(snap.SnapshotID)
		if err != nil || !isBehind(now) {
			return err
		}
		now.Progress = fmt.Sprintf("%d%%", percent)
		return tx.PutSnapshot(now)
	})
	if errors.Is(err, catalog.ErrNotFound) {
		return notFoundSnapshot(snap.SnapshotID)
	}
	return err
}

// CompleteSnapshotInput says what was put to a snapshot.
type CompleteSnapshotInput struct {
	SnapshotID         ami.SnapshotID
	ChangedBlocksCount int64    // blocks that were put, each counted once
	Checksum           Checksum // the SHA-256 over their checksums' bytes, in order of index; zero is not compared
}

// CompleteSnapshot makes a completed snapshot of what was put to it. While that is
// under way no block can be put. A completed snapshot is returned as it is. When
// it fails the snapshot stays pending, with its blocks, and waits for the next one
// as if one had just come.
func (r *Region) CompleteSnapshot(ctx context.Context, in CompleteSnapshotInput) (_ ami.Snapshot, err error) {
	d, snap, err := r.draft(ctx, in.SnapshotID, func(d *snapshot.Draft) error { return r.takeDraft(ctx, in.SnapshotID, d) })
	if snap.State == ami.SnapshotCompleted { // by this or another call
		return snap, nil
	}
	if err != nil {
		return ami.Snapshot{}, err
	}
	defer func() {
		if err != nil { // it may have taken longer than the timeout
			if terr := d.Touch(); terr != nil {
				r.progress.Note("the time of %s cannot begin anew: %v", in.SnapshotID, terr)
			}
		}
		d.Close()
	}()
	if err := d.Touch(); err != nil { // also for one that is killed
		return ami.Snapshot{}, storeError(err, "The draft of %s cannot be written.", in.SnapshotID)
	}
	blocks, err := d.Blocks()
	if err != nil {
		return ami.Snapshot{}, draftDamage(storeError(err, "The blocks of %s cannot be read.", in.SnapshotID),
			"Start another one and put all blocks to it; kami snapshot delete %s removes this one.", in.SnapshotID)
	}
	if n := int64(blocks.Len()); n != in.ChangedBlocksCount {
		return ami.Snapshot{}, ami.Errorf(ami.CodeInvalidParameterValue, "%d blocks were put to %s, not %d as given.", n, in.SnapshotID, in.ChangedBlocksCount).
			WithHint("Put what is missing. A block that was put several times counts once.")
	}
	if sum := Checksum(blocks.Checksum()); in.Checksum != (Checksum{}) && sum != in.Checksum {
		return ami.Snapshot{}, ami.Errorf(ami.CodeInvalidParameterValue, "The blocks of %s have the checksum %s, not %s as given.", in.SnapshotID, sum, in.Checksum).
			WithHint("It is the SHA-256 over the blocks' SHA-256s (as bytes, not as text) in order of their indexes.")
	}
	// Held until the record names the layer; what the draft holds stays whatever happens.
	j, err := r.begin(ctx, nil, draftPrefix+string(snap.SnapshotID))
	if err != nil {
		return ami.Snapshot{}, storeError(err, "The snapshot %s cannot be completed.", in.SnapshotID)
	}
	defer j.close(ctx)
	under := snap.Layer
	layer, err := r.writeDraft(ctx, snap, blocks)
	if err != nil {
		return ami.Snapshot{}, draftDamage(storeError(err, "The layer of %s cannot be written.", in.SnapshotID),
			"Put that block again, then complete the snapshot.")
	}
	durable.Step("snapshot.layer")
	snap.State, snap.Progress = ami.SnapshotCompleted, "100%"
	snap.Layer, snap.ContentDigest, snap.LayerBytes = layer.Digest, layer.Content, layer.FileSize
	err = j.commit(ctx, func(tx *catalog.Tx) error {
		if err := finishSnapshot(tx, &snap); err != nil {
			return err
		}
		return putGoneDraft(tx, snap.SnapshotID)
	})
	if err != nil {
		return ami.Snapshot{}, storeError(err, "The snapshot %s cannot be recorded.", in.SnapshotID)
	}
	if under == layer.Digest || under == layer.Parent {
		under = "" // it is needed
	}
	r.removeDraft(ctx, snap.SnapshotID, under)
	return snap, nil
}

// writeDraft writes the layer of what was put, over what the snapshot stands on.
func (r *Region) writeDraft(ctx context.Context, snap ami.Snapshot, blocks *snapshot.DraftBlocks) (snapshot.Layer, error) {
	var base *qcow2.Image
	if snap.Layer != "" {
		var err error
		if base, err = r.layers.OpenLayer(snap.Layer); err != nil {
			return snapshot.Layer{}, err
		}
		defer base.Close()
	}
	// The lease is the job's, not one of the snapshot's: who undoes that removes
	// the snapshot.
	lease := ami.SnapshotID(draftPrefix + string(snap.SnapshotID))
	return r.writeLayer(ctx, lease, qcow2.Patch(base, snap.SizeBytes, blocks), snap.Layer)
}

// draftDamage says what to do about a draft that is not what was put.
func draftDamage(err error, hint string, args ...any) error {
	var e *ami.Error
	if errors.Is(err, snapshot.ErrDraftDamaged) && errors.As(err, &e) {
		return e.WithHint(hint, args...)
	}
	return err
}
