package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

// ErrDamaged is returned for bytes that are not those which were written.
var ErrDamaged = errors.New("object is damaged")

// MaxChunk is the most bytes that a chunk may have, as they are and as they are
// kept: far over what casync and desync write, which is 256 KiB by default.
const MaxChunk = 16 << 20

// chunkSuffix is that of casync's compressed chunks.
const chunkSuffix = ".cacnk"

// Chunks keeps chunks of data by their SHA-256 in a Store, in the layout of a
// casync chunk store: PREFIX/ABCD/ABCD….cacnk, each one zstd frame. casync and
// desync (--digest sha256) read what is in a directory, a bucket or an SFTP host,
// and write what is read here. It is safe for concurrent use.
type Chunks struct {
	store  Store
	prefix string
	enc    *zstd.Encoder
	dec    *zstd.Decoder
	cache  *cache // nil for none
	*flight
}

// flight has the chunks that are under way, so that two who want the same one move
// it once.
type flight struct {
	mu   sync.Mutex
	busy map[ChunkID]chan struct{}
}

// NewChunks keeps chunks in store under prefix, which may be empty. The caller
// closes the store.
func NewChunks(store Store, prefix string) (*Chunks, error) {
	if prefix != "" {
		if err := CheckName(prefix); err != nil {
			return nil, err
		}
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(MaxChunk), zstd.WithDecoderConcurrency(0))
	if err != nil {
		return nil, err
	}
	return &Chunks{
		store: store, prefix: prefix, enc: enc, dec: dec,
		flight: &flight{busy: map[ChunkID]chan struct{}{}},
	}, nil
}

// name is that of a chunk's object.
func (c *Chunks) name(id ChunkID) string {
	hex := id.String()
	return path.Join(c.prefix, hex[:4], hex+chunkSuffix)
}

// chunkID is the id in an object's name, if it is one of a chunk.
func (c *Chunks) chunkID(name string) (ChunkID, bool) {
	hex, ok := strings.CutSuffix(path.Base(name), chunkSuffix)
	if !ok {
		return ChunkID{}, false
	}
	id, err := ParseChunkID(hex)
	return id, err == nil && c.name(id) == name
}

// Get returns the bytes of a chunk, which are those of its id. It returns
// ErrNotFound and ErrDamaged.
func (c *Chunks) Get(ctx context.Context, id ChunkID) ([]byte, error) {
	if c.cache != nil {
		return c.cached(ctx, id)
	}
	_, plain, err := c.fetch(ctx, id)
	return plain, err
}

// fetch returns a chunk of the store, as it is kept there and verified.
func (c *Chunks) fetch(ctx context.Context, id ChunkID) (packed, plain []byte, err error) {
	body, info, err := c.store.Get(ctx, c.name(id))
	if err != nil {
		return nil, nil, err
	}
	defer body.Close()
	if info.Size > MaxChunk {
		return nil, nil, fmt.Errorf("%w: chunk %s of %s has %d bytes, more than a chunk may have", ErrDamaged, id, c, info.Size)
	}
	packed = make([]byte, info.Size)
	if _, err := io.ReadFull(body, packed); err != nil {
		return nil, nil, fmt.Errorf("reading chunk %s of %s: %w", id, c, err)
	}
	if plain, err = c.unpack(id, packed); err != nil {
		return nil, nil, fmt.Errorf("%w: chunk %s of %s: %w", ErrDamaged, id, c, err)
	}
	return packed, plain, nil
}

// unpack decompresses a chunk and holds it against its id.
func (c *Chunks) unpack(id ChunkID, packed []byte) ([]byte, error) {
	plain, err := c.dec.DecodeAll(packed, nil)
	if err != nil {
		return nil, err
	}
	if sum := SumChunk(plain); sum != id {
		return nil, fmt.Errorf("its bytes have the id %s", sum)
	}
	return plain, nil
}

// Has says whether a chunk is there.
func (c *Chunks) Has(ctx context.Context, id ChunkID) (bool, error) {
	_, err := c.store.Stat(ctx, c.name(id))
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// freshFor is how old a chunk may be that a writer leans on; an older one is made
// young again, so that Prune leaves it to the writer whose index comes later.
const freshFor = 24 * time.Hour

// Toucher is a Store that can make an object as young as a new one without sending
// it again. Those of Open can.
type Toucher interface {
	// Touch sets the time when an object was modified to now. It returns
	// ErrNotFound.
	Touch(ctx context.Context, name string) error
}

// Put keeps a chunk of at most MaxChunk bytes and returns how many were sent for
// it: 0 for one that is there.
func (c *Chunks) Put(ctx context.Context, id ChunkID, plain []byte) (sent int64, err error) {
	if SumChunk(plain) != id {
		return 0, fmt.Errorf("%w: %s is not the SHA-256 of the bytes to keep", ErrDamaged, id)
	}
	if len(plain) > MaxChunk {
		return 0, fmt.Errorf("a chunk of %d bytes is more than the limit of %d", len(plain), MaxChunk)
	}
	done, err := c.begin(ctx, id)
	if err != nil {
		return 0, err
	}
	defer done()
	if there, err := c.lean(ctx, id); err != nil || there {
		return 0, err
	}
	packed := c.enc.EncodeAll(plain, make([]byte, 0, len(plain)/2))
	size := int64(len(packed))
	if err := c.store.Put(ctx, c.name(id), bytes.NewReader(packed), size); err != nil {
		return 0, err
	}
	if c.cache != nil {
		c.cache.put(id, packed)
	}
	return size, nil
}

// lean says whether a chunk is there that will not go soon.
func (c *Chunks) lean(ctx context.Context, id ChunkID) (bool, error) {
	info, err := c.store.Stat(ctx, c.name(id))
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return c.refresh(ctx, info)
}

// refresh makes a chunk young if it is old, and says whether it is young now. It
// is not where the store does not let us, or somebody has just deleted it.
func (c *Chunks) refresh(ctx context.Context, info Info) (bool, error) {
	if info.Size == 0 { // no chunk at all: somebody's disk was full
		return false, nil
	}
	if time.Since(info.Modified) < freshFor {
		return true, nil
	}
	t, can := c.store.(Toucher)
	if !can {
		return false, nil
	}
	if err := t.Touch(ctx, info.Name); err != nil {
		return false, ctx.Err()
	}
	return true, nil
}

// begin waits until nobody else here moves that chunk.
func (f *flight) begin(ctx context.Context, id ChunkID) (done func(), err error) {
	for {
		f.mu.Lock()
		other, busy := f.busy[id]
		if !busy {
			mine := make(chan struct{})
			f.busy[id] = mine
			f.mu.Unlock()
			return func() {
				f.mu.Lock()
				delete(f.busy, id)
				f.mu.Unlock()
				close(mine)
			}, nil
		}
		f.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// String says where the chunks lie.
func (c *Chunks) String() string {
	if c.prefix == "" {
		return c.store.URL()
	}
	return c.store.URL() + " under " + c.prefix
}
