package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
)

// AdoptLayer takes the file at path as the layer want: that of another store, or
// one that came from elsewhere. Its bytes have to come to the Digest, it has to be a
// layer over the Parent, which is in the store, and its disk has to have the Content
// ("" for any); only then it has its name. Where the file lies on the same file
// system, is ours, and nobody can write to it, it is not copied but has two names,
// and the bytes copied are 0. A layer that is there already is not read again. It returns
// ErrCorrupt, ErrNotFound where the parent is not there, and ErrNoSpace; a failure
// leaves nothing behind.
func (s *Store) AdoptLayer(ctx context.Context, path string, want Layer, step ami.Step) (l Layer, copied int64, err error) {
	d := want.Digest
	if l, err = s.Layer(d); err == nil {
		blocks, err := s.Blocks(ctx, d)
		if err == nil {
			l.Content = blocks.Content()
			err = want.is(l)
		}
		return l, 0, err
	}
	if !errors.Is(err, ErrNotFound) {
		return l, 0, err
	}
	if err := s.checkFree(); err != nil {
		return l, 0, err
	}
	scratch, err := durable.NewScratch(s.tmp(), "layer")
	if err != nil {
		return l, 0, noSpace(err)
	}
	defer scratch.Close()
	work := scratch.Path("layer.qcow2")
	if copied, err = s.take(ctx, path, work, d, step); err != nil {
		return l, 0, noSpace(err)
	}
	l, blocks, enc, err := s.examine(ctx, work, want)
	if err == nil {
		err = want.is(l)
	}
	if err != nil {
		return l, 0, err
	}
	list, err := writeBlocks(scratch, blocks, enc)
	if err != nil {
		return l, 0, noSpace(err)
	}
	durable.Step("layer.adopted")
	if err := durable.Rename(work, s.layerPath(d)); err != nil {
		return l, 0, noSpace(err)
	}
	if err := durable.Rename(list, s.blocksPath(d)); err != nil {
		return l, 0, noSpace(err)
	}
	if l.Depth > MaxDepth {
		s.long.Store(true)
	}
	return l, copied, nil
}

// is says whether a layer is the one that is wanted.
func (want Layer) is(l Layer) error {
	switch {
	case l.Parent != want.Parent:
		return fmt.Errorf("%w: %s stands on %s, and is to stand on %s", ErrCorrupt, l.Digest.Short(), orNothing(l.Parent), orNothing(want.Parent))
	case want.Content != "" && l.Content != want.Content:
		return fmt.Errorf("%w: the content of %s has the digest %s, and is to have %s", ErrCorrupt, l.Digest.Short(), l.Content.Short(), want.Content.Short())
	}
	return nil
}

// take gives the file at from a second name or copies it, and verifies its bytes.
// One in the store's own folder for work is taken over.
func (s *Store) take(ctx context.Context, from, to string, d digest.Digest, step ami.Step) (copied int64, err error) {
	in, err := os.Open(from)
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("%w: %s", ErrNotFound, d.Short())
	}
	if err != nil {
		return 0, err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return 0, err
	}
	if !st.Mode().IsRegular() {
		return 0, fmt.Errorf("%w: %s is no file", ErrCorrupt, d.Short())
	}
	h, read := sha256.New(), io.Reader(in)
	ours := strings.HasPrefix(from, s.tmp()+string(filepath.Separator))
	linked := (ours || ownUnwritable(st)) && link(in, to) == nil
	switch {
	case linked && ours:
		copied = st.Size()
		if err := protect(in); err != nil {
			return 0, err
		}
	case !linked:
		out, oerr := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if oerr != nil {
			return 0, oerr
		}
		defer func() { err = errors.Join(err, out.Close()) }()
		if err := protect(out); err != nil {
			return 0, err
		}
		read = io.TeeReader(in, out)
		copied = st.Size()
	}
	_ = unix.Fadvise(int(in.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	if err := newAhead().hash(ctx, h, read, step.Add); err != nil {
		return 0, fmt.Errorf("copying layer %s: %w", d.Short(), err)
	}
	if got := digest.FromSum([sha256.Size]byte(h.Sum(nil))); got != d {
		return 0, fmt.Errorf("%w: the bytes of %s have the digest %s", ErrCorrupt, d.Short(), got.Short())
	}
	return copied, nil
}

// ownUnwritable says whether a file is this user's and nobody's to write to: one that
// somebody else may write to, or allow that, is none that never changes.
func ownUnwritable(st os.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Geteuid() && st.Mode().Perm()&0o222 == 0
}

// link gives an open file another name: that file, whatever has its name by now.
func link(f *os.File, to string) error {
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW)
}

// examine looks at a file that is to be a layer. Nothing that its header names is
// opened but the layer of the store that it stands on.
func (s *Store) examine(ctx context.Context, path string, want Layer) (Layer, *qcow2.Blocks, *qcow2.Encryption, error) {
	fail := func(err error) (Layer, *qcow2.Blocks, *qcow2.Encryption, error) { return Layer{}, nil, nil, err }
	d := want.Digest
	info, parent, st, err := inspect(path, "")
	if err == nil {
		err = want.is(Layer{Digest: d, Parent: parent, Content: want.Content})
	}
	if err != nil {
		return fail(err)
	}
	if info.DataFile || info.Snapshots > 0 || info.Encrypted && info.KeyID == "" {
		return fail(fmt.Errorf("%w: %s is no layer of kami's", ErrCorrupt, d.Short()))
	}
	if err := qcow2.CheckTables(ctx, path); err != nil {
		return fail(fmt.Errorf("%w: %s: %w", ErrCorrupt, d.Short(), err))
	}
	l := Layer{Digest: d, Parent: parent, Size: info.Size, FileSize: st.Size(), Depth: 1, KeyID: info.KeyID, Created: st.ModTime()}
	chain, under := []string(nil), qcow2.NewBlocks(info.Size)
	if parent != "" {
		p, err := s.Layer(parent)
		if err != nil {
			return fail(fmt.Errorf("parent layer: %w", err))
		}
		if p.Size > info.Size || p.Depth >= longestChain {
			return fail(fmt.Errorf("%w: %s cannot stand on %s", ErrCorrupt, d.Short(), parent.Short()))
		}
		if p.KeyID != "" && info.KeyID == "" {
			return fail(fmt.Errorf("%w: %s on %s", ErrPlain, d.Short(), parent.Short()))
		}
		l.Depth = p.Depth + 1
		if under, err = s.Blocks(ctx, parent); err != nil {
			return fail(fmt.Errorf("parent layer: %w", err))
		}
		if chain, err = s.Chain(parent); err != nil {
			return fail(err)
		}
	}
	img, err := qcow2.OpenKeyed(s.keys, path, chain...)
	if err != nil {
		return fail(err)
	}
	defer img.Close()
	blocks, err := qcow2.HashBlocksOver(ctx, img, under)
	if errors.Is(err, qcow2.ErrCorrupt) {
		err = fmt.Errorf("%w: %s: %w", ErrCorrupt, d.Short(), err)
	}
	if err != nil {
		return fail(err)
	}
	l.Content = blocks.Content()
	return l, blocks, img.Encryption(), nil
}
