package qcow2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"github.com/DataDog/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/kamivm/kami/pkg/digest"
)

// Parent is the layer that a new layer stands on.
type Parent struct {
	Image  *Image // its whole chain
	Layer  digest.Digest
	Blocks *Blocks
}

// LayerResult is what WriteLayer made.
type LayerResult struct {
	Layer        digest.Digest // SHA-256 of the file
	Content      digest.Digest
	FileSize     int64
	Blocks       *Blocks
	DataClusters int64
	ZeroClusters int64
}

// WriteLayer writes src to w, which is empty, as a canonical layer over parent
// (nil for none). What equals the parent is not stored, nor are zeros over
// zeros. The same content over the same parent gives the same bytes, whatever
// kind of source it came from. progress is told of the bytes dealt with.
//
// With an Encryption the layer is encrypted, which is then part of what the same
// bytes are owed to: its LUKS header is taken over as it is. QEMU does not encrypt
// what is compressed, so nothing is. No plain data comes to the disk, not even
// while it is staged.
//
// Blocks of 512 KiB are read, hashed, compared and compressed on all cores and
// staged in guest order; only then is it known how large the tables are, and
// the file is laid out: header, refcounts, L1, L2, data. Memory is a few blocks
// a core, up to maxWorkers, and the digests: 64 bytes a MiB that is not zeros.
func WriteLayer(ctx context.Context, w *os.File, src Source, parent *Parent, enc *Encryption, progress func(n int64)) (LayerResult, error) {
	if src.Size() <= 0 || src.Size()%512 != 0 || src.Size() > maxVirtualBytes {
		return LayerResult{}, fmt.Errorf("%w: a disk of %d bytes", ErrUnsupported, src.Size())
	}
	if parent != nil && parent.Image.Size() > src.Size() {
		// The parent's block digests would speak of what is cut off.
		return LayerResult{}, fmt.Errorf("%w: a disk of %d bytes over one of %d", ErrUnsupported, src.Size(), parent.Image.Size())
	}
	stage, err := newStage(w, enc)
	if err != nil {
		return LayerResult{}, err
	}
	defer stage.close()
	lw := &layerWriter{src: src, parent: parent, progress: progress, stage: stage}
	if parent != nil {
		lw.blocks = parent.Blocks.resized(src.Size())
	} else {
		lw.blocks = NewBlocks(src.Size())
	}
	if err := lw.run(ctx); err != nil {
		return LayerResult{}, err
	}
	if f, ok := src.(Finisher); ok {
		f.Finish()
	}
	if err := stage.flush(); err != nil {
		return LayerResult{}, err
	}
	res := LayerResult{
		Blocks: lw.blocks, Content: lw.blocks.Content(),
		DataClusters: stage.index.data, ZeroClusters: stage.index.zero,
	}
	backing := ""
	if parent != nil {
		backing = parent.Layer.Hex() + ".qcow2"
	}
	res.Layer, res.FileSize, err = stage.layOut(ctx, w, src.Size(), backing)
	return res, err
}

// maxWorkers bounds the blocks in memory on a host of many cores. A worker and
// what waits for it have about 3 MiB.
const maxWorkers = 32

const perBlock = BlockSize / ClusterSize

// layerWriter finds out what has to be stored.
type layerWriter struct {
	src      Source
	parent   *Parent
	blocks   *Blocks
	progress func(int64)
	stage    *stage
	buffers  sync.Pool // *[]byte, for the compressed clusters of a block
}

// work is one block on its way: the state of its clusters, then what became of
// them.
type work struct {
	block  int64
	state  [perBlock]ExtentState
	sum    [sha256.Size]byte // all zero: a block of zeros
	allocs []alloc
	data   [][]byte // parts of buf
	buf    *[]byte
	done   chan error
}

func (lw *layerWriter) run(ctx context.Context) error {
	workers := min(2*runtime.GOMAXPROCS(0), maxWorkers)
	todo, inOrder := make(chan *work), make(chan *work, 2*workers)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(todo)
		defer close(inOrder)
		return lw.plan(ctx, func(wk *work) error {
			select {
			case inOrder <- wk:
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case todo <- wk:
			case <-ctx.Done():
				return ctx.Err()
			}
			return nil
		})
	})
	for range workers {
		g.Go(func() error {
			enc := zstd.NewCtx()
			buf, under := make([]byte, BlockSize), make([]byte, ClusterSize, ClusterSize+decodeRoom)
			for wk := range todo {
				wk.done <- lw.deal(wk, enc, buf, under)
			}
			return nil
		})
	}
	g.Go(func() error {
		for {
			select {
			case wk, ok := <-inOrder:
				if !ok {
					return nil
				}
				if err := lw.collect(ctx, wk); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	return g.Wait()
}

func (lw *layerWriter) collect(ctx context.Context, wk *work) error {
	select {
	case err := <-wk.done:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	lw.blocks.set(wk.block, wk.sum)
	err := lw.stage.add(wk.allocs, wk.data)
	if wk.buf != nil {
		lw.buffers.Put(wk.buf)
		wk.buf, wk.data = nil, nil
	}
	return err
}

// The levels that clusters are compressed at. They are part of the layer's format,
// as is the library's version: both decide on a layer's bytes.
const (
	// wholeLevel is that of a layer that stands on nothing: most of a store is in
	// these, and one is made once for all that stand on it.
	wholeLevel = 4
	// changeLevel is that of what changed, for which somebody waits.
	changeLevel = 2
)

func (lw *layerWriter) level() int {
	if lw.parent == nil {
		return wholeLevel
	}
	return changeLevel
}

// maxPacked is more than a block of clusters can take when compressed, in bytes:
// zstd adds a few bytes to what it cannot compress, and wants room for more.
const maxPacked = BlockSize + perBlock*1024

// buffer returns the room for a block's compressed clusters.
func (lw *layerWriter) buffer() *[]byte {
	if b, ok := lw.buffers.Get().(*[]byte); ok {
		*b = (*b)[:0]
		return b
	}
	b := make([]byte, 0, maxPacked)
	return &b
}

// plan cuts what the source says may have changed into blocks, and passes over
// the rest.
func (lw *layerWriter) plan(ctx context.Context, emit func(*work) error) error {
	size := lw.src.Size()
	cur := &work{block: -1}
	flush := func() error {
		if cur.block < 0 {
			return nil
		}
		wk := cur
		cur = &work{block: -1}
		wk.done = make(chan error, 1)
		return emit(wk)
	}
	reported := int64(0)
	err := lw.src.Extents(ctx, 0, size, func(off, length int64, state ExtentState) error {
		if state == Unallocated && lw.parent == nil {
			state = Data // as in a parent that the layer will not have
		}
		if end := off + length; lw.progress != nil && end-reported >= 64<<20 {
			lw.progress(end - reported)
			reported = end
		}
		if state == Unallocated || state == Zero && lw.parent == nil {
			return nil
		}
		for end := off + length; off < end; {
			block := off / BlockSize
			if block != cur.block {
				if err := flush(); err != nil {
					return err
				}
				if state == Zero && lw.parent.Blocks.Zero(block) { // zeros over zeros
					off = min(end, (block+1)*BlockSize)
					continue
				}
				cur.block = block
			}
			c := off % BlockSize / ClusterSize
			next := min(end, (off/ClusterSize+1)*ClusterSize)
			whole := off%ClusterSize == 0 && (next%ClusterSize == 0 || next == size)
			if state == Zero && whole {
				cur.state[c] = Zero
			} else {
				cur.state[c] = Data
			}
			off = next
		}
		return nil
	})
	if err != nil {
		return err
	}
	if lw.progress != nil {
		lw.progress(size - reported)
	}
	return flush()
}

// deal reads one block and finds what of it has to be stored.
func (lw *layerWriter) deal(wk *work, enc zstd.Ctx, buf, under []byte) error {
	off, n := wk.block*BlockSize, int64(0)
	if wk.state != [perBlock]ExtentState{Zero, Zero, Zero, Zero, Zero, Zero, Zero, Zero} {
		n = min(BlockSize, lw.src.Size()-off)
		if got, err := lw.src.ReadAt(buf[:n], off); err != nil && !(errors.Is(err, io.EOF) && int64(got) == n) {
			return fmt.Errorf("reading the disk at %d: %w", off, err)
		}
	}
	clear(buf[n:])
	if !isZero(buf) {
		wk.sum = sha256.Sum256(buf)
	}
	if lw.parent != nil && lw.parent.Blocks.raw(wk.block) == wk.sum {
		return nil
	}
	for c := range perBlock {
		at := off + int64(c)*ClusterSize
		if at >= lw.src.Size() {
			break
		}
		if wk.state[c] == Unallocated { // the block was read for its digest
			continue
		}
		data := buf[c*ClusterSize : (c+1)*ClusterSize]
		if lw.parent != nil {
			if err := readPadded(lw.parent.Image, under, at); err != nil {
				return fmt.Errorf("reading the parent at %d: %w", at, err)
			}
		}
		a := alloc{cluster: uint32(at / ClusterSize)}
		zero := isZero(data)
		switch {
		case lw.parent == nil && zero, lw.parent != nil && bytes.Equal(data, under):
			continue
		case zero:
			a.packed = allocZero
			wk.allocs = append(wk.allocs, a)
			continue
		}
		if wk.buf == nil {
			wk.buf = lw.buffer()
		}
		start := len(*wk.buf)
		a.packed = allocPlain
		if lw.stage.enc == nil {
			packed, err := enc.CompressLevel((*wk.buf)[start:], data, lw.level())
			if err != nil {
				return fmt.Errorf("compressing the disk at %d: %w", at, err)
			}
			if n := len(packed); n < allocPlain {
				a.packed, *wk.buf = uint16(n), (*wk.buf)[:start+n]
			}
		}
		if a.packed == allocPlain {
			*wk.buf = append(*wk.buf, data...)
		}
		wk.allocs, wk.data = append(wk.allocs, a), append(wk.data, (*wk.buf)[start:])
	}
	return nil
}

// readPadded fills p; what lies beyond the end of the image is zeros. What p has room
// for behind its end may be written over.
func readPadded(img *Image, p []byte, off int64) error {
	n, err := readChain(img.files, p, off, img.Size())
	if errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	return err
}

var zeros [4096]byte //nolint:gochecknoglobals // never written

func isZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// HashBlocks reads a whole source, zeros aside, and returns its block digests.
func HashBlocks(ctx context.Context, src Source) (*Blocks, error) {
	blocks := NewBlocks(src.Size())
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	last := int64(-1)
	err := src.Extents(ctx, 0, src.Size(), func(off, length int64, state ExtentState) error {
		if state == Zero {
			return nil
		}
		for i := max(off/BlockSize, last+1); i*BlockSize < off+length; i++ {
			last = i
			g.Go(func() error {
				buf := make([]byte, BlockSize)
				if n, err := src.ReadAt(buf, i*BlockSize); err != nil && !errors.Is(err, io.EOF) {
					return fmt.Errorf("reading the disk at %d: %w", i*BlockSize+int64(n), err)
				}
				if isZero(buf) {
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				blocks.set(i, sha256.Sum256(buf))
				return nil
			})
		}
		return ctx.Err()
	})
	return blocks, errors.Join(err, g.Wait())
}
