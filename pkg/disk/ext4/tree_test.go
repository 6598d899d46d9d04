package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/disk/guestfs"
	"github.com/kamivm/kami/pkg/qcow2"
)

// memory is a file's content, which is all zeros but for some pieces.
type memory struct {
	size   int64
	pieces map[int64][]byte
	opened int
	fault  error // of Close
}

func (m *memory) Open() (Reader, error) {
	m.opened++
	return m, nil
}

func (m *memory) Close() error { return m.fault }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > m.size {
		return 0, io.EOF
	}
	clear(p)
	for at, b := range m.pieces {
		if at < off+int64(len(p)) && off < at+int64(len(b)) {
			if at >= off {
				copy(p[at-off:], b)
			} else {
				copy(p, b[off-at:])
			}
		}
	}
	return len(p), nil
}

func noise(seed uint64, n int) []byte {
	r, b := rand.New(rand.NewPCG(seed, 7)), make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// withHoles is a file with data where there are pieces.
func withHoles(size int64, pieces map[int64][]byte) *File {
	f := &File{Mode: regular | 0o644, Time: 1_600_000_000, Size: size, Content: &memory{size: size, pieces: pieces}}
	for at, b := range pieces {
		f.Runs = append(f.Runs, Run{at, int64(len(b))})
	}
	slices.SortFunc(f.Runs, func(a, b Run) int { return int(a.Off - b.Off) })
	return f
}

func withBytes(b []byte) *File {
	if len(b) == 0 {
		return withHoles(0, nil)
	}
	return withHoles(int64(len(b)), map[int64][]byte{0: b})
}

func withEntries(entries ...Entry) *File {
	return &File{Mode: folder | 0o755, Time: 1_600_000_000, Entries: entries}
}

func options(size int64) Options {
	o := Options{Size: size, Label: "label", Time: 1_700_000_000}
	copy(o.UUID[:], "sixteen bytes ok")
	copy(o.HashSeed[:], "sixteen bytes ok")
	return o
}

// made writes a filesystem to a file and has e2fsck look at it.
func made(t testing.TB, root *File, o Options) (file string) {
	t.Helper()
	img, err := New(root, o)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := qcow2.WriteRaw(t.Context(), f, img, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	run(t, "e2fsck", "-fn", f.Name())
	return f.Name()
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "/sbin/"+name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// same compares a filesystem with the tree that it was made of.
func same(t testing.TB, file string, root *File) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fsys, err := guestfs.Open(t.Context(), f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	sameUnder(t, fsys, "/", root)
}

func sameUnder(t testing.TB, fsys *guestfs.FS, name string, f *File) {
	t.Helper()
	switch f.kind() {
	case folder:
		got, err := fsys.ReadDir(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, e := range f.Entries {
			want = append(want, e.Name)
			if len(f.Entries) > 1000 {
				continue // a search in it takes long
			}
			sameUnder(t, fsys, path.Join(name, e.Name), e.File)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %d names, want %d", name, len(got), len(want))
		}
	case regular:
		file, err := fsys.Open(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if file.Size() != f.Size {
			t.Fatalf("%s: got %d bytes, want %d", name, file.Size(), f.Size)
		}
		got, want := make([]byte, 1<<20), make([]byte, 1<<20)
		for off := int64(0); off < f.Size; off += int64(len(got)) {
			n := min(int64(len(got)), f.Size-off)
			if err := file.ReadAt(t.Context(), got[:n], off); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Content.(*memory).ReadAt(want[:n], off); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got[:n], want[:n]) {
				t.Fatalf("%s: other bytes at %d and on", name, off)
			}
		}
	}
}

// random is a tree made by chance.
func random(r *rand.Rand, depth int) *File {
	root := withEntries()
	var files []*File
	for i := range r.IntN(30) {
		var f *File
		switch k := r.IntN(12); {
		case k < 2 && depth > 0:
			f = random(r, depth-1)
		case k == 2:
			f = &File{Mode: symlink | 0o777, Target: strings.Repeat("t", 1+r.IntN(4095))}
		case k == 3:
			f = &File{Mode: []uint32{char, block, fifo, socket}[r.IntN(4)] | r.Uint32N(0o10000), Major: r.Uint32N(4096), Minor: r.Uint32N(1 << 20)}
		case k == 4 && len(files) > 0:
			f = files[r.IntN(len(files))]
		case k == 5:
			pieces, at := map[int64][]byte{}, int64(0)
			for range r.IntN(400) {
				at += r.Int64N(20_000)
				b := noise(r.Uint64(), 1+r.IntN(6000))
				pieces[at] = b
				at += int64(len(b))
			}
			f = withHoles(at+r.Int64N(1<<20), pieces)
			files = append(files, f)
		default:
			f = withBytes(noise(r.Uint64(), r.IntN(1<<r.IntN(18))))
			files = append(files, f)
		}
		f.UID, f.GID, f.Time = r.Uint32(), r.Uint32(), r.Int64N(1<<34-1<<31)
		if f.Mode&kindMask != symlink {
			f.Xattrs = map[string]string{}
			for range r.IntN(3) {
				f.Xattrs["user."+strings.Repeat("n", 1+r.IntN(20))] = string(noise(r.Uint64(), r.IntN(1<<r.IntN(11))))
			}
		}
		root.Entries = append(root.Entries, Entry{fmt.Sprint(i, strings.Repeat("x", r.IntN(200))), f})
	}
	return root
}

// FuzzTree: every tree that fits becomes a sound filesystem with the same files.
func FuzzTree(f *testing.F) {
	for seed := range uint64(12) {
		f.Add(seed, uint16(seed*23), uint16(1+seed*7))
	}
	f.Fuzz(func(t *testing.T, seed uint64, megabytes, ratio uint16) {
		root := random(rand.New(rand.NewPCG(seed, 3)), 3)
		o := options(int64(megabytes)<<20 + int64(seed%9999))
		o.BytesPerInode = int64(ratio) << 10
		if _, err := New(root, o); errors.Is(err, ErrNoRoom) {
			return
		}
		root = random(rand.New(rand.NewPCG(seed, 3)), 3)
		same(t, made(t, root, o), root)
	})
}
