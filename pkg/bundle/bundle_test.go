package bundle

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/object/cdc"
	"github.com/kamivm/kami/pkg/qcow2"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// noise is what does not compress, the same for a seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

// sparse writes a file of size bytes with pieces in it, and opens it.
func sparse(t testing.TB, size int64, pieces map[int64][]byte) (qcow2.Source, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "blob")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for off, b := range pieces {
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	src, err := qcow2.RawSource(f)
	if err != nil {
		t.Fatal(err)
	}
	return src, path
}

func newKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func trusting(keys ...ssh.Signer) (tr Trust) {
	for _, k := range keys {
		tr.Keys = append(tr.Keys, k.PublicKey())
	}
	return tr
}

func testManifest() Manifest {
	return Manifest{
		Name: "web", Architecture: ami.ArchX8664, VirtualizationType: ami.VirtualizationParavirtual,
		RootDeviceName: "/dev/sda1", OwnerID: ami.DefaultAccount, Partition: PartitionNone,
	}
}

func newStore(t testing.TB) *object.Dir {
	t.Helper()
	d, err := object.OpenDir(filepath.Join(t.TempDir(), "objects"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func pieces() map[int64][]byte {
	return map[int64][]byte{0: noise(1, 300_000), 5 << 20: noise(2, 1<<20), 30<<20 + 4096: noise(3, 2_000_000)}
}

func mustCreate(t *testing.T, store object.Store, location string, src qcow2.Source, key ssh.Signer) (Manifest, Packed) {
	t.Helper()
	m, p, err := Create(t.Context(), CreateInput{
		Store: store, Location: location, Source: src, Manifest: testManifest(), Key: key, Progress: ami.NoProgress,
	})
	must(t, err)
	return m, p
}

func readAll(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

func TestCreateAndAssemble(t *testing.T) {
	src, path := sparse(t, 64<<20, pieces())
	want := readAll(t, path)
	store, key := newStore(t), newKey(t)
	m, packed := mustCreate(t, store, "images/web", src, key)
	if m.Digest != digest.Of(want) || m.Size != int64(len(want)) {
		t.Errorf("got a manifest of %d bytes, %s", m.Size, m.Digest)
	}
	if packed.NewChunks == 0 || packed.DataBytes > 6<<20 {
		t.Errorf("got %+v", packed)
	}
	b, err := Open(t.Context(), store, "images/web.manifest", trusting(key))
	must(t, err)
	out := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(out)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(b.Size()))
	var done atomic.Int64
	must(t, b.Assemble(t.Context(), f, func(n int64) { done.Add(n) }))
	if done.Load() != b.Size() {
		t.Errorf("told of %d bytes, want %d", done.Load(), b.Size())
	}
	if !bytes.Equal(readAll(t, out), want) {
		t.Error("the blob came back as another")
	}
	rep, err := b.Verify(t.Context(), func(int64) {})
	if err != nil || len(rep.Faults) != 0 || !rep.Trusted {
		t.Errorf("got %+v, %v", rep, err)
	}
}

// TestPackCutsAll: skipping the holes changes nothing of the cuts.
func TestPackCutsAll(t *testing.T) {
	for name, p := range map[string]map[int64][]byte{
		"empty": {}, "usual": pieces(), "at the end": {64<<20 - 5000: noise(4, 5000)}, "tiny": {1 << 20: {1}, 33<<20 + 1: {2}},
	} {
		t.Run(name, func(t *testing.T) {
			src, path := sparse(t, 64<<20, p)
			store := newStore(t)
			m, _ := mustCreate(t, store, "images/web", src, nil)
			file, err := object.ReadSmall(t.Context(), store, "images/web.caibx", maxIndex)
			must(t, err)
			got, err := parseIndex(file)
			must(t, err)
			c, err := cdc.NewChunker(bytes.NewReader(readAll(t, path)), cdc.Sizes(m.ChunkSizes))
			must(t, err)
			for i, start := 0, int64(0); ; i++ {
				b, err := c.Next()
				must(t, err)
				if len(b) == 0 {
					if i != got.count() {
						t.Errorf("got %d chunks, want %d", got.count(), i)
					}
					break
				}
				if i >= got.count() {
					t.Fatal("too few chunks")
				}
				s, n, id := got.chunk(i)
				if s != start || n != int64(len(b)) || id != sha256.Sum256(b) {
					t.Fatalf("chunk %d: got %d+%d %s, want %d+%d", i, s, n, id, start, len(b))
				}
				start += n
			}
		})
	}
}

// TestCasyncReadsIt: what we write, casync takes for its own.
func TestCasyncReadsIt(t *testing.T) {
	casync, err := exec.LookPath("casync")
	if err != nil {
		t.Fatal("casync is not installed: hack/setup.sh installs it")
	}
	src, path := sparse(t, 64<<20, pieces())
	store := newStore(t)
	mustCreate(t, store, "images/web", src, nil)
	out := filepath.Join(t.TempDir(), "out")
	cmd := exec.CommandContext(context.Background(), casync, "extract", "--store="+filepath.Join(store.Path(), "images/chunks"),
		"--seed-output=no", filepath.Join(store.Path(), "images/web.caibx"), out)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("casync: %v\n%s", err, text)
	}
	if !bytes.Equal(readAll(t, out), readAll(t, path)) {
		t.Error("casync read another blob")
	}
}

func TestOpenRefuses(t *testing.T) {
	store, key, other := newStore(t), newKey(t), newKey(t)
	src, _ := sparse(t, 1<<20, map[int64][]byte{0: noise(1, 100_000)})
	mustCreate(t, store, "b/signed", src, key)
	mustCreate(t, store, "b/unsigned", src, nil)
	for name, c := range map[string]struct {
		at    string
		trust Trust
		want  error
	}{
		"not there":       {"b/none", trusting(key), ErrNotFound},
		"unsigned":        {"b/unsigned", trusting(key), ErrUnsigned},
		"allowed":         {"b/unsigned", Trust{AllowUnsigned: true}, nil},
		"foreign":         {"b/signed", trusting(other), ErrUntrusted},
		"foreign allowed": {"b/signed", Trust{AllowUnsigned: true}, nil},
		"trusted":         {"b/signed", trusting(other, key), nil},
		"no location":     {"b", trusting(key), ErrBadAddress},
		"climbs":          {"b/../c", trusting(key), ErrBadAddress},
	} {
		if _, err := Open(t.Context(), store, c.at, c.trust); !errors.Is(err, c.want) || (err != nil) != (c.want != nil) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}
