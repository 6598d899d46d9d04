package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func wantError(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

// allocated is how many bytes fn allocates in all.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// plainHeader is that of a sound, empty disk of 1 MiB over a parent, tables
// included.
func plainHeader(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "head")
	if err := CreateHead(path, 1<<20, "parent.qcow2", "", nil); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put32(at int, v uint32) func([]byte) []byte {
	return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], v); return b }
}

func put64(at int, v uint64) func([]byte) []byte {
	return func(b []byte) []byte { binary.BigEndian.PutUint64(b[at:], v); return b }
}

func cut(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }

// hostile are headers that say what cannot be, or what is not taken.
var hostile = []struct {
	name string
	edit func([]byte) []byte
	want error
}{
	{"no bytes", cut(0), ErrNotQCOW2},
	{"three bytes", cut(3), ErrNotQCOW2},
	{"another magic", put32(0, 0x51464900), ErrNotQCOW2},
	{"the magic alone", cut(4), ErrCorrupt},
	{"cut off before version 3", cut(headerV2), ErrCorrupt},
	{"cut off before the tables", cut(ClusterSize), ErrCorrupt},
	{"version 1", put32(4, 1), ErrUnsupported},
	{"version 4", put32(4, 4), ErrUnsupported},
	{"clusters of 256 bytes", put32(20, 8), ErrCorrupt},
	{"clusters of 4 MiB", put32(20, 22), ErrCorrupt},
	{"clusters of 2^4294967295", put32(20, 1<<32-1), ErrCorrupt},
	{"a disk of 2^48 bytes and one", put64(24, 1<<48+1), ErrCorrupt},
	{"a disk of 2^64 bytes less one", put64(24, 1<<64-1), ErrCorrupt},
	{"an L1 table too short for the disk", put64(24, 1<<40), ErrCorrupt},
	{"an L1 table without entries", put32(36, 0), ErrCorrupt},
	{"an L1 table of 32 GiB", put32(36, 1<<32-1), ErrCorrupt},
	{"an L1 table longer than the file", put32(36, 1<<22), ErrCorrupt},
	{"an L1 table off the clusters", put64(40, 512), ErrCorrupt},
	{"an L1 table behind the file", put64(40, 1<<40), ErrCorrupt},
	{"an L1 table whose end wraps round", put64(40, 1<<64-1<<16), ErrCorrupt},
	{"a backing name behind the header", put64(8, 1<<20), ErrCorrupt},
	{"a backing name that wraps round", put64(8, 1<<64-8), ErrCorrupt},
	{"a backing name of 1024 bytes", put32(16, 1024), ErrCorrupt},
	{"a header of 96 bytes", put32(100, 96), ErrCorrupt},
	{"a header of 105 bytes", put32(100, 105), ErrCorrupt},
	{"a header of 4 GiB", put32(100, 1<<32-8), ErrCorrupt},
	{"an extension of 4 GiB", put32(headerSize+4, 1<<32-1), ErrCorrupt},
	{"an extension behind the backing name", put32(headerSize+4, 64), ErrCorrupt},
	{"unknown incompatible features", put64(72, 1<<40), ErrUnsupported},
	{"LUKS without its header", put32(32, cryptLUKS), ErrCorrupt},
	{"an unknown compression", func(b []byte) []byte { b[104] = 2; return b }, ErrUnsupported},
}

func TestInspectRefuses(t *testing.T) {
	for _, c := range hostile {
		t.Run(c.name, func(t *testing.T) {
			b := c.edit(plainHeader(t))
			var err error
			if n := allocated(func() { _, err = Inspect(bytes.NewReader(b), int64(len(b))) }); n > 1<<20 {
				t.Errorf("looking took %d bytes of memory, want at most 1 MiB", n)
			}
			wantError(t, "Inspect", err, c.want)
			img, err := Open(write(t, b))
			if err == nil {
				img.Close()
			}
			wantError(t, "Open", err, c.want)
		})
	}
}

func TestInspectTellsWhatIsNamed(t *testing.T) {
	dir := t.TempDir()
	image := func(args ...string) string {
		path := filepath.Join(dir, "i.qcow2")
		os.Remove(path)
		qemuImg(t, append(append([]string{"create", "-f", "qcow2"}, args...), path, "4M")...)
		return path
	}
	for _, c := range []struct {
		name string
		args []string
		want Info
		open error // what Open says of it
	}{
		{"plain", nil, Info{Version: 3, ClusterBits: 16}, nil},
		{"version 2", []string{"-o", "compat=0.10"}, Info{Version: 2, ClusterBits: 16}, nil},
		{
			"a backing file",
			[]string{"-u", "-b", "/etc/passwd", "-F", "raw"},
			Info{Version: 3, ClusterBits: 16, BackingName: "/etc/passwd", BackingFormat: "raw"},
			nil,
		},
		{
			"a backing file in version 2",
			[]string{"-u", "-b", "/etc/passwd", "-F", "raw", "-o", "compat=0.10"},
			Info{Version: 2, ClusterBits: 16, BackingName: "/etc/passwd", BackingFormat: "raw"},
			nil,
		},
		{
			"a data file",
			[]string{"-o", "data_file=" + filepath.Join(dir, "data")},
			Info{Version: 3, ClusterBits: 16, DataFile: true, DataFileName: filepath.Join(dir, "data")},
			ErrUnsupported,
		},
		{
			"extended entries",
			[]string{"-o", "extended_l2=on,cluster_size=128k"},
			Info{Version: 3, ClusterBits: 17, ExtendedL2: true},
			ErrUnsupported,
		},
		{"zstd", []string{"-o", "compression_type=zstd"}, Info{Version: 3, ClusterBits: 16, Compression: compressionZstd}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := image(c.args...)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Inspect(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			got.incompatible, got.l1Offset, got.l1Entries, got.refcountOffset = 0, 0, 0, 0
			c.want.Size = 4 << 20
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			img, err := Open(path)
			if err == nil {
				img.Close()
			}
			wantError(t, "Open", err, c.open)
		})
	}
}

func TestOldEncryptionAndCorruptAreNotOpened(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func([]byte) []byte
		want error
	}{
		{"AES", put32(32, 1), ErrUnsupported},
		{"a method that is not known", put32(32, 3), ErrUnsupported},
		{"marked as corrupt", put64(72, incompatCorrupt), ErrCorrupt},
	} {
		b := c.edit(plainHeader(t))
		info, err := Inspect(bytes.NewReader(b), int64(len(b)))
		if got, want := info.Encrypted, errors.Is(c.want, ErrUnsupported); err != nil || got != want {
			t.Errorf("%s: encrypted is %v, %v; want %v", c.name, got, err, want)
		}
		_, err = Open(write(t, b))
		wantError(t, c.name, err, c.want)
		if _, err := ReadEncryption(keyring{}.keys, write(t, b)); info.Encrypted {
			wantError(t, c.name, err, c.want)
		}
	}
}

// TestNameBehindTheHeader: old files have no end of their extensions; there the
// backing name follows at once and is no extension.
func TestNameBehindTheHeader(t *testing.T) {
	b := plainHeader(t)
	copy(b[headerSize:], "base image.qcow2")
	binary.BigEndian.PutUint64(b[8:], headerSize)
	binary.BigEndian.PutUint32(b[16:], 16)
	got, err := Inspect(bytes.NewReader(b), int64(len(b)))
	if err != nil || got.BackingName != "base image.qcow2" || got.BackingFormat != "" {
		t.Errorf("got backing %q of format %q, %v; want %q of none", got.BackingName, got.BackingFormat, err, "base image.qcow2")
	}
}

// oneCluster is a disk of one L2 table whose first entry is entry, with data at
// its end.
func oneCluster(t *testing.T, entry uint64, data []byte) []byte {
	t.Helper()
	b := plainHeader(t)
	b[104] = compressionZstd
	binary.BigEndian.PutUint64(b[72:], incompatCompression)
	info, err := Inspect(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	l2 := uint64(len(b))
	binary.BigEndian.PutUint64(b[info.l1Offset:], l2|entryCopied)
	b = append(b, make([]byte, ClusterSize)...)
	binary.BigEndian.PutUint64(b[l2:], entry)
	return append(b, data...)
}

func TestHostileClusters(t *testing.T) {
	end := uint64(len(oneCluster(t, 0, nil)))
	packed := func(n int) (uint64, []byte) {
		enc, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer enc.Close()
		b := enc.EncodeAll(make([]byte, n), nil)
		return end | uint64(len(b)/512+1)<<54 | entryCompressed, b
	}
	bombEntry, bomb := packed(1 << 30)
	shortEntry, short := packed(ClusterSize - 1)
	for _, c := range []struct {
		name  string
		entry uint64
		data  []byte
	}{
		{"data behind the file", 1 << 40, nil},
		{"data at the end of the file", end, nil},
		{"data that is cut off", end, make([]byte, ClusterSize-1)},
		{"data off the clusters", end - 512, make([]byte, ClusterSize)},
		{"packed data behind the file", 1<<40 | entryCompressed, nil},
		{"packed data of nothing", end | entryCompressed, nil},
		{"packed data that is noise", end | 255<<54 | entryCompressed, []byte("no frame of zstd's")},
		{"packed data that unpacks to 1 GiB", bombEntry, bomb},
		{"packed data that unpacks to less", shortEntry, short},
		{"packed data that is cut off", shortEntry, short[:len(short)-3]},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := openImage(t, write(t, oneCluster(t, c.entry, c.data)))
			var err error
			n := allocated(func() { _, err = img.ReadAt(make([]byte, ClusterSize), 0) })
			wantError(t, "ReadAt", err, ErrCorrupt)
			if n > 64<<20 {
				t.Errorf("reading took %d bytes of memory, want at most 64 MiB", n)
			}
		})
	}
}

// TestCachedTablesAreBounded opens a sparse file of many tables of 2 MiB.
func TestCachedTablesAreBounded(t *testing.T) {
	const bits, tables = 21, 40
	b := plainHeader(t)[:ClusterSize]
	span := int64(1) << bits / 8 << bits
	for _, edit := range []func([]byte) []byte{
		put32(20, bits), put64(24, uint64(tables*span)), put32(36, tables), put64(40, 1<<bits), put64(8, 0),
	} {
		b = edit(b)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "wide.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l1 := make([]byte, tables*8)
	for i := range tables {
		binary.BigEndian.PutUint64(l1[i*8:], uint64(i+2)<<bits)
	}
	f.WriteAt(b, 0)
	f.WriteAt(l1, 1<<bits)
	if err := f.Truncate((tables + 2) << bits); err != nil {
		t.Fatal(err)
	}
	img := openImage(t, f.Name())
	for i := range int64(tables) {
		if _, err := img.ReadAt(make([]byte, 512), i*span); err != nil {
			t.Fatal(err)
		}
		if got := len(img.files[0].tables) << bits; got > maxTableBytes {
			t.Fatalf("%d bytes of tables are kept, want at most %d", got, maxTableBytes)
		}
	}
}
