package region

import (
	"context"
	"errors"
	"fmt"
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

// VerifyResult is what verifying one layer found.
type VerifyResult struct {
	Layer  digest.Digest `json:"LayerDigest"`
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
			if errors.Is(err, snapshot.ErrNotFound) {
				break // verify reports it; what stands above stays alive
			}
			if err != nil {
				return nil, err
			}
			d = l.Parent
		}
	}
	return live, nil
}

// dropLayers removes a layer and its ancestors as far as nothing needs them.
func (r *Region) dropLayers(ctx context.Context, d digest.Digest) (freed int64, err error) {
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
	layers, err := r.layers.Layers(ctx)
	if err != nil {
		return plan, storeError(err, "The layers cannot be listed.")
	}
	live, err := r.refs(ctx)
	if err != nil {
		return plan, storeError(err, "The catalog cannot be read.")
	}
	var busy bool
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		leases, err := tx.Leases()
		busy = len(leases) > 0
		return err
	})
	if err != nil {
		return plan, storeError(err, "The catalog cannot be read.")
	}
	depth := map[digest.Digest]int{}
	for _, l := range layers {
		if live[l.Digest] || busy && time.Since(l.Created) < gcGrace {
			continue
		}
		plan.Layers = append(plan.Layers, l.Digest)
		plan.Bytes += l.FileSize
		depth[l.Digest] = l.Depth
	}
	// Children go before their parents.
	slices.SortStableFunc(plan.Layers, func(a, b digest.Digest) int { return depth[b] - depth[a] })
	if dry {
		return plan, nil
	}
	done := GCPlan{}
	for _, d := range plan.Layers {
		l, err := r.layers.Layer(d)
		if err == nil {
			err = r.layers.RemoveLayer(d)
		}
		if errors.Is(err, snapshot.ErrInUse) || errors.Is(err, snapshot.ErrNotFound) {
			continue
		}
		if err != nil {
			return done, storeError(err, "The layer %s cannot be removed.", d.Short())
		}
		done.Layers, done.Bytes = append(done.Layers, d), done.Bytes+l.FileSize
	}
	return done, nil
}

// VerifyStore reads every layer and compares it with its name.
func (r *Region) VerifyStore(ctx context.Context) ([]VerifyResult, error) {
	layers, err := r.layers.Layers(ctx)
	if err != nil {
		return nil, storeError(err, "The layers cannot be listed.")
	}
	harmed, err := r.imagesByLayer(ctx)
	if err != nil {
		return nil, err
	}
	out := []VerifyResult{}
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

// imagesByLayer says which images stand on each layer.
func (r *Region) imagesByLayer(ctx context.Context) (map[digest.Digest][]ami.ImageID, error) {
	out := map[digest.Digest][]ami.ImageID{}
	images, err := r.DescribeImages(ctx, DescribeInput{})
	if err != nil {
		return nil, err
	}
	for _, image := range images {
		chain, err := r.layersOf(ctx, image)
		if err != nil {
			continue // one broken image does not hide the others
		}
		for d := range chain {
			out[d] = append(out[d], image.ImageID)
		}
	}
	return out, nil
}

// layersOf returns the layers that an image stands on, with their sizes.
func (r *Region) layersOf(ctx context.Context, image ami.Image) (map[digest.Digest]int64, error) {
	out := map[digest.Digest]int64{}
	for _, m := range image.BlockDeviceMappings {
		if m.Ebs == nil || m.Ebs.SnapshotID == "" {
			continue
		}
		snap, err := r.snapshot(ctx, m.Ebs.SnapshotID)
		if err != nil {
			return out, err
		}
		for d := snap.Layer; d != ""; {
			l, err := r.layers.Layer(d)
			if err != nil {
				return out, fmt.Errorf("layer %s: %w", d.Short(), err)
			}
			out[d] = l.FileSize
			d = l.Parent
		}
	}
	return out, nil
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
	if err != nil {
		return u, storeError(err, "The catalog cannot be read.")
	}
	for _, l := range layers {
		u.Layers += l.FileSize
		if !live[l.Digest] {
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
		return err
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
