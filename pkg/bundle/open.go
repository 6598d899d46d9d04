package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/qcow2"
)

// Bundle is an open bundle: its manifest and index are verified, its chunks are
// as they are read. It holds no connection; the store is its opener's.
type Bundle struct {
	location Location
	store    object.Store
	manifest Manifest
	signer   ssh.PublicKey // nil for an unsigned one
	trusted  bool
	index    *index
	chunks   *object.Chunks
	zero     chunkID
	get      func(ctx context.Context, id chunkID) ([]byte, error) // nil is that of chunks
}

// Open reads a bundle's manifest and index and verifies both, by the signature and
// by the manifest. It returns ErrNotFound, ErrUnsigned, ErrUntrusted, ErrSignature,
// ErrManifest or ErrIndex.
func Open(ctx context.Context, store object.Store, location string, trust Trust) (*Bundle, error) {
	b, err := describe(ctx, store, location, trust)
	if err != nil {
		return nil, err
	}
	m := b.manifest
	// The index is the one beside the manifest, under whatever name a copy has.
	file, err := object.ReadSmall(ctx, store, path.Join(path.Dir(b.location.manifest()), m.Index.Name), m.Index.Size)
	if errors.Is(err, object.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s is missing", ErrIndex, m.Index.Name)
	}
	if err != nil {
		return nil, err
	}
	if int64(len(file)) != m.Index.Size || digest.Of(file) != m.Index.Digest {
		return nil, fmt.Errorf("%w: %s is not the one that the manifest names", ErrIndex, m.Index.Name)
	}
	if b.index, err = parseIndex(file); err != nil {
		return nil, err
	}
	if b.index.sizes != m.ChunkSizes || b.index.size() != m.Size {
		return nil, fmt.Errorf("%w: it is of %d bytes, the manifest of %d", ErrIndex, b.index.size(), m.Size)
	}
	if b.chunks, err = object.NewChunks(store, chunks(b.location.Bucket)); err != nil {
		return nil, err
	}
	b.zero = object.SumChunk(make([]byte, m.ChunkSizes.Max))
	return b, nil
}

// describe reads and verifies the manifest alone.
func describe(ctx context.Context, store object.Store, location string, trust Trust) (*Bundle, error) {
	l, err := ParseLocation(location)
	if err != nil {
		return nil, err
	}
	text, err := object.ReadSmall(ctx, store, l.manifest(), maxManifest)
	if errors.Is(err, object.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s in %s", ErrNotFound, l, store.URL())
	}
	if err != nil {
		return nil, err
	}
	b := &Bundle{location: l, store: store}
	sig, err := object.ReadSmall(ctx, store, l.signature(), maxSignature)
	switch {
	case errors.Is(err, object.ErrNotFound):
		err = fmt.Errorf("%w: %s", ErrUnsigned, l)
	case err == nil:
		b.signer, err = trust.verify(text, sig)
		b.trusted = err == nil
	}
	if err != nil && !(trust.AllowUnsigned && isSignatureFault(err)) {
		return nil, err
	}
	if b.manifest, err = ParseManifest(text); err != nil {
		return nil, err
	}
	return b, nil
}

// Manifest says what the bundle is.
func (b *Bundle) Manifest() Manifest { return b.manifest }

// Location says where the bundle is.
func (b *Bundle) Location() Location { return b.location }

// Signer is the fingerprint of the key that signed the bundle and whether that is
// a trusted one; "" when none did.
func (b *Bundle) Signer() (fingerprint string, trusted bool) {
	if b.signer == nil {
		return "", false
	}
	return ssh.FingerprintSHA256(b.signer), b.trusted
}

// Size is that of the blob, in bytes.
func (b *Bundle) Size() int64 { return b.manifest.Size }

// Extents calls fn with consecutive runs that cover [off, off+length) of the blob,
// each data or zeros: what is zero is known without reading.
func (b *Bundle) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state qcow2.ExtentState) error) error {
	end := min(off+length, b.Size())
	begun, state := off, qcow2.Data
	for i := b.index.at(off); off < end; i++ {
		if i%4096 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		_, _, id := b.index.chunk(i)
		s := qcow2.Data
		if id == b.zero {
			s = qcow2.Zero
		}
		if s != state && off > begun {
			if err := fn(begun, off-begun, state); err != nil {
				return err
			}
			begun = off
		}
		state, off = s, min(b.index.end(i), end)
	}
	if off > begun {
		return fn(begun, off-begun, state)
	}
	return nil
}

// chunk returns the bytes of chunk i, which are verified.
func (b *Bundle) chunk(ctx context.Context, i int) ([]byte, error) {
	start, size, id := b.index.chunk(i)
	get := b.get
	if get == nil {
		get = b.chunks.Get
	}
	plain, err := get(ctx, id)
	switch {
	case errors.Is(err, object.ErrNotFound):
		err = fmt.Errorf("%w: %s (for the bytes from %d on) is missing", ErrChunk, id, start)
	case errors.Is(err, object.ErrDamaged), errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("%w: (for the bytes from %d on): %w", ErrChunk, start, err)
	case err == nil && int64(len(plain)) != size:
		err = fmt.Errorf("%w: %s has %d bytes, the index says %d", ErrChunk, id, len(plain), size)
	}
	return plain, err
}

// fetchers is how many chunks are fetched at once.
func fetchers() int { return max(8, 2*runtime.GOMAXPROCS(0)) }

// Assemble writes the blob to w, which is empty: what is zero is not written.
// Every chunk is verified before. progress is told of the bytes dealt with.
func (b *Bundle) Assemble(ctx context.Context, w io.WriterAt, progress func(int64)) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchers())
	for i := range b.index.count() {
		start, size, id := b.index.chunk(i)
		if id == b.zero {
			progress(size)
			continue
		}
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			plain, err := b.chunk(gctx, i)
			if err != nil {
				return err
			}
			progress(size)
			return qcow2.WriteSparse(w, plain, start)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}
