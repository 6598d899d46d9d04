package region

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// far is a remote region as the origin of images.
type far struct {
	*remote
	opts    Options
	p       parcel
	release func(context.Context) // lets chunks be deleted again; nil if nothing holds them
	seeds   *seeds                // what this host has; nil until it is needed
}

func openFar(ctx context.Context, opts Options, name string) (*far, error) {
	f, err := openRemote(ctx, opts.Home, name)
	if err != nil {
		return nil, err
	}
	return &far{remote: f, opts: opts}, nil
}

func (f *far) end(context.Context) error { return nil }

func (f *far) same(*Region) bool { return false }

func (f *far) close(ctx context.Context) {
	if f.seeds != nil {
		f.seeds.close()
	}
	if f.release != nil {
		f.release(ctx)
	}
	f.store.Close()
}

func (f *far) parcel(ctx context.Context, ref string) (parcel, error) {
	// Who may only read cannot hold anything; then a deletion in the midst of the
	// copy makes it fail.
	release, err := bundle.Making(ctx, f.store, remoteBucket, f.opts.tell())
	if err != nil && !errors.Is(err, object.ErrDenied) {
		return parcel{}, remoteError(storeError(err, "The region %q cannot be read.", f.name), f.store.URL())
	}
	f.release = release
	f.p, err = f.find(ctx, f.opts, ref)
	f.p.Region = f.name
	return f.p, err
}

func (f *far) object(ctx context.Context, d digest.Digest) ([]byte, error) {
	b, err := f.read(ctx, objectRecord(d), maxObject)
	if err == nil && digest.Of(b) != d {
		err = fmt.Errorf("%w: the object %s", snapshot.ErrCorrupt, d.Short())
	}
	return b, err
}

// chunkCache is where the chunks of a copy that is broken off wait for the next try.
func (r *Region) chunkCache() string { return r.path("tmp", "copied-chunks") }

const (
	chunkCacheBytes = 8 << 30
	chunkCacheLife  = 24 * time.Hour
)

// sweepChunks removes the chunks of copies that nobody has gone on with.
func (r *Region) sweepChunks() error {
	info, err := os.Stat(r.chunkCache())
	if errors.Is(err, os.ErrNotExist) || err == nil && time.Since(info.ModTime()) < chunkCacheLife {
		return nil
	}
	return os.RemoveAll(r.chunkCache())
}

// tries is how often a chunk is fetched that does not arrive as it was sent.
const tries = 4

// fetcher gets the chunks of one layer: from what this host has, else from the
// region, verified.
type fetcher struct {
	f      *far
	to     *Region
	chunks *object.Chunks
	step   ami.Step
	moved  *atomic.Int64
	sizes  sync.Map // of chunks that are to be fetched; each is told of once
}

func (g *fetcher) get(ctx context.Context, id object.ChunkID) ([]byte, error) {
	if plain := g.f.seeds.get(id); plain != nil {
		return plain, nil
	}
	for try := 1; ; try++ {
		plain, err := g.chunks.Get(ctx, id)
		if err == nil {
			if size, first := g.sizes.LoadAndDelete(id); first {
				g.step.Add(size.(int64))
			}
			return plain, nil
		}
		damaged := errors.Is(err, object.ErrDamaged) || errors.Is(err, io.ErrUnexpectedEOF)
		if !damaged || try == tries {
			return nil, err
		}
		g.to.progress.Note("a chunk from %q came damaged and is fetched again: %v", g.f.name, err)
	}
}

// counted is a store that counts what is read of chunks.
type counted struct {
	object.Store
	bytes *atomic.Int64
}

func (c counted) Get(ctx context.Context, name string) (io.ReadCloser, object.Info, error) {
	body, info, err := c.Store.Get(ctx, name)
	if err == nil {
		c.bytes.Add(info.Size)
	}
	return body, info, err
}

// openLayer opens a layer of the region as a disk over a parent of this host; nil
// is none. lacked is what of its bytes this host does not have.
func (f *far) openLayer(ctx context.Context, to *Region, l parcelLayer, parent *qcow2.Image, moved *atomic.Int64) (disk layerDisk, lacked, all int64, done func(error), err error) {
	rec, err := f.layer(ctx, l.Digest)
	if err == nil && (rec.Layer.Content != l.Content || rec.Layer.Size != l.Size || rec.Layer.Parent != l.Parent) {
		err = fmt.Errorf("%w: %s is not the layer that the image names", snapshot.ErrCorrupt, layerManifest(l.Digest))
	}
	if err != nil {
		return disk, 0, 0, nil, err
	}
	runs, err := decodeRuns(rec.Runs, l.Size, rec.Bytes)
	if err != nil {
		return disk, 0, 0, nil, fmt.Errorf("%w: %s: %w", snapshot.ErrCorrupt, layerManifest(l.Digest), err)
	}
	disk = layerDisk{size: l.Size, runs: runs, parent: parent}
	if rec.Bytes == 0 {
		return disk, 0, 0, func(error) {}, nil
	}
	chunks, err := bundle.BucketChunks(counted{f.store, moved}, remoteBucket)
	if err == nil {
		chunks, err = chunks.Cached(to.chunkCache(), chunkCacheBytes)
	}
	if err != nil {
		return disk, 0, 0, nil, err
	}
	g := &fetcher{f: f, to: to, chunks: chunks, moved: moved}
	blob, err := bundle.OpenBlob(ctx, f.store, remoteBucket, rec.Index, g.get)
	if err == nil && blob.Size() != rec.Bytes {
		err = fmt.Errorf("%w: %s has %d bytes, and is to have %d", snapshot.ErrCorrupt, rec.Index.Name, blob.Size(), rec.Bytes)
	}
	if err != nil {
		return disk, 0, 0, nil, err
	}
	if f.seeds == nil {
		if f.seeds, err = f.plant(ctx, to, blob); err != nil {
			return disk, 0, 0, nil, err
		}
	}
	blob.Each(func(_, size int64, id object.ChunkID) {
		if !f.seeds.has(id) {
			if _, again := g.sizes.LoadOrStore(id, size); !again {
				lacked += size
			}
		}
	})
	g.step = to.progress.Step(fmt.Sprintf("fetching %s: %.1f MiB to fetch, %.1f MiB saved", l.Digest.Short(), mib(lacked), mib(rec.Bytes-lacked)), lacked)
	disk.blob = blob
	return disk, lacked, rec.Bytes, g.step.Done, nil
}

func (f *far) bring(ctx context.Context, to *Region, id ami.SnapshotID, l parcelLayer, parent digest.Digest, done *CopiedImage) (snapshot.Layer, error) {
	var under *qcow2.Image
	if parent != "" {
		img, err := to.layers.OpenLayer(parent)
		if err != nil {
			return snapshot.Layer{}, err
		}
		defer img.Close()
		under = img
	}
	var moved atomic.Int64
	disk, lacked, all, ended, err := f.openLayer(ctx, to, l, under, &moved)
	if err != nil {
		return snapshot.Layer{}, f.damaged(err)
	}
	made, err := to.writeLayer(ctx, id, disk, parent)
	ended(err)
	done.copied(l, lacked, all)
	done.MovedBytes += moved.Load()
	if err == nil {
		// The layer has them from now on.
		err = os.RemoveAll(to.chunkCache())
	}
	return made, f.damaged(err)
}

// damaged says of what was read from the region that it is damaged there.
func (f *far) damaged(err error) error {
	switch {
	case errors.Is(err, bundle.ErrChunk), errors.Is(err, bundle.ErrIndex), errors.Is(err, object.ErrDamaged):
		return fmt.Errorf("%w: %w", snapshot.ErrCorrupt, err)
	case errors.Is(err, object.ErrNotFound):
		return fmt.Errorf("%w: it was deleted there: %w", snapshot.ErrCorrupt, err)
	}
	return remoteError(storeError(err, "The region %q cannot be read.", f.name), f.store.URL())
}

// flat puts a chain together out of the region alone, for a disk that is written
// anew, with a key of this one.
func (f *far) flat(ctx context.Context, to *Region, p parcel, s ami.Snapshot) (qcow2.Source, func() error, error) {
	chain := p.chain(s.Layer)
	var disks []layerDisk
	var moved atomic.Int64
	var ends []func(error)
	for _, l := range chain {
		d, _, _, ended, err := f.openLayer(ctx, to, l, nil, &moved)
		if err != nil {
			return nil, nil, f.damaged(err)
		}
		disks, ends = append(disks, d), append(ends, ended)
	}
	return stacked{disks, f}, func() error {
		for _, ended := range ends {
			ended(nil)
		}
		return nil
	}, nil
}
