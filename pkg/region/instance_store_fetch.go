package region

import (
	"context"
	"sync"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// fetchRoot sees that the root of an instance-store image is on the host: from the
// cache, or fetched into it. What was fetched by a command that was killed is not
// fetched again where it had come to its end, and is swept away otherwise.
func (r *Region) fetchRoot(ctx context.Context, image ami.Image) error {
	return r.cacheLayer(ctx, bundleCacheKey(*image.Bundle), "the root of "+image.ImageLocation, func(ctx context.Context) (snapshot.Layer, error) {
		store, b, err := r.openPinned(ctx, image)
		if err != nil {
			return snapshot.Layer{}, err
		}
		defer store.Close()
		src := readAhead(ctx, b.ReaderAt)
		defer src.stop()
		step := r.progress.Step("fetching "+image.ImageLocation, b.Size())
		layer, err := r.layers.WriteLayer(ctx, src, "", step)
		step.Done(err)
		return layer, bundleError(err, image.ImageLocation, store.URL())
	})
}

// openPinned opens the bundle of an image, which has to be the one that was
// registered: who signed it was asked then. The caller closes the store.
func (r *Region) openPinned(ctx context.Context, image ami.Image) (object.Store, *bundle.Bundle, error) {
	store, err := r.storeOf(ctx, image, object.Options{})
	if err != nil {
		return nil, nil, err
	}
	b, err := bundle.Open(ctx, store, image.ImageLocation, bundle.Trust{AllowUnsigned: true})
	if err == nil && b.Manifest().Index.Digest != image.Bundle.IndexDigest {
		err = changedBundle(image)
	}
	if err != nil {
		store.Close()
		return nil, nil, registering(bundleError(err, image.ImageLocation, store.URL()))
	}
	return store, b, nil
}

const (
	// aheadBytes is how far chunks are fetched ahead of what is being packed: less
	// than a bundle's reader keeps.
	aheadBytes = 16 << 20
	// aheadStep is what is fetched at once: a dozen chunks, most often.
	aheadStep = 1 << 20
	// aheadReads is how many of these are on their way.
	aheadReads = 8
)

// ahead is a bundle that is read from its beginning to its end, by several at once.
// What comes next is fetched meanwhile, so that a store which is far away is waited
// for once, and not for each piece.
type ahead struct {
	qcow2.Source
	cancel context.CancelFunc
	reads  sync.WaitGroup
	slots  chan struct{}

	mu   sync.Mutex
	next int64 // where nothing has been fetched ahead
}

// readAhead reads what open opens for a context, which ends with stop.
func readAhead[S qcow2.Source](ctx context.Context, open func(context.Context) S) *ahead {
	ctx, cancel := context.WithCancel(ctx)
	return &ahead{Source: open(ctx), cancel: cancel, slots: make(chan struct{}, aheadReads)}
}

// stop waits for what is still on its way.
func (a *ahead) stop() {
	a.cancel()
	a.reads.Wait()
}

// ReadAt reads, and has what comes behind it fetched.
func (a *ahead) ReadAt(p []byte, off int64) (int, error) {
	a.fetch(off + int64(len(p)))
	return a.Source.ReadAt(p, off)
}

// fetch has what lies behind off fetched, as far as there are slots for it. What
// comes of that is for who reads it to see.
func (a *ahead) fetch(off int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = max(a.next, off-off%aheadStep)
	for a.next < min(off+aheadBytes, a.Size()) {
		select {
		case a.slots <- struct{}{}:
		default:
			return
		}
		at := a.next
		a.next += aheadStep
		a.reads.Go(func() {
			defer func() { <-a.slots }()
			_, _ = a.Source.ReadAt(make([]byte, aheadStep), at)
		})
	}
}
