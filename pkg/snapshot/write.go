package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
)

// flattener is a source that tells what has changed over a parent, and can also
// tell all that there is.
type flattener interface{ Flat() qcow2.Source }

// WriteLayer writes src as a layer over parent ("" for none) and returns it when
// it is durable. A layer that is there already is not written again. It costs
// what changed, also past MaxDepth, which LongChain then says; only where a chain
// cannot grow any more is the layer written whole instead.
//
// A layer is encrypted as its source is; see Encrypted. It returns ErrPlain for a
// source that is not, over a parent that is, and ErrNoSpace on a full disk; a
// failure leaves nothing behind.
func (s *Store) WriteLayer(ctx context.Context, src qcow2.Source, parent digest.Digest, step ami.Step) (Layer, error) {
	p, depth, err := s.parent(ctx, parent)
	if err != nil {
		return Layer{}, err
	}
	if p != nil {
		defer p.Image.Close()
	} else if whole, ok := src.(flattener); ok {
		src = whole.Flat() // a layer without a parent holds all
	}
	l, err := s.write(ctx, src, p, depth+1, step, func(string) error { return nil })
	if err == nil && l.Depth > MaxDepth {
		s.long.Store(true)
	}
	return l, err
}

// write writes src over the open layer p, nil for none, as the layer of a chain
// of that depth. check is called with the file before it has its name.
func (s *Store) write(ctx context.Context, src qcow2.Source, p *qcow2.Parent, depth int, step ami.Step, check func(path string) error) (Layer, error) {
	if err := s.checkFree(); err != nil {
		return Layer{}, err
	}
	scratch, err := durable.NewScratch(s.tmp(), "layer")
	if err != nil {
		return Layer{}, noSpace(err)
	}
	defer scratch.Close()
	enc := encryptionOf(src)
	if p != nil && enc == nil && p.Image.Encryption() != nil {
		return Layer{}, fmt.Errorf("%w: a layer on %s", ErrPlain, p.Layer.Short())
	}
	work := scratch.Path("layer.qcow2")
	f, err := os.OpenFile(work, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Layer{}, noSpace(err)
	}
	defer f.Close()
	res, err := qcow2.WriteLayer(ctx, f, src, p, enc, step.Add)
	if err != nil {
		return Layer{}, noSpace(fmt.Errorf("writing layer: %w", err))
	}
	if p != nil && res.DataClusters+res.ZeroClusters == 0 && src.Size() == p.Image.Size() && sameKey(enc, p.Image.Encryption()) {
		// Nothing has changed: the parent is this layer.
		l, err := s.Layer(p.Layer)
		if l.Content = res.Content; err == nil {
			err = check(work)
		}
		return l, err
	}
	durable.Step("layer.written")
	if err := check(work); err != nil {
		return Layer{}, err
	}
	l := Layer{
		Digest: res.Layer, Content: res.Content, Size: src.Size(), FileSize: res.FileSize,
		Depth: depth, Created: time.Now(),
	}
	if enc != nil {
		l.KeyID = enc.KeyID()
	}
	if p != nil {
		l.Parent = p.Layer
	}
	if err := s.place(ctx, f, scratch, work, l.Digest, res.Blocks, enc); err != nil {
		return Layer{}, noSpace(err)
	}
	return l, nil
}

// place gives a written layer its name, then its block list. A list without a
// layer would never be collected; a layer without its list only has to be read
// once more.
func (s *Store) place(ctx context.Context, f *os.File, scratch *durable.Scratch, work string, d digest.Digest, blocks *qcow2.Blocks, enc *qcow2.Encryption) error {
	if _, err := os.Stat(s.layerPath(d)); err == nil {
		// What has the name is what the caller may drop its source for.
		if err := s.VerifyLayer(ctx, d, ami.NoProgress.Step("", 0)); !errors.Is(err, ErrCorrupt) {
			return err
		}
	}
	if err := protect(f); err != nil {
		return err
	}
	list, err := writeBlocks(scratch, blocks, enc) // while there is nothing to take back
	if err != nil {
		return err
	}
	durable.Step("layer.blocks")
	if err := durable.Rename(work, s.layerPath(d)); err != nil {
		return err
	}
	return durable.Rename(list, s.blocksPath(d))
}

// writeBlocks writes a block list in a scratch folder, where a sweep finds what
// a killed process leaves of it.
func writeBlocks(scratch *durable.Scratch, blocks *qcow2.Blocks, enc *qcow2.Encryption) (path string, err error) {
	path = scratch.Path("blocks")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o400)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return path, sealBlocks(f, blocks, enc)
}

// parent opens the layer to stand on and says how deep that is; none when that
// would make a chain which is not read any more.
func (s *Store) parent(ctx context.Context, d digest.Digest) (*qcow2.Parent, int, error) {
	if d == "" {
		return nil, 0, nil
	}
	l, err := s.Layer(d)
	if err != nil {
		return nil, 0, fmt.Errorf("parent layer: %w", err)
	}
	if l.Depth >= longestChain {
		return nil, 0, nil
	}
	blocks, err := s.Blocks(ctx, d)
	if err != nil {
		return nil, 0, fmt.Errorf("parent layer: %w", err)
	}
	img, err := s.OpenLayer(d)
	if err != nil {
		return nil, 0, fmt.Errorf("parent layer: %w", err)
	}
	return &qcow2.Parent{Image: img, Layer: d, Blocks: blocks}, l.Depth, nil
}

// Blocks returns the block digests of a layer; where their list is missing or
// damaged it is made again from the layer.
func (s *Store) Blocks(ctx context.Context, d digest.Digest) (*qcow2.Blocks, error) {
	enc, err := s.encryptionOfLayer(d)
	if err != nil {
		return nil, err
	}
	blocks, err := readBlocks(s.blocksPath(d), enc)
	if err == nil {
		return blocks, nil
	}
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, qcow2.ErrCorrupt) {
		return nil, err
	}
	if blocks, err = s.hashBlocks(ctx, d); err != nil {
		return nil, err
	}
	scratch, err := durable.NewScratch(s.tmp(), "blocks")
	if err != nil {
		return nil, noSpace(err)
	}
	defer scratch.Close()
	list, err := writeBlocks(scratch, blocks, enc)
	if err == nil {
		err = durable.Rename(list, s.blocksPath(d))
	}
	return blocks, noSpace(err)
}

func (s *Store) hashBlocks(ctx context.Context, d digest.Digest) (*qcow2.Blocks, error) {
	img, err := s.OpenLayer(d)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	return qcow2.HashBlocks(ctx, qcow2.Flatten(img))
}

// Layers describes all layers. One that is damaged is listed with what is known.
func (s *Store) Layers(ctx context.Context) ([]Layer, error) {
	names, err := filepath.Glob(filepath.Join(s.root, "layers", "*.qcow2"))
	if err != nil {
		return nil, err
	}
	var out []Layer
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d, err := digest.Parse(filepath.Base(name[:len(name)-len(".qcow2")]))
		if err != nil {
			continue // not ours
		}
		l, err := s.Layer(d)
		if err != nil {
			if st, serr := os.Stat(name); serr == nil {
				l.FileSize, l.Created = st.Size(), st.ModTime()
			}
		}
		out = append(out, l)
	}
	return out, nil
}
