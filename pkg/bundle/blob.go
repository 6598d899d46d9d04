package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/object/cdc"
	"github.com/kamivm/kami/pkg/qcow2"
)

// CopyChunkSizes are those of blobs that are copied: a rebuilt disk shares more of
// its bytes in small chunks.
var CopyChunkSizes = ChunkSizes{4 << 10, 16 << 10, 64 << 10} //nolint:gochecknoglobals // nothing assigns it

// BlobPlan is a blob that was cut, and what of it a bucket lacks. Nothing has been
// sent yet.
type BlobPlan struct {
	Bytes   int64         // of the blob
	Lacking int64         // of these, the bytes of chunks that the bucket lacks
	Digest  digest.Digest // SHA-256 of the blob

	store  object.Store
	bucket string
	src    qcow2.Source
	index  *index
	at     []int // the chunks that the bucket lacks
}

// nothing is a sink that keeps no chunk.
type nothing struct{}

func (nothing) put(context.Context, chunkID, []byte) (int64, error) { return 0, nil }

// PlanBlob reads a blob once, cuts it and asks the bucket which chunks it has.
// The caller holds off those who delete from it with Making.
func PlanBlob(ctx context.Context, store object.Store, bucket string, src qcow2.Source, sizes ChunkSizes, progress func(int64)) (*BlobPlan, error) {
	if err := errors.Join(CheckBucket(bucket), sizes.check(), cdc.Sizes(sizes).Check()); err != nil {
		return nil, err
	}
	x, sum, _, err := pack(ctx, src, nothing{}, sizes, progress)
	if err != nil {
		return nil, err
	}
	p := &BlobPlan{Bytes: src.Size(), Digest: sum, store: store, bucket: bucket, src: src, index: x}
	return p, p.Look(ctx)
}

// Look asks the bucket anew what it lacks.
func (p *BlobPlan) Look(ctx context.Context) error {
	all, err := object.NewChunks(p.store, chunks(p.bucket))
	if err != nil {
		return err
	}
	ids := make([]chunkID, p.index.count())
	for i := range ids {
		_, _, ids[i] = p.index.chunk(i)
	}
	missing, err := all.Missing(ctx, ids)
	if err != nil {
		return err
	}
	lacks := make(map[chunkID]bool, len(missing))
	for _, id := range missing {
		lacks[id] = true
	}
	p.at, p.Lacking = nil, 0
	for i, id := range ids {
		if lacks[id] {
			_, size, _ := p.index.chunk(i)
			p.at, p.Lacking = append(p.at, i), p.Lacking+size
			delete(lacks, id) // once
		}
	}
	return nil
}

// sendAtOnce is after how many bytes what was sent is there to stay, so that a
// copy that is killed has not sent them for nothing.
const sendAtOnce = 64 << 20

// Send sends what the bucket lacks. What was sent is found by the next plan, also
// when this fails. progress is told of the blob's bytes that are there.
func (p *BlobPlan) Send(ctx context.Context, progress func(int64)) (Packed, error) {
	done := Packed{Chunks: p.index.count(), DataBytes: p.Bytes}
	to, commit, discard := newSink(p.store, p.bucket)
	defer discard()
	var stored atomic.Int64
	for next := 0; next < len(p.at); {
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(workers())
		for bytes := int64(0); next < len(p.at) && bytes < sendAtOnce && gctx.Err() == nil; next++ {
			off, size, id := p.index.chunk(p.at[next])
			bytes += size
			g.Go(func() error {
				plain := make([]byte, size)
				if n, err := p.src.ReadAt(plain, off); err != nil && !(errors.Is(err, io.EOF) && int64(n) == size) {
					return err
				}
				if object.SumChunk(plain) != id {
					return fmt.Errorf("%w: the blob has changed at %d while it was read", ErrChunk, off)
				}
				n, err := to.send(gctx, id, plain)
				stored.Add(n)
				progress(size)
				return err
			})
			done.NewChunks++
		}
		if err := g.Wait(); err != nil {
			// What is whole is worth keeping for the next try.
			return done, errors.Join(err, commit(context.WithoutCancel(ctx)))
		}
		if err := commit(ctx); err != nil {
			return done, err
		}
	}
	done.StoredBytes = stored.Load()
	return done, ctx.Err()
}

// WriteIndex writes the blob's index, which has to come after its chunks, as the
// object bucket/name.caibx.
func (p *BlobPlan) WriteIndex(ctx context.Context, name string) (IndexFile, error) {
	file := p.index.encode()
	x := IndexFile{Name: name + indexSuffix, Size: int64(len(file)), Digest: digest.Of(file)}
	return x, object.WriteSmall(ctx, p.store, path.Join(p.bucket, x.Name), file)
}

// BlobGetter returns the bytes of a chunk, which are verified.
type BlobGetter func(ctx context.Context, id object.ChunkID) ([]byte, error)

// OpenBlob reads and verifies the index of a blob, an object of the bucket, and
// returns a reader of the blob that gets its chunks with get; nil is from the
// bucket. It returns ErrIndex.
func OpenBlob(ctx context.Context, store object.Store, bucket string, at IndexFile, get BlobGetter) (*Reader, error) {
	if at.Size > maxIndex {
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrIndex, at.Name, at.Size)
	}
	file, err := object.ReadSmall(ctx, store, path.Join(bucket, at.Name), at.Size)
	if errors.Is(err, object.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s is missing", ErrIndex, at.Name)
	}
	if err != nil {
		return nil, err
	}
	if int64(len(file)) != at.Size || digest.Of(file) != at.Digest {
		return nil, fmt.Errorf("%w: %s is not the one that its record names", ErrIndex, at.Name)
	}
	x, err := parseIndex(file)
	if err != nil {
		return nil, err
	}
	all, err := object.NewChunks(store, chunks(bucket))
	if err != nil {
		return nil, err
	}
	return newBlob(ctx, x, all, get), nil
}

// CutBlob cuts a blob that lies in no bucket. Its reader only tells what chunks it
// has, and reads the blob.
func CutBlob(ctx context.Context, src qcow2.Source, sizes ChunkSizes, progress func(int64)) (*Reader, error) {
	x, _, _, err := pack(ctx, src, nothing{}, sizes, progress)
	if err != nil {
		return nil, err
	}
	return newBlob(ctx, x, nil, func(context.Context, chunkID) ([]byte, error) { return nil, object.ErrNotFound }), nil
}

func newBlob(ctx context.Context, x *index, all *object.Chunks, get BlobGetter) *Reader {
	b := &Bundle{index: x, chunks: all, zero: object.SumChunk(make([]byte, x.sizes.Max)), get: get}
	b.manifest.Size, b.manifest.ChunkSizes = x.size(), x.sizes
	return b.ReaderAt(ctx)
}

// Each calls fn with each chunk of the blob, in order: where it begins, its size
// and its id.
func (b *Bundle) Each(fn func(off, size int64, id object.ChunkID)) {
	for i := range b.index.count() {
		fn(b.index.chunk(i))
	}
}

// BucketChunks are the chunks of a bucket.
func BucketChunks(store object.Store, bucket string) (*object.Chunks, error) {
	return object.NewChunks(store, chunks(bucket))
}

// Making says in a bucket that somebody is about to lean on its chunks, so that
// none is deleted until release is called, also by other hosts. It waits while
// somebody deletes, and returns ErrInUse where that takes too long.
func Making(ctx context.Context, store object.Store, bucket string, tell ami.Progress) (release func(context.Context), err error) {
	held, err := create(ctx, store, bucket, tell)
	if err != nil {
		return nil, err
	}
	return held.release, nil
}

// SweepUnless is Sweep of a bucket whose blobs are named by records elsewhere: it
// first deletes the indexes and manifests of those blobs that needed does not name,
// by their names in the bucket without an ending. needed asks once nobody can write
// any more; where it returns nil, all stay.
func SweepUnless(ctx context.Context, store object.Store, bucket string, needed func(context.Context) (func(name string) bool, error)) (Swept, error) {
	return sweep(ctx, store, bucket, func(ctx context.Context) error {
		keep, err := needed(ctx)
		if err != nil || keep == nil {
			return err
		}
		var gone []string
		err = store.List(ctx, bucket+"/", func(o object.Info) error {
			for _, suffix := range []string{manifestSuffix, indexSuffix} { // an index alone is a killed command's
				name, ok := strings.CutSuffix(strings.TrimPrefix(o.Name, bucket+"/"), suffix)
				if ok && !strings.HasPrefix(name, chunksFolder+"/") && !keep(name) {
					gone = append(gone, o.Name)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		slices.SortFunc(gone, func(a, b string) int { return strings.Compare(b, a) }) // manifests first
		for _, name := range gone {
			if err := store.Delete(ctx, name); err != nil {
				return err
			}
		}
		return nil
	})
}
