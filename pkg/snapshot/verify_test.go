package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
)

// Whatever comes in whichever pieces, the hash is that of all of it.
func TestReadAhead(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	for _, n := range []int{0, 1, aheadBytes - 1, aheadBytes, aheadBytes + 1, (aheadPieces + 1) * aheadBytes, 3*aheadPieces*aheadBytes + 7} {
		b := make([]byte, n)
		random.Read(b)
		for name, r := range map[string]io.Reader{
			"whole": bytes.NewReader(b), "halves": iotest.HalfReader(bytes.NewReader(b)), "error with the data": iotest.DataErrReader(bytes.NewReader(b)),
		} {
			h, sum := sha256.New(), int64(0)
			if err := newAhead().hash(t.Context(), h, r, func(n int64) { sum += n }); err != nil {
				t.Errorf("%d bytes, %s: %v", n, name, err)
			}
			if [sha256.Size]byte(h.Sum(nil)) != sha256.Sum256(b) || sum != int64(n) {
				t.Errorf("%d bytes, %s: got another hash, or %d bytes added", n, name, sum)
			}
		}
		// A bad disk, or an interruption, ends it wherever it comes.
		bad := errors.New("a bad disk")
		r := io.MultiReader(bytes.NewReader(b), iotest.ErrReader(bad))
		if err := newAhead().hash(t.Context(), sha256.New(), r, func(int64) {}); !errors.Is(err, bad) {
			t.Errorf("%d bytes: got %v, want the disk's error", n, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		err := newAhead().hash(ctx, sha256.New(), io.MultiReader(bytes.NewReader(b), bytes.NewReader(make([]byte, 2*aheadBytes))), func(int64) { cancel() })
		if cancel(); !errors.Is(err, context.Canceled) {
			t.Errorf("%d bytes: got %v, want it interrupted", n, err)
		}
	}
}

// A layer is told of for itself: what it stands on has to be there, and that is all.
func TestVerifyLayerAlone(t *testing.T) {
	s := open(t)
	step := ami.NoProgress.Step("", 0)
	base := write(t, s, raw(t, 0), "")
	child := write(t, s, raw(t, 1), base.Digest)
	damage(t, s.layerPath(base.Digest), 0)
	if err := s.VerifyLayer(t.Context(), base.Digest, step); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	if err := s.VerifyLayer(t.Context(), child.Digest, step); err != nil {
		t.Errorf("got %v of what stands on a damaged layer, want it well", err)
	}
	if err := os.Remove(s.layerPath(base.Digest)); err != nil {
		t.Fatal(err)
	}
	if err := s.VerifyLayer(t.Context(), child.Digest, step); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), base.Digest.Short()) {
		t.Errorf("got %v, want ErrNotFound of what it stands on", err)
	}
	if err := s.VerifyLayer(t.Context(), base.Digest, step); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	// A file that has its digest for a name, and is no layer.
	text := []byte("no layer")
	if err := os.WriteFile(s.layerPath(digest.Of(text)), text, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := s.VerifyLayer(t.Context(), digest.Of(text), step); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
}

// All layers are told of, once each and whatever comes of the others; an
// interruption ends it.
func TestVerifyLayers(t *testing.T) {
	s := open(t)
	var layers []digest.Digest
	for i := range 20 {
		layers = append(layers, write(t, s, raw(t, byte(i+1)), "").Digest)
	}
	damage(t, s.layerPath(layers[3]), 5)
	if err := os.Remove(s.layerPath(layers[7])); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	got := map[digest.Digest]error{}
	err := s.VerifyLayers(t.Context(), layers, ami.NoProgress.Step("", 0), func(d digest.Digest, err error) {
		mu.Lock()
		defer mu.Unlock()
		if _, twice := got[d]; twice {
			t.Errorf("%s is told of twice", d.Short())
		}
		got[d] = err
	})
	if err != nil || len(got) != len(layers) {
		t.Errorf("got %d layers told of, %v; want %d", len(got), err, len(layers))
	}
	for i, d := range layers {
		want := map[int]error{3: ErrCorrupt, 7: ErrNotFound}[i]
		if err := got[d]; !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("layer %d: got %v, want %v", i, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	err = s.VerifyLayers(ctx, layers, ami.NoProgress.Step("", 0), func(digest.Digest, error) {
		mu.Lock()
		defer mu.Unlock()
		n++
		cancel()
	})
	if !errors.Is(err, context.Canceled) || n == len(layers) {
		t.Errorf("got %d layers told of, %v; want it interrupted", n, err)
	}
	if err := s.VerifyLayers(t.Context(), nil, ami.NoProgress.Step("", 0), nil); err != nil {
		t.Errorf("got %v of nothing", err)
	}
}

// damage flips a bit of a file.
func damage(t *testing.T, path string, at int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 1
	os.Remove(path)
	if err := os.WriteFile(path, b, 0o444); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyBlocks(t *testing.T) {
	s := open(t)
	l := write(t, s, raw(t, 1), "")
	other := write(t, s, raw(t, 2), "")
	for _, tt := range []struct {
		name     string
		do       func()
		size     int64
		contents []digest.Digest
		want     error
	}{
		{"as it was written", func() {}, l.Size, []digest.Digest{l.Content, l.Content}, nil},
		{"of any size", func() {}, 0, nil, nil},
		{"of another size", func() {}, l.Size + 512<<10, nil, ErrBlocks},
		{"of another content", func() {}, l.Size, []digest.Digest{l.Content, other.Content}, ErrBlocks},
		{"a flipped bit in the content", func() { damage(t, s.blocksPath(l.Digest), 40) }, 0, nil, ErrBlocks},
		{"a flipped bit in the magic number", func() { damage(t, s.blocksPath(l.Digest), 40); damage(t, s.blocksPath(l.Digest), 0) }, 0, nil, ErrBlocks},
		{"empty", func() { os.Truncate(s.blocksPath(l.Digest), 0) }, 0, nil, ErrBlocks},
		{"none", func() { os.Remove(s.blocksPath(l.Digest)) }, l.Size, []digest.Digest{l.Content}, nil},
	} {
		tt.do()
		if err := s.VerifyBlocks(l.Digest, tt.size, tt.contents...); !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestVerifyHead(t *testing.T) {
	s := open(t)
	l := write(t, s, raw(t, 1), "")
	id, blank := ami.NewVolumeID(), ami.NewVolumeID()
	for id, layer := range map[ami.VolumeID]digest.Digest{id: l.Digest, blank: ""} {
		if _, err := s.CreateHead(id, 8<<20, layer, ""); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, id ami.VolumeID, layer digest.Digest, size int64, want error) {
		t.Helper()
		if err := s.VerifyHead(t.Context(), id, layer, size); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
	}
	check("as it was made", id, l.Digest, 8<<20, nil)
	check("larger than its record", id, l.Digest, 4<<20, nil)
	check("smaller than its record", id, l.Digest, 9<<20, ErrCorrupt)
	check("on no layer by its record", id, "", 8<<20, ErrCorrupt)
	check("blank", blank, "", 8<<20, nil)
	check("on a layer by its record", blank, l.Digest, 8<<20, ErrCorrupt)
	check("not there", ami.NewVolumeID(), "", 8<<20, ErrNotFound)

	// A table that is damaged: told of at rest, and not while somebody writes.
	path := s.HeadPath(id)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[48+2] = 1 // the refcount table lies far behind the file
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	check("a damaged table", id, l.Digest, 8<<20, ErrCorrupt)
	b[48+2] = 0
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	check("mended", id, l.Digest, 8<<20, nil)
	damage(t, path, 0)
	check("no qcow2 file", id, l.Digest, 8<<20, ErrCorrupt)
}

// FileBusy sees who has an image open, for reading too: a guest's disk stands on it.
func TestFileBusy(t *testing.T) {
	s := open(t)
	l := write(t, s, raw(t, 1), "")
	busy := func(want bool) {
		t.Helper()
		if got, err := FileBusy(s.layerPath(l.Digest)); err != nil || got != want {
			t.Errorf("got %v, %v; want %v", got, err, want)
		}
	}
	busy(false)
	cmd := exec.CommandContext(t.Context(), "qemu-io", "-r", "-f", "qcow2", s.layerPath(l.Digest))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	io.WriteString(stdin, "read 0 512\n")
	if _, err := stdout.Read(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	busy(true)
	stdin.Close()
	io.Copy(io.Discard, stdout)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	busy(false)
	if got, err := FileBusy(s.HeadPath(ami.NewVolumeID())); got || err != nil {
		t.Errorf("got %v, %v of what is not there", got, err)
	}
}

// TestRottenNamesake writes a layer whose name a damaged file has: the good one
// takes its place.
func TestRottenNamesake(t *testing.T) {
	s := open(t)
	l := write(t, s, raw(t, 1), "")
	path := s.layerPath(l.Digest)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if err := errors.Join(os.Remove(path), os.WriteFile(path, b, 0o400)); err != nil {
		t.Fatal(err)
	}
	if again := write(t, s, raw(t, 1), ""); again.Digest != l.Digest {
		t.Fatalf("the same disk is the layer %s, and was %s", again.Digest.Short(), l.Digest.Short())
	}
	if err := s.VerifyLayer(t.Context(), l.Digest, ami.NoProgress.Step("", 0)); err != nil {
		t.Errorf("after it was written again: %v", err)
	}
}
