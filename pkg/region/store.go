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
	"github.com/kamivm/kami/pkg/snapshot"
)

// GCPlan is what collecting garbage removes, or would remove.
type GCPlan struct {
	Layers []digest.Digest `json:"Layers"`
	Bytes  int64           `json:"Bytes"`
}

// VerifyResult is what verifying one layer found, or that a record of the catalog
// is damaged.
type VerifyResult struct {
	Layer  digest.Digest `json:"LayerDigest"` // "" for a record, which Detail names
	OK     bool          `json:"Ok"`
	Detail string        `json:"Detail,omitempty"`
	Images []ami.ImageID `json:"Images"` // images that stand on it
}

// refs returns the layers that records name and, through them, stand on.
func (r *Region) refs(ctx context.Context) (map[digest.Digest]bool, error) {
	roots := map[digest.Digest]int{}
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		roots, err = tx.LayerRefs()
		return err
	})
	if err != nil {
		return nil, err
	}
	live := map[digest.Digest]bool{}
	for d := range roots {
		for d != "" && !live[d] {
			live[d] = true
			l, err := r.layers.Layer(d)
			if err != nil && !errors.Is(err, snapshot.ErrNotFound) { // which verify reports
				return nil, err
			}
			d = l.Parent
		}
	}
	return live, nil
}

// dropLayers removes a layer and its ancestors as far as nothing needs them.
func (r *Region) dropLayers(ctx context.Context, d digest.Digest) (freed int64, err error) {
	lock, err := r.lockLayers(ctx)
	if err != nil {
		return 0, err
	}
	defer lock.Unlock()
	live, err := r.refs(ctx)
	if err != nil {
		return 0, err
	}
	for d != "" && !live[d] {
		l, err := r.layers.Layer(d)
		if errors.Is(err, snapshot.ErrNotFound) {
			return freed, nil
		}
		if err != nil {
			return freed, err
		}
		if err := r.layers.RemoveLayer(d); err != nil {
			if errors.Is(err, snapshot.ErrInUse) {
				return freed, nil
			}
			return freed, err
		}
		freed += l.FileSize
		d = l.Parent
	}
	return freed, nil
}

// gcGrace keeps young layers: their record may be about to be written.
const gcGrace = 10 * time.Minute

// CollectGarbage removes the layers that no record needs. A dry run only plans.
func (r *Region) CollectGarbage(ctx context.Context, dry bool) (GCPlan, error) {
	var plan GCPlan
	lock, err := r.lockLayers(ctx)
	if err != nil {
		return plan, storeError(err, "The layers cannot be locked.")
	}
	defer lock.Unlock()
	layers, err := r.layers.Layers(ctx)
	if err != nil {
		return plan, storeError(err, "The layers cannot be listed.")
	}
	live, err := r.refs(ctx)
	if err != nil {
		return plan, storeError(err, "It cannot be told which layers are needed.")
	}
	var busy bool
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		leases, err := tx.Leases()
		busy = len(leases) > 0 || err != nil
		return r.legible(err)
	})
	if err != nil {
		return plan, storeError(err, "The catalog cannot be read.")
	}
	depth, size := map[digest.Digest]int{}, map[digest.Digest]int64{}
	for _, l := range layers {
		if live[l.Digest] || busy && time.Since(l.Created) < gcGrace {
			continue
		}
		plan.Layers = append(plan.Layers, l.Digest)
		plan.Bytes += l.FileSize
		depth[l.Digest], size[l.Digest] = l.Depth, l.FileSize
	}
	// Children go before their parents.
	slices.SortStableFunc(plan.Layers, func(a, b digest.Digest) int { return depth[b] - depth[a] })
	if dry {
		return plan, nil
	}
	done := GCPlan{}
	for _, d := range plan.Layers {
		err := r.layers.RemoveLayer(d)
		if errors.Is(err, snapshot.ErrInUse) {
			continue
		}
		if err != nil {
			return done, storeError(err, "The layer %s cannot be removed.", d.Short())
		}
		done.Layers, done.Bytes = append(done.Layers, d), done.Bytes+size[d]
	}
	return done, nil
}

// VerifyStore reads every layer and compares it with its name, and finds the
// records that cannot be read.
func (r *Region) VerifyStore(ctx context.Context) ([]VerifyResult, error) {
	layers, err := r.layers.Layers(ctx)
	if err != nil {
		return nil, storeError(err, "The layers cannot be listed.")
	}
	harmed, err := r.imagesByLayer(ctx)
	if err != nil {
		return nil, err
	}
	if layers, err = r.withMissing(ctx, layers); err != nil {
		return nil, err
	}
	out := []VerifyResult{}
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		damage, err := tx.Verify()
		for _, d := range damage {
			out = append(out, VerifyResult{Detail: d.Error()})
		}
		return err
	})
	if err != nil {
		return nil, storeError(err, "The catalog cannot be read.")
	}
	for _, l := range layers {
		step := r.progress.Step("verifying "+l.Digest.Short(), l.FileSize)
		err := r.layers.VerifyLayer(ctx, l.Digest, step)
		step.Done(err)
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		res := VerifyResult{Layer: l.Digest, OK: err == nil, Images: harmed[l.Digest]}
		if err != nil {
			res.Detail = err.Error()
		}
		out = append(out, res)
	}
	return out, nil
}

// withMissing adds the layers that records name and that are not there.
func (r *Region) withMissing(ctx context.Context, layers []snapshot.Layer) ([]snapshot.Layer, error) {
	var named map[digest.Digest]int
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		named, err = tx.LayerRefs()
		return err
	})
	if err != nil {
		return nil, storeError(err, "The catalog cannot be read.")
	}
	for _, l := range layers {
		delete(named, l.Digest)
	}
	for _, d := range slices.Sorted(maps.Keys(named)) {
		layers = append(layers, snapshot.Layer{Digest: d})
	}
	return layers, nil
}

// imagesByLayer says which images stand on each layer.
func (r *Region) imagesByLayer(ctx context.Context) (map[digest.Digest][]ami.ImageID, error) {
	out := map[digest.Digest][]ami.ImageID{}
	images, err := r.DescribeImages(ctx, DescribeInput{})
	if err != nil {
		return nil, err
	}
	for _, image := range images {
		chain, _ := r.layersOf(ctx, image) // of a broken one as far as it goes
		for d := range chain {
			out[d] = append(out[d], image.ImageID)
		}
	}
	return out, nil
}

// layersOf returns the layers that an image stands on, with their sizes; where
// one is missing or damaged, that one and those above it, and an error.
func (r *Region) layersOf(ctx context.Context, image ami.Image) (map[digest.Digest]int64, error) {
	out := map[digest.Digest]int64{}
	var errs []error
	for _, m := range image.BlockDeviceMappings {
		if m.Ebs == nil || m.Ebs.SnapshotID == "" {
			continue
		}
		snap, err := r.snapshot(ctx, m.Ebs.SnapshotID)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for d := snap.Layer; d != ""; {
			if _, seen := out[d]; seen {
				break
			}
			l, err := r.layers.Layer(d)
			out[d] = l.FileSize
			if err != nil {
				errs = append(errs, fmt.Errorf("layer %s: %w", d.Short(), err))
			}
			d = l.Parent // known also where what it stands on is broken
		}
	}
	return out, errors.Join(errs...)
}

// StoreUsage says what each image and the whole region cost on disk.
func (r *Region) StoreUsage(ctx context.Context) (StoreUsage, error) {
	var u StoreUsage
	images, err := r.DescribeImages(ctx, DescribeInput{})
	if err != nil {
		return u, err
	}
	users := map[digest.Digest]int{}
	chains := make([]map[digest.Digest]int64, len(images))
	for i, image := range images {
		chains[i], _ = r.layersOf(ctx, image) // a broken one shows what is there
		for d := range chains[i] {
			users[d]++
		}
	}
	for i, image := range images {
		c := ImageCost{ImageID: image.ImageID, Name: image.Name}
		for d, size := range chains[i] {
			c.Chain += size
			if users[d] == 1 {
				c.Unique += size
			}
		}
		for _, m := range image.BlockDeviceMappings {
			if m.Ebs != nil && m.Ebs.VolumeSize != nil {
				c.Virtual += *m.Ebs.VolumeSize * gib
			}
		}
		u.Images = append(u.Images, c)
	}
	layers, err := r.layers.Layers(ctx)
	if err != nil {
		return u, storeError(err, "The layers cannot be listed.")
	}
	live, err := r.refs(ctx)
	if err != nil { // a damaged layer does not hide the rest
		r.progress.Note("what is garbage cannot be told; kami store verify says more: %v", err)
	}
	for _, l := range layers {
		u.Layers += l.FileSize
		if live != nil && !live[l.Digest] {
			u.Garbage += l.FileSize
		}
	}
	u.Volumes, err = r.headBytes(ctx)
	return u, err
}

// headBytes is what the heads of all volumes take on disk.
func (r *Region) headBytes(ctx context.Context) (int64, error) {
	var vols []ami.Volume
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		vols, err = tx.Volumes()
		return r.legible(err)
	})
	if err != nil {
		return 0, storeError(err, "The volumes cannot be read.")
	}
	var sum int64
	for _, v := range vols {
		sum += allocated(r.layers.HeadPath(v.VolumeID))
	}
	return sum, nil
}
