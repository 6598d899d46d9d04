package snapshot

import (
	"errors"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/qcow2"
)

// lineageOf writes n layers, each on the one before: a base of noise, and layers
// in which one cluster of it is new. One change is taken back, one writes zeros.
func lineageOf(t *testing.T, s *Store, mib, n int) []Layer {
	t.Helper()
	disk := make([]byte, mib<<20)
	rand.New(rand.NewSource(int64(mib))).Read(disk)
	first := slices.Clone(disk[qcow2.ClusterSize : 2*qcow2.ClusterSize])
	path := filepath.Join(t.TempDir(), "disk")
	var out []Layer
	for i := range n {
		at := disk[i%(2*mib)*qcow2.BlockSize+qcow2.ClusterSize:][:qcow2.ClusterSize]
		switch i {
		case 0:
		case 5:
			clear(at)
		case 6:
			copy(disk[qcow2.ClusterSize:], first)
			at[0]++
		default:
			rand.New(rand.NewSource(int64(i))).Read(at)
		}
		if i == 4 { // which the sixth takes back
			disk[qcow2.ClusterSize]++
		}
		if err := os.WriteFile(path, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		parent := digest.Digest("")
		if i > 0 {
			parent = out[i-1].Digest
		}
		out = append(out, write(t, s, sourceOf(t, path), parent))
	}
	return out
}

func none(Layer) (digest.Digest, error) { return "", nil }

func merge(t *testing.T, s *Store, d digest.Digest, equal func(Layer) (digest.Digest, error)) Layer {
	t.Helper()
	plan, err := s.PlanMerge(d, equal)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.MergeLayer(t.Context(), plan, ami.NoProgress.Step("", 0))
	if err != nil {
		t.Fatal(err)
	}
	if l.Depth != plan.Depth() || l.Parent != plan.Parent() {
		t.Errorf("got a layer of depth %d on %q, want as planned: %d on %q", l.Depth, l.Parent, plan.Depth(), plan.Parent())
	}
	return l
}

// wantMerged checks a merged layer: it is short, of the same content as it is
// read anew, whole, and as canonical as if it had been written there at once.
func wantMerged(t *testing.T, s *Store, old, l Layer) {
	t.Helper()
	got, err := s.Layer(l.Digest)
	if err != nil || got.Depth > MaxDepth || got.Size != old.Size {
		t.Fatalf("got a chain of %d layers and a disk of %d bytes (%v), want at most %d and %d", got.Depth, got.Size, err, MaxDepth, old.Size)
	}
	if err := s.VerifyLayer(t.Context(), l.Digest, ami.NoProgress.Step("", 0)); err != nil {
		t.Error(err)
	}
	blocks, err := s.hashBlocks(t.Context(), l.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if blocks.Content() != old.Content || l.Content != old.Content {
		t.Errorf("got the content %s, said to be %s, want %s", blocks.Content().Short(), l.Content.Short(), old.Content.Short())
	}
	img, err := s.OpenLayer(old.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if again := write(t, s, img.Flat(), l.Parent); again.Digest != l.Digest {
		t.Errorf("the same content on the same layer is %s, merged %s", again.Digest.Short(), l.Digest.Short())
	}
}

// Every layer costs what changed, the ninth too, and says that the chain is to be
// merged; only where a chain cannot be longer is one written whole.
func TestEachLayerCostsWhatChanged(t *testing.T) {
	s := open(t)
	layers := lineageOf(t, s, 4, longestChain+1)
	for i, l := range layers {
		depth, small := i+1, i > 0
		if i == longestChain {
			depth, small = 1, false
		}
		if got, err := s.Layer(l.Digest); err != nil || got.Depth != depth || l.Depth != depth {
			t.Errorf("layer %d: got the depth %d, said to be %d (%v), want %d", i+1, got.Depth, l.Depth, err, depth)
		}
		if (l.FileSize < 1<<20) != small {
			t.Errorf("layer %d has %d bytes", i+1, l.FileSize)
		}
	}
	if chain, err := s.Chain(layers[longestChain-1].Digest); err != nil || len(chain) != longestChain {
		t.Errorf("got a chain of %d files (%v), want %d", len(chain), err, longestChain)
	}
}

func TestLongChainIsTold(t *testing.T) {
	s := open(t)
	layers := lineageOf(t, s, 1, MaxDepth)
	if s.LongChain() {
		t.Errorf("a chain of %d layers is said to be long", MaxDepth)
	}
	next := write(t, s, raw(t, 9), layers[MaxDepth-1].Digest)
	if !s.LongChain() || next.Depth != MaxDepth+1 {
		t.Errorf("a chain of %d layers is not said to be long", next.Depth)
	}
	again, err := Open(s.root)
	if err != nil {
		t.Fatal(err)
	}
	if write(t, again, raw(t, 9), next.Digest); !again.LongChain() {
		t.Error("a long chain to which nothing was added is not said to be long")
	}
}

// The base of a lineage stays where it is while the changes are small, so that
// merging them costs what they are; where they are as much as all, the layer
// stands on nothing.
func TestMerge(t *testing.T) {
	tests := []struct {
		name   string
		mib, n int
		parent int // which of the layers it stands on, -1 for none
		below  int64
	}{
		{"one past the limit", 12, MaxDepth + 1, 0, 2 << 20},
		{"many past the limit", 24, 2 * MaxDepth, 0, 3 << 20},
		{"changes as large as the base", 2, MaxDepth + 1, -1, 3 << 20},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			layers := lineageOf(t, s, tt.mib, tt.n)
			last := layers[tt.n-1]
			l := merge(t, s, last.Digest, none)
			wantMerged(t, s, last, l)
			want := digest.Digest("")
			if tt.parent >= 0 {
				want = layers[tt.parent].Digest
			}
			if l.Parent != want {
				t.Errorf("it stands on %q, want %q", l.Parent, want)
			}
			if l.FileSize > tt.below {
				t.Errorf("it has %d bytes, want at most %d", l.FileSize, tt.below)
			}
			if again := merge(t, s, last.Digest, none); again.Digest != l.Digest {
				t.Errorf("got %s when merged again, want %s", again.Digest.Short(), l.Digest.Short())
			}
			next := write(t, s, raw(t, 1), "") // anything: the old chain can go
			for _, d := range slices.Backward(layers) {
				if d.Digest == l.Parent {
					break
				}
				if err := s.RemoveLayer(d.Digest); err != nil {
					t.Error(err)
				}
			}
			for _, d := range []Layer{l, next} {
				if err := s.VerifyLayer(t.Context(), d.Digest, ami.NoProgress.Step("", 0)); err != nil {
					t.Errorf("with the old chain gone: %v", err)
				}
			}
		})
	}
}

// However long a lineage gets, its chain stays short, and all that is ever
// written is a few times what changed.
func TestMergeAgainAndAgain(t *testing.T) {
	s := open(t)
	layers := lineageOf(t, s, 16, MaxDepth)
	parent, written := layers[MaxDepth-1], int64(0)
	const more = 5 * MaxDepth
	for i := range more {
		img, err := s.OpenLayer(parent.Digest)
		if err != nil {
			t.Fatal(err)
		}
		l := write(t, s, poked{img.Flat(), int64(i) * 3 << 16, byte(i)}, parent.Digest)
		img.Close()
		written += l.FileSize
		if l.Depth > MaxDepth {
			old := l
			l = merge(t, s, old.Digest, none)
			wantMerged(t, s, old, l)
			written += l.FileSize
		}
		parent = l
	}
	if limit := int64(more) * 1 << 20; written > limit {
		t.Errorf("%d layers with a cluster each wrote %d bytes, want less than %d", more, written, limit)
	}
}

// poked is a disk with a cluster in it that has only one byte.
type poked struct {
	qcow2.Source
	at   int64
	mark byte
}

func (p poked) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.Source.ReadAt(b, off)
	for i := range b[:n] {
		if at := off + int64(i); at >= p.at && at < p.at+qcow2.ClusterSize {
			b[i] = p.mark
		}
	}
	return n, err
}

// A layer on a long chain whose ancestor was merged already is laid over that one
// and is as small as it was.
func TestMergeOnWhatIsMerged(t *testing.T) {
	s := open(t)
	layers := lineageOf(t, s, 16, MaxDepth+8)
	merged := map[digest.Digest]digest.Digest{}
	equal := func(l Layer) (digest.Digest, error) { return merged[l.Digest], nil }
	for i := MaxDepth; i < len(layers); i++ {
		l := merge(t, s, layers[i].Digest, equal)
		wantMerged(t, s, layers[i], l)
		if limit := layers[i].FileSize; i > MaxDepth && l.Depth > 2 && l.FileSize > limit {
			t.Errorf("layer %d has %d bytes when it is moved, want %d as before", i+1, l.FileSize, limit)
		}
		merged[layers[i].Digest] = l.Digest
	}
	if got := merged[layers[MaxDepth+1].Digest]; get(t, s, got).Parent != merged[layers[MaxDepth].Digest] {
		t.Error("the tenth does not stand on the ninth as merged")
	}
	// One of another length is not taken for equal.
	short := write(t, s, raw(t, 1), "")
	plan, err := s.PlanMerge(layers[MaxDepth+1].Digest, func(Layer) (digest.Digest, error) { return short.Digest, nil })
	if err != nil || plan.Parent() == short.Digest {
		t.Errorf("got a plan on %q (%v), want none on a shorter disk", plan.Parent(), err)
	}
	failed := errors.New("failed")
	if _, err := s.PlanMerge(layers[MaxDepth+1].Digest, func(Layer) (digest.Digest, error) { return "", failed }); !errors.Is(err, failed) {
		t.Errorf("got %v, want the error of equal", err)
	}
}

func get(t *testing.T, s *Store, d digest.Digest) Layer {
	t.Helper()
	l, err := s.Layer(d)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A disk that grew along its lineage, to a size that ends within a block.
func TestMergeOfWhatGrew(t *testing.T) {
	s := open(t)
	path := filepath.Join(t.TempDir(), "disk")
	var layers []Layer
	for i := range MaxDepth + 2 {
		disk := make([]byte, 2<<20+i*(300<<10))
		rand.New(rand.NewSource(1)).Read(disk[:1<<20])
		disk[len(disk)-1] = byte(i)
		if err := os.WriteFile(path, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		parent := digest.Digest("")
		if i > 0 {
			parent = layers[i-1].Digest
		}
		layers = append(layers, write(t, s, sourceOf(t, path), parent))
	}
	for _, old := range layers[MaxDepth:] {
		wantMerged(t, s, old, merge(t, s, old.Digest, none))
	}
}

// The progress of a merge adds up to what is said.
func TestMergeTellsHowFar(t *testing.T) {
	s := open(t)
	layers := lineageOf(t, s, 8, MaxDepth+1)
	for _, mib := range []int{8, 1} {
		if mib == 1 { // which is written whole
			layers = lineageOf(t, s, mib, MaxDepth+1)
		}
		plan, err := s.PlanMerge(layers[MaxDepth].Digest, none)
		if err != nil {
			t.Fatal(err)
		}
		var told counter
		if _, err := s.MergeLayer(t.Context(), plan, &told); err != nil {
			t.Fatal(err)
		}
		if want := 2 * plan.Size(); int64(told) != want || plan.Size() != int64(mib)<<20 {
			t.Errorf("got told of %d bytes of a disk of %d, want %d", told, plan.Size(), want)
		}
	}
}

type counter int64

func (c *counter) Add(n int64) { *c += counter(n) }
func (*counter) Done(error)    {}
