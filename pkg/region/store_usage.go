package region

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
)

// StoreUsage says what each image that the caller may see, and the whole region,
// cost on disk.
func (r *Region) StoreUsage(ctx context.Context) (StoreUsage, error) {
	var u StoreUsage
	shown, err := r.DescribeImages(ctx, DescribeInput{IncludeDeprecated: true, IncludeDisabled: true})
	if err != nil {
		return u, err
	}
	all, err := r.readRecords(ctx)
	if err != nil {
		return u, err
	}
	if err := r.legible(errors.Join(all.damage...)); err != nil {
		return u, err
	}
	set, err := r.layerSet(ctx)
	if err != nil {
		return u, err
	}
	named, err := r.named(ctx)
	if err != nil {
		return u, err
	}
	l := newLedger(set, all, named)
	if len(l.broken) > 0 { // a damaged layer does not hide the rest
		r.progress.Note("what is garbage cannot be told: %v", cannotTell(l.broken))
	}
	for d, layer := range set {
		u.Layers += layer.FileSize
		if len(l.broken) == 0 && !l.needed[d] {
			u.Garbage += layer.FileSize
		}
	}
	u.Bin = l.binBytes(named)
	if u.Cache, err = r.cacheBytes(ctx, set); err != nil {
		return u, err
	}
	orphans, err := r.orphanObjects(ctx, false)
	if err != nil {
		return u, err
	}
	objects, err := r.objects()
	if err != nil {
		return u, err
	}
	for _, d := range objects {
		u.Objects += r.sizeOf(filepath.Join("objects", d.Hex()))
	}
	for _, o := range orphans {
		if o.why == "" {
			u.Garbage += o.Bytes
		}
	}
	for _, v := range all.volumes {
		u.Volumes += allocated(r.layers.HeadPath(v.VolumeID))
	}
	for _, image := range shown {
		u.Images = append(u.Images, l.cost(image))
	}
	return u, nil
}

// ledger says who needs which layer.
type ledger struct {
	set     layerSet
	all     records
	images  map[digest.Digest]int  // images that stand on each layer
	mapping map[ami.SnapshotID]int // images that map each snapshot
	bundles map[string]int         // images of each bundle, by the key of its cached root
	users   map[digest.Digest]int  // what names each layer, and the layers that stand on it
	needed  map[digest.Digest]bool // the layers that are
	broken  []digest.Digest        // those of them that stand on what is not known
}

func newLedger(set layerSet, all records, named map[digest.Digest]int) *ledger {
	l := &ledger{set: set, all: all, images: map[digest.Digest]int{}, mapping: map[ami.SnapshotID]int{}, bundles: map[string]int{}, users: maps.Clone(named)}
	for _, image := range all.images {
		for d := range l.under(image) {
			l.images[d]++
		}
		for _, id := range snapshotsOf(image) {
			l.mapping[id]++
		}
		if image.Bundle != nil {
			l.bundles[bundleCacheKey(*image.Bundle)]++
		}
	}
	for _, layer := range set { // also garbage, which is there until it is collected
		if layer.Parent != "" {
			l.users[layer.Parent]++
		}
	}
	l.needed, l.broken = set.closure(named)
	return l
}

// binBytes is what the layers take that are needed for what lies in the recycle bin
// alone.
func (l *ledger) binBytes(named map[digest.Digest]int) (sum int64) {
	rest := maps.Clone(named)
	for _, s := range l.all.snapshots {
		if s.State == ami.SnapshotRecoverable {
			if rest[s.Layer]--; rest[s.Layer] <= 0 {
				delete(rest, s.Layer)
			}
		}
	}
	needed, _ := l.set.closure(rest)
	for d := range l.needed {
		if !needed[d] {
			sum += l.set[d].FileSize
		}
	}
	return sum
}

// under returns the layers that an image stands on, as far as they are known.
func (l *ledger) under(image ami.Image) map[digest.Digest]bool {
	out := map[digest.Digest]bool{}
	if root := l.all.cachedRoot(image); root != "" {
		out[root] = true
	}
	for _, id := range snapshotsOf(image) {
		if snap, ok := l.all.snapshot[id]; ok && snap.Layer != "" {
			chain, _ := l.set.chain(snap.Layer)
			for _, d := range chain {
				out[d] = true
			}
		}
	}
	return out
}

// cost says what an image costs.
func (l *ledger) cost(image ami.Image) ImageCost {
	c := ImageCost{ImageID: image.ImageID, Name: image.Name}
	if image.Bundle != nil {
		c.Virtual = image.Bundle.SizeBytes
	}
	for _, m := range image.BlockDeviceMappings {
		if m.Ebs != nil && m.Ebs.VolumeSize != nil {
			c.Virtual += *m.Ebs.VolumeSize * gib
		}
	}
	for d := range l.under(image) {
		size := l.set[d].FileSize
		c.Chain += size
		if l.images[d] > 1 {
			c.Shared += size
		} else {
			c.Unique += size
		}
	}
	for _, d := range l.freed(image) {
		c.Freed += l.set[d].FileSize
	}
	return c
}

// freed returns the layers that would go if images were deregistered with their
// snapshots: those that nothing else names, nor stands on. Where it would not be known
// after that what else is needed, none would.
func (l *ledger) freed(images ...ami.Image) (out []digest.Digest) {
	left := map[digest.Digest]int{}
	mapping, bundles := map[ami.SnapshotID]int{}, map[string]int{} // by these images
	var goes []digest.Digest
	for _, image := range images {
		for _, id := range snapshotsOf(image) {
			mapping[id]++
			if snap, ok := l.all.snapshot[id]; ok && snap.OwnerID == image.OwnerID && l.mapping[id] == mapping[id] {
				goes = append(goes, snap.Layer)
			}
		}
		if root := l.all.cachedRoot(image); root != "" {
			key := bundleCacheKey(*image.Bundle)
			if bundles[key]++; l.bundles[key] == bundles[key] {
				goes = append(goes, root)
			}
		}
	}
	for _, layer := range goes {
		for d := layer; d != ""; d = l.set[d].Parent {
			if _, seen := left[d]; !seen {
				left[d] = l.users[d]
			}
			if left[d]--; left[d] != 0 {
				break
			}
			out = append(out, d)
		}
	}
	for _, d := range l.broken {
		if !slices.Contains(out, d) {
			return nil
		}
	}
	return out
}
