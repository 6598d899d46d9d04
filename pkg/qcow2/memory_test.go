package qcow2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"testing"

	"github.com/kamivm/kami/pkg/digest"
)

// grain is how finely a memory source tells of its states: finer than a cluster,
// as file systems tell of holes.
const grain = 4096

// memory is a disk in memory that tells the truth about itself, but by choice
// more or less of it: mood 0 calls everything data, others tell at random what
// is zero and what is as in the parent.
type memory struct {
	data, parent []byte
	mood         int64
}

func (m memory) Size() int64 { return int64(len(m.data)) }

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.data).ReadAt(p, off)
}

// at cuts [off, off+n) out of b, which reads as zeros behind its end.
func at(b []byte, off, n int) []byte {
	out := make([]byte, n)
	if off < len(b) {
		copy(out, b[off:])
	}
	return out
}

func (m memory) Extents(_ context.Context, off, length int64, fn func(off, length int64, state ExtentState) error) error {
	rng := rand.New(rand.NewSource(m.mood))
	for end := off + length; off < end; {
		n := min(grain, end-off)
		state := Data
		if m.mood != 0 {
			part := m.data[off : off+n]
			if m.parent != nil && rng.Intn(3) > 0 && bytes.Equal(part, at(m.parent, int(off), int(n))) {
				state = Unallocated
			} else if rng.Intn(3) > 0 && isZero(part) {
				state = Zero
			}
		}
		if err := fn(off, n, state); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// scribble writes zeros, text and noise over parts of b, as ops say: three
// bytes each for where, what and how much.
func scribble(b, ops []byte, seed int64) {
	rng := rand.New(rand.NewSource(seed))
	for ; len(ops) >= 3; ops = ops[3:] {
		start := int(ops[0]) * len(b) / 256
		if ops[1]&8 != 0 {
			start -= start % ClusterSize
		}
		part := b[start:min(len(b), start+(1+int(ops[2]))*1024)]
		switch ops[1] & 3 {
		case 0:
			clear(part)
		case 1:
			for i := range part {
				part[i] = "kami "[i%5]
			}
		default:
			rng.Read(part)
		}
	}
}

// lineage is a random disk over a random parent, and their layers.
type lineage struct {
	dir                   string
	parent, child         []byte
	parentRes, childRes   LayerResult
	parentPath, childPath string
	enc                   *Encryption // of both
}

func newLineage(t *testing.T, seed int64, size, grow uint16, parentOps, childOps []byte) lineage {
	t.Helper()
	return encryptLineage(t, nil, seed, size, grow, parentOps, childOps)
}

func encryptLineage(t *testing.T, enc *Encryption, seed int64, size, grow uint16, parentOps, childOps []byte) lineage {
	t.Helper()
	l := lineage{dir: t.TempDir(), enc: enc, parent: make([]byte, 512*(1+int(size)%4096))}
	scribble(l.parent, parentOps, seed)
	l.child = append(bytes.Clone(l.parent), make([]byte, 512*(int(grow)%1100))...)
	scribble(l.child, childOps, seed+1)
	l.parentRes = encryptLayer(t, l.dir, memory{data: l.parent, mood: seed}, nil, enc)
	l.parentPath = filepath.Join(l.dir, l.parentRes.Layer.Hex()+".qcow2")
	l.childRes = encryptLayer(t, l.dir, memory{data: l.child, parent: l.parent, mood: seed}, l.under(t), enc)
	l.childPath = filepath.Join(l.dir, l.childRes.Layer.Hex()+".qcow2")
	return l
}

// under is the parent as WriteLayer takes it.
func (l lineage) under(t *testing.T) *Parent {
	t.Helper()
	return &Parent{Image: openKeyed(t, l.parentPath), Layer: l.parentRes.Layer, Blocks: l.parentRes.Blocks}
}

// contentOf is the content digest by its definition and nothing else.
func contentOf(b []byte) digest.Digest {
	var sums []byte
	for off := 0; off < len(b); off += BlockSize {
		sum := sha256.Sum256(at(b, off, BlockSize))
		sums = append(sums, sum[:]...)
	}
	return digest.Of(sums)
}

func readAll(t *testing.T, src Source) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(src, 0, src.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// write puts b into a new file and returns its path.
func write(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.qcow2")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
