package guestfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// run runs one of the programs that make filesystems.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/sbin:/usr/sbin", "MTOOLS_SKIP_CHECK=1", "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// noise is n bytes that do not repeat.
func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// tree fills a directory with files of all sizes at which something changes: what
// an inode holds, the ends of blocks, of direct and of indirect maps; with holes,
// long names, deep and wide directories, and links when withLinks.
func tree(t testing.TB, withLinks bool) string {
	t.Helper()
	dir := t.TempDir()
	for i, n := range []int{0, 1, 59, 60, 61, 100, 130, 160, 512, 1023, 1024, 1025, 4096, 12288, 12289, 40000, 65536, 300000, 3000000} {
		write(t, fmt.Sprintf("%s/sizes/%d", dir, n), noise(uint64(i), n))
	}
	for i := range 300 {
		write(t, fmt.Sprintf("%s/wide/a file with a longish name %03d.txt", dir, i), []byte(fmt.Sprint(i)))
	}
	deep := dir + "/deep" + strings.Repeat("/d", 30)
	write(t, deep+"/end", []byte("the end\n"))
	write(t, dir+"/names/"+strings.Repeat("n", 248), []byte("248"))
	write(t, dir+"/names/"+strings.Repeat("m", 254)+"x", []byte("255"))
	write(t, dir+"/names/Grüße an 世界.txt", []byte("unicode"))
	if !withLinks {
		return dir
	}
	write(t, dir+"/names/😀", []byte("mcopy cannot write this one"))
	sparse, err := os.Create(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	defer sparse.Close()
	for _, off := range []int64{8192, 1 << 20, 5 << 20, 20 << 20} {
		if _, err := sparse.WriteAt(noise(uint64(off), 5000), off); err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("../links/", 20) + "../sizes/61"
	for name, to := range map[string]string{
		"fast": "../sizes/60", "absolute": "/sizes/60", "out": "../../../../../sizes/60", "slow": long,
		"dir": "/deep/d", "loop": "loop", "loop1": "loop2", "loop2": "loop1", "gone": "nowhere",
	} {
		if err := os.MkdirAll(dir+"/links", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, dir+"/links/"+name); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// image is an empty file of size bytes.
func image(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *FS {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Open(t.Context(), f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// compare holds every file and directory against the tree that it was made from.
func compare(t testing.TB, f *FS, dir string) {
	t.Helper()
	ctx := t.Context()
	count := 0
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := "/" + strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		switch {
		case d.IsDir():
			entries, err := os.ReadDir(p)
			if err != nil {
				return err
			}
			var want []string
			for _, e := range entries {
				want = append(want, e.Name())
			}
			got, err := f.ReadDir(ctx, rel)
			if err != nil {
				t.Errorf("%s: %v", rel, err)
			}
			got = slices.DeleteFunc(got, func(s string) bool { return s == "lost+found" })
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%s has %d names, want %d", rel, len(got), len(want))
			}
		case d.Type().IsRegular():
			count++
			want, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			file, err := f.Open(ctx, rel)
			if err != nil {
				t.Error(err)
				return nil
			}
			var got bytes.Buffer
			n, err := file.CopyTo(ctx, &got)
			if err != nil || n != int64(len(want)) || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%s: %d bytes of %d, the same %v, %v", rel, n, len(want), bytes.Equal(got.Bytes(), want), err)
			}
			// Any part of it too, in no order.
			r := rand.New(rand.NewPCG(uint64(len(want)), 2))
			for range 5 {
				off := r.IntN(len(want) + 1)
				p := make([]byte, min(r.IntN(5000), len(want)-off))
				if err := file.ReadAt(ctx, p, int64(off)); err != nil || !bytes.Equal(p, want[off:off+len(p)]) {
					t.Errorf("%s: %d bytes at %d are wrong: %v", rel, len(p), off, err)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if count < 300 {
		t.Fatalf("only %d files were compared", count)
	}
}

func TestExt(t *testing.T) {
	dir := tree(t, true)
	for _, c := range []struct {
		name, kind string
		args       []string
	}{
		{"ext2 of 1k", "ext2", []string{"-t", "ext2", "-b", "1024"}},
		{"ext2 of 4k", "ext2", []string{"-t", "ext2", "-b", "4096"}},
		{"ext2 of revision 0", "ext2", []string{"-r", "0", "-b", "1024"}},
		{"ext3", "ext3", []string{"-t", "ext3", "-b", "1024"}},
		{"ext4", "ext4", []string{"-t", "ext4"}},
		{"ext4 of 1k", "ext4", []string{"-t", "ext4", "-b", "1024"}},
		{"ext4 of 2k, not 64bit", "ext4", []string{"-t", "ext4", "-b", "2048", "-O", "^64bit"}},
		{"ext4 of 64k", "ext4", []string{"-t", "ext4", "-b", "65536"}},
		{"ext4 without extents", "ext4", []string{"-t", "ext4", "-b", "1024", "-O", "^extent,^64bit"}},
		{"inline data", "ext4", []string{"-t", "ext4", "-O", "inline_data", "-I", "256"}},
		{"inline data in large inodes", "ext4", []string{"-t", "ext4", "-O", "inline_data", "-I", "1024"}},
		{"meta_bg", "ext4", []string{"-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"}},
		{"meta_bg, not 64bit, small groups", "ext4", []string{"-t", "ext4", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode,^64bit,^flex_bg"}},
		{"sparse_super2", "ext4", []string{"-t", "ext4", "-O", "sparse_super2,^resize_inode", "-b", "1024"}},
		{"clusters of 1k blocks", "ext4", []string{"-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "16384"}},
		{"no checksums", "ext4", []string{"-t", "ext4", "-O", "^metadata_csum"}},
		{"small inodes", "ext4", []string{"-t", "ext4", "-I", "128"}},
		{"ea_inode, large_dir", "ext4", []string{"-t", "ext4", "-O", "ea_inode,large_dir,quota,project"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := image(t, 96<<20)
			run(t, "mke2fs", append(append([]string{"-q", "-F", "-L", "the root", "-U", "01234567-89ab-cdef-0123-456789abcdef", "-d", dir}, c.args...), img)...)
			f := open(t, img)
			if f.Kind() != c.kind || f.Label() != "the root" || f.UUID() != "01234567-89ab-cdef-0123-456789abcdef" {
				t.Errorf("got %s %q %s", f.Kind(), f.Label(), f.UUID())
			}
			compare(t, f, dir)
			links(t, f)
		})
	}
}

// links are followed inside the filesystem, and nowhere else.
func links(t *testing.T, f *FS) {
	t.Helper()
	for _, c := range []struct {
		path, want string
		err        error
	}{
		{path: "/links/fast", want: "/sizes/60"},
		{path: "/links/absolute", want: "/sizes/60"},
		{path: "/links/out", want: "/sizes/60"},
		{path: "/links/slow", want: "/sizes/61"},
		{path: "/links/dir" + strings.Repeat("/d", 29) + "/end", want: "/deep" + strings.Repeat("/d", 30) + "/end"},
		{path: "/../../links/.//../links/fast", want: "/sizes/60"},
		{path: "sizes/60", want: "/sizes/60"},
		{path: "/links/loop", err: ErrTooLarge},
		{path: "/links/loop1", err: ErrTooLarge},
		{path: "/links/gone", err: fs.ErrNotExist},
		{path: "/sizes/60/below", err: fs.ErrNotExist},
		{path: "/sizes/", err: ErrNotAFile},
		{path: "/" + strings.Repeat("x", 300), err: fs.ErrNotExist},
		{path: strings.Repeat("/x", 3000), err: ErrTooLarge},
		{path: "/etc/passwd", err: fs.ErrNotExist},
	} {
		file, err := f.Open(t.Context(), c.path)
		if !errors.Is(err, c.err) {
			t.Errorf("%.60s: got %v, want %v", c.path, err, c.err)
			continue
		}
		if c.err == nil && (file == nil || file.Path() != c.want) {
			t.Errorf("%s: leads to %v, want %s", c.path, file, c.want)
		}
	}
}

func TestFAT(t *testing.T) {
	dir := tree(t, false)
	for _, c := range []struct {
		name string
		size int64
		args []string
	}{
		{"12", 30 << 20, []string{"-F", "12", "-s", "32"}},
		{"16", 64 << 20, []string{"-F", "16"}},
		{"32", 96 << 20, []string{"-F", "32", "-s", "1"}},
		{"32 of large clusters", 600 << 20, []string{"-F", "32", "-s", "16"}},
		{"32 of large sectors", 400 << 20, []string{"-F", "32", "-S", "4096", "-s", "1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := image(t, c.size)
			run(t, "mkfs.vfat", append(append([]string{"-n", "BOOT", "-i", "1234abcd"}, c.args...), img)...)
			for _, sub := range []string{"sizes", "wide", "deep", "names"} {
				run(t, "mcopy", "-s", "-i", img, dir+"/"+sub, "::/")
			}
			f := open(t, img)
			if f.Kind() != "vfat" || f.Label() != "BOOT" || f.UUID() != "1234-ABCD" {
				t.Errorf("got %s %q %s", f.Kind(), f.Label(), f.UUID())
			}
			compare(t, f, dir)
			if _, err := f.Open(t.Context(), "/SIZES/40000"); err != nil {
				t.Errorf("upper case is not the same: %v", err)
			}
		})
	}
}

func TestWhatIsNotRead(t *testing.T) {
	at := func(off int, magic string) []byte {
		b := make([]byte, 256<<10)
		copy(b[off:], magic)
		return b
	}
	for _, c := range []struct {
		name string
		disk []byte
		want error
		says string
	}{
		{"nothing", nil, ErrUnknown, ""},
		{"zeros", make([]byte, 1<<20), ErrUnknown, ""},
		{"xfs", at(0, "XFSB"), ErrUnsupported, "xfs"},
		{"btrfs", at(0x10040, "_BHRfS_M"), ErrUnsupported, "btrfs"},
		{"luks", at(0, "LUKS\xba\xbe"), ErrUnsupported, "LUKS"},
		{"lvm", at(512, "LABELONE"), ErrUnsupported, "LVM"},
		{"swap", at(4086, "SWAPSPACE2"), ErrUnsupported, "swap"},
		{"an ext of nothing", at(superAt+0x38, "\x53\xef"), ErrDamaged, "inodes"},
	} {
		_, err := Open(t.Context(), bytes.NewReader(c.disk), int64(len(c.disk)))
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %v that says %q", c.name, err, c.want, c.says)
		}
	}
}

func TestCancelled(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/f", []byte("x"))
	img := image(t, 8<<20)
	run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-d", dir, img)
	f := open(t, img)
	file, err := f.Open(t.Context(), "/f")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Open(ctx, "/f"); !errors.Is(err, context.Canceled) {
		t.Errorf("Open: got %v", err)
	}
	if _, err := file.CopyTo(ctx, &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("CopyTo: got %v", err)
	}
	if err := file.ReadAt(t.Context(), make([]byte, 2), 0); err == nil {
		t.Error("read behind the end of the file")
	}
	if _, err := f.ReadFile(t.Context(), "/f", 0); !errors.Is(err, ErrTooLarge) {
		t.Errorf("ReadFile: got %v", err)
	}
}
