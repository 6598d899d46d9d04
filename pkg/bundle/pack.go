package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/object/cdc"
	"github.com/kamivm/kami/pkg/qcow2"
)

// sink is where chunks go.
type sink interface {
	// put keeps a chunk and returns how many bytes that cost: 0 where it is there.
	// The chunk's bytes may change once it has returned.
	put(ctx context.Context, id chunkID, plain []byte) (int64, error)
}

// ender is a sink that is told when all chunks were put, while the blob's digest may
// take a little longer.
type ender interface{ end(ctx context.Context) }

// Packed says what packing a blob did.
type Packed struct {
	Chunks      int   `json:"Chunks"`      // of the blob
	NewChunks   int   `json:"NewChunks"`   // of these, that were not in the bucket
	StoredBytes int64 `json:"StoredBytes"` // that they cost there
	DataBytes   int64 `json:"DataBytes"`   // of the blob that are no hole
}

// cut is a piece of work between the chunker and the others: a copy of a chunk,
// which goes back to the pool when all have done with it.
type cut struct {
	at    int // in the index
	size  int
	buf   []byte // nil for zeros of that size
	users atomic.Int32
}

// pack cuts src into chunks for to, in one pass with bounded memory: one goroutine
// cuts, one hashes the blob, and several hash, compress and store the chunks.
// progress is told of the bytes dealt with.
func pack(ctx context.Context, src qcow2.Source, to sink, sizes ChunkSizes, progress func(int64)) (*index, digest.Digest, Packed, error) {
	p := &packer{
		src: src, to: to, progress: progress, index: &index{sizes: sizes},
		pool: make(chan *cut, 2*poolPerWorker*workers()), seen: map[chunkID]bool{},
	}
	for range cap(p.pool) {
		p.pool <- &cut{buf: make([]byte, 0, sizes.Max)}
	}
	p.zero = sha256.Sum256(make([]byte, sizes.Max))
	hash, work := make(chan *cut, cap(p.pool)), make(chan *cut, cap(p.pool))
	g, gctx := errgroup.WithContext(ctx)
	var sum digest.Digest
	g.Go(func() error {
		defer close(hash)
		defer close(work)
		return p.cut(gctx, hash, work)
	})
	g.Go(func() error {
		sum = p.hash(hash)
		return nil
	})
	var left atomic.Int32
	left.Store(int32(workers()))
	for range workers() {
		g.Go(func() error {
			err := p.work(gctx, work)
			if e, ok := to.(ender); left.Add(-1) == 0 && ok && gctx.Err() == nil && err == nil {
				e.end(ctx)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, "", Packed{}, err
	}
	p.done.Chunks = p.index.count()
	return p.index, sum, p.done, nil
}

// workers is how many store chunks at once: several a core, since a store may be
// far away.
func workers() int { return max(8, 2*runtime.GOMAXPROCS(0)) }

const poolPerWorker = 2

type packer struct {
	src      qcow2.Source
	to       sink
	progress func(int64)
	pool     chan *cut
	zero     chunkID // of a chunk of zeros of the greatest size

	mu    sync.Mutex
	index *index
	seen  map[chunkID]bool // stored in this pass
	done  Packed
}

// cut runs the chunker. Where zeros go on for a whole chunk at least, it is told
// so instead of reading them: it would find no boundary in them.
func (p *packer) cut(ctx context.Context, hash, work chan<- *cut) error {
	r, holes := &sparseReader{ahead: ahead{ctx: ctx, src: p.src}}, &ahead{ctx: ctx, src: p.src}
	sizes := p.index.sizes
	c, err := cdc.NewChunker(r, cdc.Sizes(sizes))
	if err != nil {
		return err
	}
	send := func(job *cut, to ...chan<- *cut) error {
		job.users.Store(int32(len(to)))
		for _, ch := range to {
			select {
			case ch <- job:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	storedZero := false
	for pos := int64(0); pos < p.src.Size(); {
		if p.index.count() > (maxIndex-indexOverhead)/tableItem {
			return fmt.Errorf("%w: it has more than %d chunks", ErrTemplate, p.index.count()-1)
		}
		data, _, err := holes.next(pos)
		if err != nil {
			return err
		}
		if n := (data - pos) / int64(sizes.Max); n > 0 {
			if err := c.Skip(n * int64(sizes.Max)); err != nil {
				return err
			}
			for range n {
				at := p.add(int64(sizes.Max), p.zero)
				to := []chan<- *cut{hash}
				if !storedZero { // once, for readers that do not know it
					storedZero, to = true, append(to, work)
				}
				if err := send(&cut{at: at, size: sizes.Max}, to...); err != nil {
					return err
				}
			}
			pos += n * int64(sizes.Max)
			p.progress(n * int64(sizes.Max))
			continue
		}
		b, err := c.Next()
		if err != nil {
			return err
		}
		if len(b) == 0 {
			return fmt.Errorf("the blob ends after %d of %d bytes: %w", pos, p.src.Size(), io.ErrUnexpectedEOF)
		}
		var job *cut
		select {
		case job = <-p.pool:
		case <-ctx.Done():
			return ctx.Err()
		}
		job.buf, job.size = append(job.buf[:0], b...), len(b)
		job.at = p.add(int64(len(b)), chunkID{})
		pos += int64(len(b))
		if err := send(job, hash, work); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) add(size int64, id chunkID) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index.add(size, id)
	return p.index.count() - 1
}

func (p *packer) release(job *cut) {
	if job.users.Add(-1) == 0 && job.buf != nil {
		p.pool <- job
	}
}

// hash takes the digest of the whole blob.
func (p *packer) hash(jobs <-chan *cut) digest.Digest {
	h, zeros := sha256.New(), make([]byte, p.index.sizes.Max)
	for job := range jobs {
		if job.buf == nil {
			h.Write(zeros[:job.size])
		} else {
			h.Write(job.buf)
		}
		p.release(job)
	}
	return digest.FromSum([32]byte(h.Sum(nil)))
}

// work names chunks and stores them.
func (p *packer) work(ctx context.Context, jobs <-chan *cut) error {
	for job := range jobs {
		plain := job.buf
		if plain == nil {
			plain = make([]byte, job.size)
		}
		id := chunkID(sha256.Sum256(plain))
		p.mu.Lock()
		p.index.set(job.at, id)
		known := p.seen[id]
		p.seen[id] = true
		p.mu.Unlock()
		if !known {
			n, err := p.to.put(ctx, id, plain)
			if err != nil {
				return err
			}
			p.mu.Lock()
			if n > 0 {
				p.done.NewChunks++
				p.done.StoredBytes += n
			}
			p.mu.Unlock()
		}
		if job.buf != nil {
			p.mu.Lock()
			p.done.DataBytes += int64(job.size)
			p.mu.Unlock()
			p.progress(int64(job.size))
		}
		p.release(job)
	}
	return ctx.Err()
}

// ahead finds the runs of zeros and of data of a blob, going forward.
type ahead struct {
	ctx       context.Context //nolint:containedctx // that of the one pass
	src       qcow2.Source
	from      int64 // what is known of begins here,
	data, end int64 // has data here, and ends here
}

// runs is how far ahead is looked for data.
const runs = 64 << 20

var errFound = errors.New("found")

// next returns where at or behind pos the next data begins, and where that ends;
// it looks no further than runs.
func (r *ahead) next(pos int64) (data, end int64, err error) {
	if pos >= r.from && pos < r.end {
		return max(pos, r.data), r.end, nil
	}
	limit := min(pos+runs, r.src.Size())
	r.from, r.data, r.end = pos, limit, limit
	found := false
	err = r.src.Extents(r.ctx, pos, limit-pos, func(off, length int64, state qcow2.ExtentState) error {
		switch {
		case state != qcow2.Zero && !found:
			found, r.data, r.end = true, off, off+length
		case state != qcow2.Zero:
			r.end = off + length
		case found:
			return errFound
		}
		return nil
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	return max(pos, r.data), r.end, err
}

// sparseReader reads a blob from one end to the other; its zeros cost no reading.
type sparseReader struct {
	ahead
	pos int64
}

func (r *sparseReader) Read(p []byte) (int, error) {
	if r.pos >= r.src.Size() {
		return 0, io.EOF
	}
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	data, end, err := r.next(r.pos)
	if err != nil {
		return 0, err
	}
	if data > r.pos {
		n := min(int64(len(p)), data-r.pos)
		clear(p[:n])
		r.pos += n
		return int(n), nil
	}
	n, err := r.src.ReadAt(p[:min(int64(len(p)), end-r.pos, readPiece)], r.pos)
	r.pos += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// readPiece is how much is read at once.
const readPiece = 1 << 20

// Seek goes forward, for the chunker.
func (r *sparseReader) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || off < 0 {
		return r.pos, errors.ErrUnsupported
	}
	r.pos += off
	return r.pos, nil
}
