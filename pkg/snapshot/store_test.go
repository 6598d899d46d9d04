package snapshot

import (
	"errors"
	"math/rand"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/qcow2"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// raw is a raw disk of 4 MiB with noise at its start and, if mark, a byte at 3 MiB.
func raw(t *testing.T, mark byte) qcow2.Source {
	t.Helper()
	b := make([]byte, 4<<20)
	rand.New(rand.NewSource(1)).Read(b[:1<<20])
	b[3<<20] = mark
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return sourceOf(t, path)
}

// sourceOf opens a raw disk until the test ends.
func sourceOf(t *testing.T, path string) qcow2.Source {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	src, err := qcow2.RawSource(f)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func write(t *testing.T, s *Store, src qcow2.Source, parent digest.Digest) Layer {
	t.Helper()
	l, err := s.WriteLayer(t.Context(), src, parent, ami.NoProgress.Step("", 0))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLayerIsAFact(t *testing.T) {
	s := open(t)
	l := write(t, s, raw(t, 0), "")
	if again := write(t, s, raw(t, 0), ""); again.Digest != l.Digest {
		t.Errorf("the same content is %s, then %s", l.Digest, again.Digest)
	}
	b, err := os.ReadFile(s.layerPath(l.Digest))
	if err != nil {
		t.Fatal(err)
	}
	if got := digest.Of(b); got != l.Digest {
		t.Errorf("the file's digest is %s, its name %s", got, l.Digest)
	}
	st, err := os.Stat(s.layerPath(l.Digest))
	if err != nil {
		t.Fatal(err)
	}
	want := os.FileMode(0o400)
	if os.Getuid() == 0 {
		want = 0o444
		if gid, found := qemuGroup(); found {
			want = 0o440
			if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Gid) != gid {
				t.Errorf("the layer's group is not that of guests, %d", gid)
			}
		}
	}
	if st.Mode().Perm() != want {
		t.Errorf("mode %o, want %o", st.Mode().Perm(), want)
	}
	if left, _ := os.ReadDir(s.tmp()); len(left) > 0 {
		t.Errorf("%d things left in tmp", len(left))
	}
}

func TestChildHoldsWhatChanged(t *testing.T) {
	s := open(t)
	base := write(t, s, raw(t, 0), "")
	child := write(t, s, raw(t, 1), base.Digest)
	got, err := s.Layer(child.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if got.Parent != base.Digest || got.Depth != 2 {
		t.Errorf("parent %s depth %d, want %s and 2", got.Parent.Short(), got.Depth, base.Digest.Short())
	}
	if child.FileSize > 512<<10 {
		t.Errorf("a changed byte costs %d bytes", child.FileSize)
	}
	if err := s.RemoveLayer(base.Digest); !errors.Is(err, ErrInUse) {
		t.Errorf("removing a parent: got %v, want ErrInUse", err)
	}
	if err := s.RemoveLayer(child.Digest); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveLayer(base.Digest); err != nil {
		t.Fatal(err)
	}
}

func TestLostBlockListIsMadeAgain(t *testing.T) {
	s := open(t)
	l := write(t, s, raw(t, 1), "")
	for _, damage := range []func() error{
		func() error { return os.Remove(s.blocksPath(l.Digest)) },
		func() error {
			os.Remove(s.blocksPath(l.Digest))
			return os.WriteFile(s.blocksPath(l.Digest), []byte("damaged"), 0o600)
		},
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		blocks, err := s.Blocks(t.Context(), l.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if blocks.Content() != l.Content {
			t.Errorf("content %s, want %s", blocks.Content(), l.Content)
		}
	}
}

func TestVerifyFindsAFlippedBit(t *testing.T) {
	s := open(t)
	l := write(t, s, raw(t, 1), "")
	step := ami.NoProgress.Step("", 0)
	if err := s.VerifyLayer(t.Context(), l.Digest, step); err != nil {
		t.Fatal(err)
	}
	path := s.layerPath(l.Digest)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	os.Remove(path)
	if err := os.WriteFile(path, b, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := s.VerifyLayer(t.Context(), l.Digest, step); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
}

func TestHeads(t *testing.T) {
	s := open(t)
	l := write(t, s, raw(t, 1), "")
	id := ami.NewVolumeID()
	if _, err := s.CreateHead(id, l.Size, l.Digest, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateHead(id, l.Size, l.Digest, ""); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second head: got %v, want ErrExist", err)
	}
	img, err := s.OpenHead(id, l.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	b := make([]byte, 1)
	if _, err := img.ReadAt(b, 3<<20); err != nil || b[0] != 1 {
		t.Errorf("the head reads %d, %v; want 1", b[0], err)
	}
	if err := s.RemoveLayer(l.Digest); !errors.Is(err, ErrInUse) {
		t.Errorf("removing a head's layer: got %v, want ErrInUse", err)
	}
	if _, err := s.CreateHead(ami.NewVolumeID(), l.Size-1, l.Digest, ""); !errors.Is(err, ErrTooSmall) {
		t.Errorf("got %v for a head that would cut its layer off, want ErrTooSmall", err)
	}
	if size, err := s.HeadSize(id); err != nil || size != l.Size {
		t.Errorf("got a head of %d bytes (%v), want %d", size, err, l.Size)
	}
	if _, err := s.CreateHead(ami.NewVolumeID(), l.Size, digest.Of(nil), ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("a head on no layer: got %v, want ErrNotFound", err)
	}
}
