package region

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/snapshot"
)

// layerSet are the layers that are there.
type layerSet map[digest.Digest]snapshot.Layer

func (r *Region) layerSet(ctx context.Context) (layerSet, error) {
	all, err := r.layers.Layers(ctx)
	if err != nil {
		return nil, storeError(err, "The layers cannot be listed.")
	}
	set := layerSet{}
	for _, l := range all {
		set[l.Digest] = l
	}
	return set, nil
}

// chain returns d and what it stands on, as far as that can be known: where a
// layer is missing or its header cannot be read, it is the last one, and broken.
func (s layerSet) chain(d digest.Digest) (chain []digest.Digest, broken digest.Digest) {
	for len(chain) <= len(s) { // more is a circle
		chain = append(chain, d)
		l, there := s[d]
		if !there || l.Depth == 0 {
			return chain, d
		}
		if l.Parent == "" {
			return chain, ""
		}
		d = l.Parent
	}
	return chain, d
}

// closure returns the named layers and all that they stand on, and those of them
// of which cannot be known what that is.
func (s layerSet) closure(named map[digest.Digest]int) (needed map[digest.Digest]bool, broken []digest.Digest) {
	needed = map[digest.Digest]bool{}
	for root := range named {
		chain, end := s.chain(root)
		if end != "" && !needed[end] {
			broken = append(broken, end)
		}
		for _, d := range chain {
			needed[d] = true
		}
	}
	slices.Sort(broken)
	return needed, broken
}

// named counts what names each layer: records, leases, and heads on the disk,
// whether a record names their volumes or not.
func (r *Region) named(ctx context.Context) (named map[digest.Digest]int, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		named, err = tx.LayerRefs()
		return err
	})
	if err != nil {
		return nil, storeError(err, "The catalog cannot be read.")
	}
	heads, err := r.layers.Heads()
	if err != nil {
		return nil, storeError(err, "The heads of volumes cannot be listed.")
	}
	for _, h := range heads {
		if h.Layer != "" {
			named[h.Layer]++
		}
	}
	return named, nil
}

// dropLayers removes a layer and its ancestors as far as nothing needs them.
func (r *Region) dropLayers(ctx context.Context, d digest.Digest) (freed int64, err error) {
	lock, err := r.lockLayers(ctx)
	if err != nil {
		return 0, err
	}
	defer lock.Unlock()
	set, err := r.layerSet(ctx)
	if err != nil {
		return 0, err
	}
	named, err := r.named(ctx)
	if err != nil {
		return 0, err
	}
	needed, broken := set.closure(named)
	if len(broken) > 0 {
		return 0, cannotTell(broken)
	}
	chain, _ := set.chain(d)
	var drop []digest.Digest
	for _, d := range chain {
		if needed[d] {
			break
		}
		drop = append(drop, d)
	}
	gone, err := r.layers.RemoveLayers(drop)
	for _, d := range gone {
		freed += set[d].FileSize
	}
	return freed, err
}

// cannotTell says why no layer is taken for garbage: what a layer that is missing
// or unreadable stands on is known by that layer alone.
func cannotTell(broken []digest.Digest) error {
	return fmt.Errorf("%w: %s is needed and is missing or cannot be read, so what it stands on is not known; kami store verify says more",
		snapshot.ErrCorrupt, shortNames(broken))
}

func shortNames(layers []digest.Digest) string {
	names := make([]string, len(layers))
	for i, d := range layers {
		names[i] = d.Short()
	}
	return strings.Join(names, ", ")
}
