package region

import (
	"context"
	"errors"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
)

// cachedRoot is the cached layer of an image's bundle, "" for none.
func (all records) cachedRoot(image ami.Image) digest.Digest {
	if image.Bundle == nil {
		return ""
	}
	key := bundleCacheKey(*image.Bundle)
	i := slices.IndexFunc(all.cached, func(c catalog.CachedLayer) bool { return c.Key == key })
	if i < 0 {
		return ""
	}
	return all.cached[i].Layer
}

func (all records) isCached(d digest.Digest) bool {
	return slices.ContainsFunc(all.cached, func(c catalog.CachedLayer) bool { return c.Layer == d })
}

// cacheBytes is what the layers take that are kept for the next launch alone.
func (r *Region) cacheBytes(ctx context.Context, set layerSet) (sum int64, err error) {
	named, idle, err := r.namedAndIdle(ctx, true)
	if err != nil {
		return 0, err
	}
	heads, err := r.layers.Heads()
	if err != nil {
		return 0, storeError(err, "The heads of volumes cannot be listed.")
	}
	for _, h := range heads {
		if h.Layer != "" {
			named[h.Layer]++
		}
	}
	needed, _ := set.closure(named)
	for d := range idle {
		if !needed[d] {
			sum += set[d].FileSize
		}
	}
	return sum, nil
}

// unbackedBundle says what is wrong with the bundle of an image, "" for nothing or
// where it is not this region's to tell: another store may be away for a while.
func (r *Region) unbackedBundle(ctx context.Context, i ami.Image) string {
	if i.Bundle == nil || i.Bundle.Store != "" {
		return ""
	}
	l, err := bundle.ParseLocation(i.ImageLocation)
	if err != nil {
		return "Its location is damaged: " + err.Error()
	}
	store, err := r.storeOf(ctx, i, askQuickly())
	if err != nil {
		return "Its bundle cannot be read: " + err.Error()
	}
	defer store.Close()
	d, err := manifestDigest(ctx, store, l)
	switch {
	case errors.Is(err, bundle.ErrNotFound):
		return "Its bundle " + i.ImageLocation + " does not exist."
	case err != nil:
		return "Its bundle cannot be read: " + err.Error()
	case d != i.Bundle.ManifestDigest:
		return "Its bundle " + i.ImageLocation + " was changed since it was registered."
	}
	return ""
}
