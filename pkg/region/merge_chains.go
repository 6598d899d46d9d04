package region

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/snapshot"
)

// A layer past snapshot.MaxDepth is written as cheaply as any other, its image is
// recorded, and its user goes on. Afterwards its chain is merged: the same
// content is written on a shorter chain, and the records that named the long one
// name the new layer from then on.
//
// What has to be switched are the snapshots, from which the next guests are
// launched, and what volumes are tracked by, on which their next layers stand:
// layers of one content are as good as each other there, since a new one is what
// differs from that content. It happens in one commit, after the new layer is
// durable and compared with the old one. Before the commit there is the long
// chain, after it the short one, and both are right. The heads of volumes stay
// where they stand: a guest may have the chain open, and only heads that were made
// between a create and its merge stand on a long one.

// MergeGrace is how long the layers stay whose place merged ones have taken: who
// has read a record just before it was switched still finds what it names.
const MergeGrace = 10 * time.Second

// MergeInput asks for chains to be merged.
type MergeInput struct {
	// Grace is how long to wait before what nothing names any more is removed.
	Grace time.Duration
	// Background leaves the work to another that already waits for its turn, and
	// will find the same.
	Background bool
}

// MergedChain is one chain that was merged.
type MergedChain struct {
	Layer     digest.Digest    `json:"LayerDigest"`
	Replaced  digest.Digest    `json:"ReplacedLayerDigest"`
	Snapshots []ami.SnapshotID `json:"SnapshotIds"`
	Before    int              `json:"LayersBefore"` // how many layers the chain had
	After     int              `json:"LayersAfter"`
	Bytes     int64            `json:"Bytes"` // of the new layer's file
}

// MergeDue says whether this Region, since it was asked last, has written a layer
// whose chain is to be merged when what it was written for is recorded.
func (r *Region) MergeDue() bool { return r.layers.LongChain() }

// MergeChains merges the chains of all snapshots that are past the limit. One
// process does so at a time and another one waits for it. It can be interrupted
// anywhere: what is merged by then is, and the rest stays as it was.
func (r *Region) MergeChains(ctx context.Context, in MergeInput) ([]MergedChain, error) {
	turn, err := r.turnToMerge(ctx, in.Background)
	if err != nil {
		return nil, storeError(err, "The chains cannot be locked.")
	}
	if turn == nil {
		return nil, nil
	}
	merged, merr := r.mergeAll(ctx)
	turn.Unlock()
	if err := r.dropMerged(ctx, merged, in.Grace); merr == nil {
		merr = err
	}
	return slices.DeleteFunc(merged, func(m MergedChain) bool { return len(m.Snapshots) == 0 }), merr
}

// turnToMerge waits until nobody else merges. There is one place to wait, and who
// holds it has not looked yet at what there is to do: in the background nobody
// waits behind it, and the lock is nil.
func (r *Region) turnToMerge(ctx context.Context, background bool) (turn *durable.Lock, err error) {
	place, free, err := durable.TryLock(r.lockPath("merge-next"))
	if err != nil || !free && background {
		return nil, err
	}
	step := r.progress.Step("waiting for another command that merges chains", 0)
	defer func() { step.Done(err) }()
	if !free {
		if place, err = durable.AcquireLock(ctx, r.lockPath("merge-next")); err != nil {
			return nil, err
		}
	}
	defer place.Unlock()
	return durable.AcquireLock(ctx, r.lockPath("merge"))
}

// mergeAll merges until nothing is left to be merged, also of what is created
// meanwhile. A chain that fails does not keep the others.
func (r *Region) mergeAll(ctx context.Context) (merged []MergedChain, err error) {
	tried := map[digest.Digest]bool{}
	for {
		long, short, lerr := r.chains(ctx)
		if lerr != nil {
			return merged, errors.Join(err, lerr)
		}
		long = slices.DeleteFunc(long, func(c chain) bool { return tried[c.Digest] })
		if len(long) == 0 {
			return merged, err
		}
		for _, c := range long {
			tried[c.Digest] = true
			m, merr := r.mergeChain(ctx, c, short)
			if ctx.Err() != nil {
				return merged, ctx.Err()
			}
			if merr != nil {
				err = errors.Join(err, storeError(merr, "The chain of %s cannot be merged.", c.snapshot.SnapshotID))
				continue
			}
			if m.Layer != "" {
				merged, short[equal{c.snapshot.ContentDigest, c.KeyID}] = append(merged, m), m.Layer
			}
		}
	}
}

// chain is a layer with one of the snapshots that name it.
type chain struct {
	snapshot.Layer
	snapshot ami.Snapshot
}

// equal is what two layers have in common of which one may stand for the other:
// their content, and the key that encrypts them, if any.
type equal struct {
	content digest.Digest
	keyID   string
}

// chains returns the layers of snapshots that are past the limit, those nearest
// to it first, and by their content those that are not.
func (r *Region) chains(ctx context.Context) (long []chain, short map[equal]digest.Digest, err error) {
	var snaps []ami.Snapshot
	err = r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		snaps, err = tx.Snapshots()
		return r.legible(err)
	})
	if err != nil {
		return nil, nil, storeError(err, "The snapshots cannot be read.")
	}
	short = map[equal]digest.Digest{}
	seen := map[digest.Digest]bool{}
	for _, s := range snaps {
		if s.State != ami.SnapshotCompleted || seen[s.Layer] {
			continue
		}
		seen[s.Layer] = true
		l, err := r.layers.Layer(s.Layer)
		switch {
		case err != nil: // verify says more
		case l.Depth > snapshot.MaxDepth:
			long = append(long, chain{l, s})
		default:
			short[equal{s.ContentDigest, l.KeyID}] = s.Layer
		}
	}
	slices.SortStableFunc(long, func(a, b chain) int { return a.Depth - b.Depth })
	return long, short, nil
}

// mergeTries is how often a merge is planned that was to stand on what went.
const mergeTries = 3

// mergeChain merges one chain and switches the records to the new layer. It does
// nothing where the layer went meanwhile, with the last of its snapshots. What went
// of short it forgets, and plans without it.
func (r *Region) mergeChain(ctx context.Context, c chain, short map[equal]digest.Digest) (MergedChain, error) {
	lease := "merge-" + c.Digest.Short()
	j, err := r.begin(ctx, nil, lease)
	if err != nil {
		return MergedChain{}, err
	}
	defer j.close(ctx)
	var layer snapshot.Layer
	for try := 1; ; try++ {
		layer, err = r.mergeOnce(ctx, lease, c, short)
		if !errors.Is(err, snapshot.ErrNotFound) {
			break
		}
		if r.hasGone(c.Digest) {
			return MergedChain{}, nil
		}
		if try == mergeTries {
			break
		}
		maps.DeleteFunc(short, func(_ equal, d digest.Digest) bool { return r.hasGone(d) })
	}
	if err != nil {
		return MergedChain{}, err
	}
	durable.Step("merge.layer")
	m := MergedChain{Layer: layer.Digest, Replaced: c.Digest, Before: c.Depth, After: layer.Depth, Bytes: layer.FileSize}
	err = j.commit(ctx, func(tx *catalog.Tx) error {
		m.Snapshots, err = r.switchLayer(tx, c.Digest, layer)
		return err
	})
	return m, err
}

// hasGone says whether a layer is not there, or not all that it stands on.
func (r *Region) hasGone(d digest.Digest) bool {
	_, err := r.layers.Layer(d)
	return errors.Is(err, snapshot.ErrNotFound)
}

// mergeOnce plans to merge a chain, does it and holds the new layer. It returns
// ErrNotFound where the chain went, or what the new layer was to stand on.
func (r *Region) mergeOnce(ctx context.Context, lease string, c chain, short map[equal]digest.Digest) (snapshot.Layer, error) {
	plan, err := r.layers.PlanMerge(c.Digest, func(l snapshot.Layer) (digest.Digest, error) {
		blocks, err := r.layers.Blocks(ctx, l.Digest)
		if err != nil {
			return "", err
		}
		return short[equal{blocks.Content(), l.KeyID}], nil
	})
	if err == nil && plan.Parent() != "" {
		err = r.mustHold(ctx, lease, plan.Parent())
	}
	if err != nil {
		return snapshot.Layer{}, err
	}
	layer, err := r.mergeLayer(ctx, c, plan)
	if err == nil {
		err = r.mustHold(ctx, lease, layer.Digest)
	}
	return layer, err
}

func (r *Region) mergeLayer(ctx context.Context, c chain, plan snapshot.Merge) (snapshot.Layer, error) {
	step := r.progress.Step(fmt.Sprintf("merging the chain of %s (%d layers)", c.snapshot.SnapshotID, c.Depth), 2*plan.Size())
	layer, err := r.layers.MergeLayer(ctx, plan, step)
	step.Done(err)
	return layer, err
}

// switchLayer has the records that name a layer name another one of its content.
func (r *Region) switchLayer(tx *catalog.Tx, old digest.Digest, layer snapshot.Layer) (ids []ami.SnapshotID, err error) {
	snaps, err := tx.Snapshots()
	if err = r.legible(err); err != nil {
		return nil, err
	}
	for _, s := range snaps {
		if s.Layer != old || s.State != ami.SnapshotCompleted {
			continue
		}
		if s.ContentDigest != layer.Content {
			return nil, fmt.Errorf("%w: %s is not the content of %s", snapshot.ErrCorrupt, layer.Content.Short(), s.SnapshotID)
		}
		s.Layer, s.LayerBytes = layer.Digest, layer.FileSize
		if err := tx.PutSnapshot(s); err != nil {
			return nil, err
		}
		ids = append(ids, s.SnapshotID)
	}
	if len(ids) == 0 {
		return nil, nil // all of them were deleted meanwhile
	}
	vols, err := tx.Volumes()
	if err = r.legible(err); err != nil {
		return nil, err
	}
	for _, v := range vols {
		if v.TrackedLayer != old {
			continue
		}
		v.TrackedLayer = layer.Digest
		if err := tx.PutVolume(v); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// dropMerged removes, after a while, the layers whose place others have taken, as
// far as nothing needs them: a head may stand on one, or a job. It does the same
// for the new ones, whose snapshots may be deleted by then. What it cannot do is
// left to kami store gc.
func (r *Region) dropMerged(ctx context.Context, merged []MergedChain, grace time.Duration) error {
	if len(merged) == 0 {
		return nil
	}
	step := r.progress.Step("letting those finish who read the old layers", 0)
	select {
	case <-ctx.Done():
	case <-time.After(grace):
	}
	step.Done(ctx.Err())
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// Those that stand on others first.
	var errs []error
	for _, m := range slices.Backward(merged) {
		for _, d := range []digest.Digest{m.Replaced, m.Layer} {
			_, err := r.dropLayers(ctx, d)
			errs = append(errs, err)
		}
	}
	return storeError(errors.Join(errs...), "The layers that were merged cannot be removed.")
}
