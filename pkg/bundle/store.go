package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"sync"

	"github.com/DataDog/zstd"

	"github.com/kamivm/kami/pkg/object"
)

// chunkName is that of a chunk's object, as casync has it.
func chunkName(bucket string, id chunkID) string {
	hex := id.String()
	return path.Join(chunks(bucket), hex[:4], hex+".cacnk")
}

// newSink is where the chunks of a bucket go. What it was given is there with
// commit, at the latest.
func newSink(store object.Store, bucket string) (to sender, commit func(context.Context) error, discard func()) {
	s := storeSink{store, bucket, &sync.Pool{New: func() any { return &compressor{ctx: zstd.NewCtx()} }}}
	dir, ok := store.(*object.Dir)
	if !ok {
		return s, func(context.Context) error { return nil }, func() {}
	}
	b := &batchSink{storeSink: s, batch: dir.Batch()}
	return b, b.commit, func() { b.under.Wait(); b.batch.Discard() }
}

// sender is a sink that can be told that a chunk is not there.
type sender interface {
	sink
	send(ctx context.Context, id chunkID, plain []byte) (int64, error)
}

// level is zstd's: the next one, its default, takes a fifth more time for 1 % of room.
const level = 2

// compressor is what one worker compresses with; its buffer is used again.
type compressor struct {
	ctx zstd.Ctx
	buf []byte
}

// storeSink sends each chunk by itself.
type storeSink struct {
	store  object.Store
	bucket string
	pool   *sync.Pool // of *compressor
}

// stater is who knows whether an object is there.
type stater interface {
	Stat(ctx context.Context, name string) (object.Info, error)
}

func (s storeSink) has(ctx context.Context, in stater, id chunkID) (bool, error) {
	info, err := in.Stat(ctx, chunkName(s.bucket, id))
	if errors.Is(err, object.ErrNotFound) {
		return false, nil
	}
	return err == nil && info.Size > 0, err
}

// packed calls fn with the chunk as one zstd frame, which fn must not keep.
func (s storeSink) packed(plain []byte, fn func([]byte) error) (int64, error) {
	c := s.pool.Get().(*compressor)
	defer s.pool.Put(c)
	var err error
	if c.buf, err = c.ctx.CompressLevel(c.buf[:cap(c.buf)], plain, level); err != nil {
		return 0, fmt.Errorf("compressing a chunk: %w", err)
	}
	return int64(len(c.buf)), fn(c.buf)
}

func (s storeSink) put(ctx context.Context, id chunkID, plain []byte) (int64, error) {
	if there, err := s.has(ctx, s.store, id); err != nil || there {
		return 0, err
	}
	return s.send(ctx, id, plain)
}

// send is put of a chunk that is not there.
func (s storeSink) send(ctx context.Context, id chunkID, plain []byte) (int64, error) {
	return s.packed(plain, func(b []byte) error {
		return s.store.Put(ctx, chunkName(s.bucket, id), bytes.NewReader(b), int64(len(b)))
	})
}

// batchSink writes chunks to a folder of this host, to be made durable together.
type batchSink struct {
	storeSink
	batch *object.Batch

	mu     sync.Mutex
	unsent int64 // bytes that are not durable yet
	busy   bool  // some are being made so
	err    error // of that
	under  sync.WaitGroup
}

// stretch is how much is made durable at once, while others are compressed.
const stretch = 48 << 20

func (s *batchSink) put(ctx context.Context, id chunkID, plain []byte) (int64, error) {
	if there, err := s.has(ctx, s.batch, id); err != nil || there {
		return 0, err
	}
	return s.send(ctx, id, plain)
}

func (s *batchSink) send(ctx context.Context, id chunkID, plain []byte) (int64, error) {
	n, err := s.packed(plain, func(b []byte) error { return s.batch.Put(ctx, chunkName(s.bucket, id), b) })
	if err == nil {
		err = s.advance(ctx, n)
	}
	return n, err
}

// advance begins to make durable what there is, if that is much.
func (s *batchSink) advance(ctx context.Context, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsent += n; s.unsent < stretch || s.busy || s.err != nil {
		return s.err
	}
	s.begin(ctx)
	return nil
}

// begin makes durable what there is, in the background.
func (s *batchSink) begin(ctx context.Context) {
	s.unsent, s.busy = 0, true
	s.under.Go(func() {
		err := s.batch.Commit(context.WithoutCancel(ctx))
		s.mu.Lock()
		defer s.mu.Unlock()
		s.busy, s.err = false, errors.Join(s.err, err)
	})
}

// end begins with the rest; where some are being made durable it comes behind them.
func (s *batchSink) end(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.begin(ctx)
	}
}

// commit makes the rest durable.
func (s *batchSink) commit(ctx context.Context) error {
	s.under.Wait()
	return errors.Join(s.err, s.batch.Commit(ctx))
}
