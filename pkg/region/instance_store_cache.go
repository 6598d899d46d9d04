package region

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/snapshot"
)

// The roots of instance-store guests and their ephemeral disks stand on layers that
// can be made again at any time: of a bundle, or of nothing. They are made by the
// launch that needs them first, and kept: a record of the catalog names each by the
// key of what it was made of, and the next launch lays an empty head on it.
//
// A record keeps its layer as a snapshot does. It goes with the last image of its
// bundle, or to a collection of garbage when no launch has used it for cacheAge; what
// guests stand on is kept by the records of their volumes besides.

// cacheAge is how long a cached layer stays that no launch uses.
const cacheAge = 30 * 24 * time.Hour

// usedStep is how exactly it is known when a cached layer was used, so that not
// every launch has to write that.
const usedStep = time.Hour

// cachedPrefix begins the lease of a layer that is being made.
const cachedPrefix = "cached-"

// bundleCachePrefix begins the keys of the roots of bundles.
const bundleCachePrefix = "bundle-"

// bundleCacheKey is by the list of the chunks' digests, which nobody can make
// another bundle have; what a manifest says of the content is but said.
func bundleCacheKey(b ami.BundleSource) string { return bundleCachePrefix + b.IndexDigest.Hex() }

// errNotCached is for a launch to make the layer, and to try again.
var errNotCached = errors.New("the layer is not in the cache")

// cacheLayer sees that there is a layer for key. Where there is none, write makes
// it, once for all who ask at a time. what says what it is, for people.
func (r *Region) cacheLayer(ctx context.Context, key, what string, write func(context.Context) (snapshot.Layer, error)) error {
	if there, err := r.isCached(ctx, key); err != nil || there {
		return err
	}
	id := cachedPrefix + digest.Of([]byte(key)).Hex()[:16]
	done, err := r.turn(ctx, id, what)
	if err != nil {
		return err
	}
	defer done()
	if there, err := r.isCached(ctx, key); err != nil || there { // by who was before
		return err
	}
	j, err := r.begin(ctx, nil, id)
	if err != nil {
		return storeError(err, "That %s is being made cannot be recorded.", what)
	}
	defer j.close(ctx)
	layer, err := r.makeHeld(ctx, id, write)
	if err != nil {
		return storeError(err, "The layer of %s cannot be made.", what)
	}
	durable.Step("cache.layer")
	now := time.Now().UTC().Truncate(time.Second)
	err = j.commit(ctx, func(tx *catalog.Tx) error {
		return tx.PutCachedLayer(catalog.CachedLayer{Key: key, Layer: layer.Digest, Of: what, Created: now, Used: now})
	})
	return storeError(err, "The layer of %s cannot be recorded.", what)
}

// turn waits until nobody else makes the same layer.
func (r *Region) turn(ctx context.Context, id, what string) (done func(), err error) {
	path := r.lockPath(id + "-turn")
	lock, free, err := durable.TryLock(path)
	if err == nil && !free {
		step := r.progress.Step("waiting for another command that makes the layer of "+what, 0)
		lock, err = durable.AcquireLock(ctx, path)
		step.Done(err)
	}
	if err != nil {
		return nil, storeError(err, "The layer of %s cannot be locked.", what)
	}
	return func() { os.Remove(path); lock.Unlock() }, nil
}

// isCached says whether there is a layer for key. One that is recorded and is not
// there is made anew, and so is one that cannot be read.
func (r *Region) isCached(ctx context.Context, key string) (bool, error) {
	var c catalog.CachedLayer
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		c, err = tx.CachedLayer(key)
		return err
	})
	if errors.Is(err, catalog.ErrNotFound) || errors.Is(err, catalog.ErrDamaged) {
		return false, nil
	}
	if err != nil {
		return false, storeError(err, "The catalog cannot be read.")
	}
	_, err = r.layers.Layer(c.Layer)
	if errors.Is(err, snapshot.ErrNotFound) || errors.Is(err, snapshot.ErrCorrupt) {
		return false, nil
	}
	return err == nil, storeError(err, "The layer %s cannot be read.", c.Layer.Short())
}

// layCached lays a volume that is being made on the layer of key. From this commit
// on its record keeps the layer. It returns errNotCached.
func layCached(tx *catalog.Tx, key string, v *ami.Volume) error {
	c, err := tx.CachedLayer(key)
	if errors.Is(err, catalog.ErrNotFound) || errors.Is(err, catalog.ErrDamaged) {
		return errNotCached
	}
	if err != nil {
		return err
	}
	v.Layer = c.Layer
	if now := time.Now().UTC().Truncate(time.Second); now.Sub(c.Used) >= usedStep {
		c.Used = now
		return tx.PutCachedLayer(c)
	}
	return nil
}

// forgetBundle deletes the cached root of an image that goes, unless another image
// is of the same bundle, and returns its layer.
func (r *Region) forgetBundle(tx *catalog.Tx, image ami.Image) (digest.Digest, error) {
	if image.Bundle == nil {
		return "", nil
	}
	all, err := tx.Images()
	if errors.Is(err, catalog.ErrDamaged) { // which may be one
		return "", r.legible(err)
	}
	if err != nil || slices.ContainsFunc(all, func(o ami.Image) bool {
		return o.ImageID != image.ImageID && o.State != ami.ImageDeregistered && o.Bundle != nil && o.Bundle.IndexDigest == image.Bundle.IndexDigest
	}) {
		return "", err
	}
	c, err := tx.CachedLayer(bundleCacheKey(*image.Bundle))
	if errors.Is(err, catalog.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", r.legible(err)
	}
	return c.Layer, tx.DeleteCachedLayer(c.Key)
}

// unused are the cached layers that a collection may take, with the reason; with all
// whatever no volume and no snapshot stands on. refs are what names each layer.
func unused(tx *catalog.Tx, refs map[digest.Digest]int, all bool) (map[digest.Digest]string, error) {
	cached, err := tx.CachedLayers()
	if err != nil && !errors.Is(err, catalog.ErrDamaged) {
		return nil, err
	}
	images, ierr := tx.Images()
	if ierr != nil && !errors.Is(ierr, catalog.ErrDamaged) {
		return nil, ierr
	}
	registered := map[string]bool{}
	for _, i := range images {
		if i.Bundle != nil && i.State != ami.ImageDeregistered {
			registered[bundleCacheKey(*i.Bundle)] = true
		}
	}
	records := map[digest.Digest]int{}
	for _, c := range cached {
		records[c.Layer]++
	}
	out := map[digest.Digest]string{}
	for _, c := range cached {
		if refs[c.Layer] > records[c.Layer] {
			continue
		}
		// Two records may name one layer: it stays where one of them wants that.
		why, seen := out[c.Layer]
		switch {
		case seen && why == "":
		case all:
			why = "it can be made again: it is the cached layer of " + c.Of
		case time.Since(c.Used) > cacheAge:
			why = fmt.Sprintf("no launch has used it since %s: it is the cached layer of %s", c.Used.Local().Format(time.DateOnly), c.Of)
		case strings.HasPrefix(c.Key, bundleCachePrefix) && !registered[c.Key] && ierr == nil:
			why = "no image is of its bundle any more: it is the cached layer of " + c.Of
		default:
			why = ""
		}
		out[c.Layer] = why
	}
	for d, why := range out {
		if why == "" {
			delete(out, d)
		}
	}
	return out, nil
}

// namedAndIdle counts what names each layer, less the records of cached layers that
// a collection may take, and says of these why.
func (r *Region) namedAndIdle(ctx context.Context, all bool) (named map[digest.Digest]int, idle map[digest.Digest]string, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		if named, err = tx.LayerRefs(); err != nil {
			return err
		}
		idle, err = unused(tx, named, all)
		return err
	})
	for d := range idle {
		delete(named, d) // nothing else names it
	}
	return named, idle, storeError(err, "The catalog cannot be read.")
}

// forgetCached deletes the records of cached layers that are about to be removed,
// and returns the layers without those that a launch has taken meanwhile.
func (r *Region) forgetCached(ctx context.Context, layers []digest.Digest, files map[digest.Digest]Garbage, all bool) (left []digest.Digest, err error) {
	if !slices.ContainsFunc(layers, func(d digest.Digest) bool { return files[d].cached }) {
		return layers, nil
	}
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		refs, err := tx.LayerRefs()
		if err != nil {
			return err
		}
		idle, err := unused(tx, refs, all)
		if err != nil {
			return err
		}
		cached, err := tx.CachedLayers()
		if err := r.legible(err); err != nil {
			return err
		}
		left = nil
		for _, d := range layers {
			_, goes := idle[d]
			if goes || refs[d] == 0 {
				left = append(left, d)
			}
		}
		for _, c := range cached {
			if _, goes := idle[c.Layer]; goes && slices.Contains(layers, c.Layer) {
				if err := tx.DeleteCachedLayer(c.Key); err != nil {
					return err
				}
			}
		}
		return nil
	})
	durable.Step("cache.forgotten")
	return left, storeError(err, "What was cached cannot be forgotten.")
}
