package region

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// seeds are the chunks that the layers of this host have. They are read of the
// files that were open when they were found, also if these are removed since, and
// held against their ids: what is not right is fetched.
type seeds struct {
	at   map[object.ChunkID]seed
	open []*qcow2.Image
}

type seed struct {
	from io.ReaderAt
	off  int64
	size int64
}

func (s *seeds) close() {
	for _, img := range s.open {
		img.Close()
	}
}

func (s *seeds) has(id object.ChunkID) bool { _, has := s.at[id]; return has }

// get returns a chunk of this host, nil where there is none that is right.
func (s *seeds) get(id object.ChunkID) []byte {
	at, has := s.at[id]
	if !has {
		return nil
	}
	plain := make([]byte, at.size)
	if n, err := at.from.ReadAt(plain, at.off); err != nil && !(errors.Is(err, io.EOF) && n == len(plain)) {
		return nil
	}
	if object.SumChunk(plain) != id {
		return nil
	}
	return plain
}

// take adds the chunks of a blob that lies in a layer here.
func (s *seeds) take(blob *bundle.Reader, src io.ReaderAt, limit int64) {
	blob.Each(func(off, size int64, id object.ChunkID) {
		if off+size <= limit && !s.has(id) {
			s.at[id] = seed{src, off, size}
		}
	})
}

const (
	// worthCutting is how much has to be lacking, in bytes, for layers of this host
	// to be cut in search of it.
	worthCutting = 32 << 20
	// cutAtMost is how many times as much may be cut as is lacking.
	cutAtMost = 4
)

// plant finds what of a blob the layers of this host have: first those that the
// remote region has too, whose chunks it lists; then, where that leaves much to
// fetch, by cutting the others, the newest first.
func (f *far) plant(ctx context.Context, to *Region, blob *bundle.Reader) (*seeds, error) {
	s := &seeds{at: map[object.ChunkID]seed{}}
	set, err := to.layerSet(ctx)
	if err != nil {
		return s, err
	}
	var here []snapshot.Layer
	for _, l := range set {
		if l.KeyID == "" && l.Size > 0 {
			here = append(here, l)
		}
	}
	slices.SortFunc(here, func(a, b snapshot.Layer) int { return b.Created.Compare(a.Created) })
	lacking := func() (n int64) {
		blob.Each(func(_, size int64, id object.ChunkID) {
			if !s.has(id) {
				n += size
			}
		})
		return n
	}
	there := map[string]bool{}
	err = f.store.List(ctx, remoteBucket+"/layers/", func(o object.Info) error {
		there[o.Name] = true
		return nil
	})
	if err != nil {
		return s, err
	}
	seen := map[digest.Digest]bool{}
	for _, l := range here {
		if !there[layerManifest(l.Digest)] {
			continue
		}
		rec, err := f.layer(ctx, l.Digest)
		if errors.Is(err, object.ErrNotFound) || errors.Is(err, snapshot.ErrCorrupt) {
			continue
		}
		if err != nil {
			return s, err
		}
		src, err := s.openBlob(ctx, to, l)
		if err != nil || src.size != rec.Bytes || rec.Bytes == 0 {
			continue // no layer here that can be read is worth a failure
		}
		known, err := bundle.OpenBlob(ctx, f.store, remoteBucket, rec.Index, nil)
		if err != nil {
			continue
		}
		s.take(known, src, src.size)
		seen[l.Digest] = true
		if lacking() < worthCutting {
			return s, nil
		}
	}
	budget := cutAtMost * lacking()
	for _, l := range here {
		if seen[l.Digest] || budget <= 0 || lacking() < worthCutting {
			continue
		}
		src, err := s.openBlob(ctx, to, l)
		if err != nil || src.size == 0 || src.size > budget {
			continue
		}
		budget -= src.size
		step := to.progress.Step("looking what "+l.Digest.Short()+" has of it", src.size)
		cut, err := bundle.CutBlob(ctx, src, bundle.CopyChunkSizes, step.Add)
		step.Done(err)
		if ctx.Err() != nil {
			return s, ctx.Err()
		}
		if err == nil {
			s.take(cut, src, src.size)
		}
	}
	return s, nil
}

// openBlob opens the data that a layer of this host itself has.
func (s *seeds) openBlob(ctx context.Context, to *Region, l snapshot.Layer) (layerBytes, error) {
	img, err := to.layers.OpenLayer(l.Digest)
	if err != nil {
		return layerBytes{}, err
	}
	s.open = append(s.open, img)
	runs, size, err := runsOf(ctx, img, l.Parent == "")
	return layerBytes{img, dataRuns(runs), size}, err
}
