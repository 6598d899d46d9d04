package region

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
)

// StoreUsage says what each image that the caller may see, and the whole region,
// cost on disk.
func (r *Region) StoreUsage(ctx context.Context) (StoreUsage, error) {
	var u StoreUsage
	shown, err := r.DescribeImages(ctx, DescribeInput{})
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
	users   map[digest.Digest]int  // what names each layer, and the layers that stand on it
	needed  map[digest.Digest]bool // the layers that are
	broken  []digest.Digest        // those of them that stand on what is not known
}

func newLedger(set layerSet, all records, named map[digest.Digest]int) *ledger {
	l := &ledger{set: set, all: all, images: map[digest.Digest]int{}, mapping: map[ami.SnapshotID]int{}, users: maps.Clone(named)}
	for _, image := range all.images {
		for d := range l.under(image) {
			l.images[d]++
		}
		for _, id := range snapshotsOf(image) {
			l.mapping[id]++
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

// under returns the layers that an image stands on, as far as they are known.
func (l *ledger) under(image ami.Image) map[digest.Digest]bool {
	out := map[digest.Digest]bool{}
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

// freed returns the layers that would go if an image were deregistered with its
// snapshots: those that nothing else names, nor stands on. Where it would not be
// known after that what else is needed, none would.
func (l *ledger) freed(image ami.Image) (out []digest.Digest) {
	left := map[digest.Digest]int{}
	for _, id := range snapshotsOf(image) {
		snap, ok := l.all.snapshot[id]
		if !ok || snap.OwnerID != image.OwnerID || l.mapping[id] > 1 {
			continue // it stays
		}
		for d := snap.Layer; d != ""; d = l.set[d].Parent {
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
