package region

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// lockLayers takes the sole right to remove layers, or to say that one is
// needed, so that none is removed by who has just seen that nothing needs it.
func (r *Region) lockLayers(ctx context.Context) (*durable.Lock, error) {
	return durable.AcquireLock(ctx, r.path("tmp", "layers.lock"))
}

// holdLayer notes in the lease of a job that it needs a layer, and says whether
// that is there with all it stands on. If so it stays until the job is over, or
// holds another one by that lease.
func (r *Region) holdLayer(ctx context.Context, lease string, d digest.Digest) (bool, error) {
	lock, err := r.lockLayers(ctx)
	if err != nil {
		return false, err
	}
	defer lock.Unlock()
	if _, err := r.layers.Layer(d); err != nil {
		if errors.Is(err, snapshot.ErrNotFound) {
			err = nil
		}
		return false, err
	}
	return true, r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		l := catalog.Lease{ID: lease, Holder: fmt.Sprint(os.Getpid()), Layer: d, Created: time.Now().UTC()}
		leases, _ := tx.Leases() // one that cannot be read is written anew
		if slices.ContainsFunc(leases, func(has catalog.Lease) bool { return has.ID == l.ID && has.Layer == d }) {
			return nil // and nothing has to be synced
		}
		return tx.PutLease(l)
	})
}

// mustHold is holdLayer for a layer that has to be there: it returns ErrNotFound
// where that is not.
func (r *Region) mustHold(ctx context.Context, lease string, d digest.Digest) error {
	held, err := r.holdLayer(ctx, lease, d)
	if err == nil && !held {
		err = fmt.Errorf("%w: %s, or what it stands on", snapshot.ErrNotFound, d.Short())
	}
	return err
}

// writeLayer writes the layer of a snapshot whose job is under way. Its parent
// cannot be removed meanwhile, nor the layer before its record names it.
func (r *Region) writeLayer(ctx context.Context, id ami.SnapshotID, src qcow2.Source, parent digest.Digest) (snapshot.Layer, error) {
	if parent != "" {
		if err := r.mustHold(ctx, string(id), parent); err != nil {
			return snapshot.Layer{}, err
		}
	}
	return r.makeHeld(ctx, string(id), func(ctx context.Context) (snapshot.Layer, error) {
		step := r.progress.Step(fmt.Sprintf("writing %s", id), src.Size())
		layer, err := r.layers.WriteLayer(ctx, src, parent, step)
		step.Done(err)
		return layer, err
	})
}

// makeHeld makes a layer for a job, by whose lease it is held before its record names
// it: an equal one may be there already, and just being removed.
func (r *Region) makeHeld(ctx context.Context, lease string, write func(context.Context) (snapshot.Layer, error)) (snapshot.Layer, error) {
	for try := 0; ; try++ {
		layer, err := write(ctx)
		if err != nil {
			return layer, err
		}
		held, err := r.holdLayer(ctx, lease, layer.Digest)
		if err != nil || held {
			return layer, err
		}
		if try > 2 {
			return layer, fmt.Errorf("%w: %s is removed again and again", snapshot.ErrNotFound, layer.Digest.Short())
		}
	}
}
