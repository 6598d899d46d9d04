package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/qcow2"
)

// everything has a file of each kind and with each that changes how it is kept.
func everything() *File {
	twice := withBytes(noise(1, 5000))
	few := withBytes([]byte("few"))
	few.Xattrs = map[string]string{"user.a": "b", "security.capability": strings.Repeat("c", 20)}
	many := withBytes([]byte("many"))
	many.Xattrs = map[string]string{"user.long": strings.Repeat("l", 3000), "user.empty": "", "trusted.x": "odd", "user.a": "1"}
	listed := withBytes([]byte("listed"))
	listed.Xattrs = map[string]string{"system.posix_acl_access": "\x02\x00\x00\x00" +
		"\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x21\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"}
	owned := withBytes(nil)
	owned.Mode, owned.UID, owned.GID, owned.Time = regular|0o4751, 70000, 100, 2_200_000_000
	device := func(mode, major, minor uint32) *File { return &File{Mode: mode, Major: major, Minor: minor} }
	link := func(to string) *File { return &File{Mode: symlink | 0o777, Target: to} }
	return withEntries(
		Entry{"acl", listed}, Entry{"big device", device(block|0o660, 259, 70000)}, Entry{"device", device(char|0o666, 1, 3)},
		Entry{"empty", withEntries()}, Entry{"few", few}, Entry{"fifo", device(fifo|0o600, 0, 0)},
		Entry{"link", link("few")}, Entry{"link59", link(strings.Repeat("x", 59))}, Entry{"link60", link(strings.Repeat("x", 60))},
		Entry{"link4095", link(strings.Repeat("x/", 2047) + "x")}, Entry{"many", many},
		Entry{"new\nline \"and\" quotes", withBytes([]byte("n"))}, Entry{"owned", owned},
		Entry{"sub", withEntries(Entry{"twice", twice}, Entry{strings.Repeat("n", 255), withBytes([]byte("long"))})},
		Entry{"twice", twice}, Entry{"zz", withEntries(Entry{"again", twice}, Entry{"after", withBytes(noise(2, 4096))})},
	)
}

func TestKinds(t *testing.T) {
	root := everything()
	file := made(t, root, options(64<<20))
	same(t, file, root)
	for command, want := range map[string]string{
		"stat acl":                              `Mode:  0644`,
		`stat "big device"`:                     `Type: block special    Mode:  0660[\s\S]*major/minor number: 259:70000`,
		"stat device":                           `Type: character special    Mode:  0666[\s\S]*major/minor number: 01:03`,
		"stat fifo":                             `Type: FIFO    Mode:  0600`,
		"stat link":                             `Fast link dest: "few"`,
		"stat link59":                           `Fast link dest: "x{59}"`,
		"cat link60":                            `\nx{60}$`,
		"cat link4095":                          `\n(x/)+x$`,
		"stat owned":                            `Mode:  04751[\s\S]*User: 70000   Group:   100 [\s\S]*mtime: 0x83215600:00000001[\s\S]*crtime: 0x83215600:00000001`,
		"stat twice":                            `Links: 3 `,
		"stat empty":                            `Links: 2 `,
		"stat /":                                `Mode:  0755[\s\S]*Links: 6 `,
		"stat lost+found":                       `Inode: 11 [\s\S]*Mode:  0700[\s\S]*Size: 16384`,
		"ea_list few":                           `user.a \(1\) = "b"\s+security.capability \(20\)`,
		"ea_list many":                          `user.a \(1\) = "1"[\s\S]*trusted.x \(3\) = "odd"`,
		"ea_get many user.long":                 `\(3000\) = "l{1000}`,
		"ea_get many user.empty":                `\(0\)`,
		"ea_get -x acl system.posix_acl_access": `\(44\) = 02 00 00 00 01 00 06 00 .. .. .. .. 02 00 04 00 21 00 00 00 `,
	} {
		if got := run(t, "debugfs", "-R", command, file); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s: got\n%.1500s\nwant %s", command, got, want)
		}
	}
	got := run(t, "dumpe2fs", "-h", file)
	for _, want := range []string{"volume name:   label", "73697874-6565-6e20-6279-746573206f6b", "resize_inode dir_index filetype extent 64bit flex_bg", "metadata_csum", "Journal size:"} {
		if !strings.Contains(strings.ReplaceAll(got, "Total journal size", "Journal size"), want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// TestRdump: another reader finds the same files.
func TestRdump(t *testing.T) {
	root := everything()
	file, out := made(t, root, options(64<<20)), t.TempDir()
	run(t, "debugfs", "-R", "rdump / "+out, file)
	var walk func(dir string, f *File)
	walk = func(dir string, f *File) {
		for _, e := range f.Entries {
			name := filepath.Join(dir, e.Name)
			switch e.File.kind() {
			case folder:
				walk(name, e.File)
			case symlink:
				if to, err := os.Readlink(name); err != nil || to != e.File.Target {
					t.Errorf("%s: got %.20q, %v", e.Name, to, err)
				}
			case regular:
				want := make([]byte, e.File.Size)
				if _, err := e.File.Content.(*memory).ReadAt(want, 0); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: got %d bytes, %v", e.Name, len(got), err)
				}
			}
		}
	}
	walk(out, root)
}

func TestFolders(t *testing.T) {
	var wide []Entry
	for i := range 20_000 {
		wide = append(wide, Entry{fmt.Sprintf("a file with a longish name %05d", i), withBytes(nil)})
	}
	deep := withEntries(Entry{"end", withBytes([]byte("end"))})
	for range 300 {
		deep = withEntries(Entry{"d", deep})
	}
	var exact []Entry // a block and no byte more: 4084 = 12+12 + 20*203
	for i := range 203 {
		exact = append(exact, Entry{fmt.Sprintf("%012d", i), withBytes(nil)})
	}
	root := withEntries(Entry{"deep", deep}, Entry{"exact", withEntries(exact...)}, Entry{"wide", withEntries(wide...)})
	file := made(t, root, options(512<<20))
	same(t, file, root)
	if got := run(t, "debugfs", "-R", "stat exact", file); !strings.Contains(got, "Size: 4096") {
		t.Errorf("got\n%s", got)
	}
}

// TestLostAndFound: the tree's own stays, whatever it is.
func TestLostAndFound(t *testing.T) {
	for name, own := range map[string]*File{
		"a folder": withEntries(Entry{"#12", withBytes([]byte("found"))}), "a file": withBytes([]byte("x")),
	} {
		root := withEntries(Entry{"a", withBytes([]byte("a"))}, Entry{"lost+found", own}, Entry{"z", withBytes([]byte("z"))})
		same(t, made(t, root, options(64<<20)), root)
		if len(root.Entries) != 3 {
			t.Errorf("%s: got %d entries", name, len(root.Entries))
		}
	}
}

// TestManyFolders: one has as many of them as its count of links can say, and more.
func TestManyFolders(t *testing.T) {
	for n, want := range map[int]string{mostLinks - 2: "Links: 65000 ", mostLinks - 1: "Links: 1 "} {
		var all []Entry
		for i := range n {
			all = append(all, Entry{fmt.Sprint(i), withEntries()})
		}
		file := made(t, withEntries(Entry{"all", withEntries(all...)}), options(512<<20))
		if got := run(t, "debugfs", "-R", "stat all", file); !strings.Contains(got, want) {
			t.Errorf("%d: got\n%s", n, got)
		}
	}
}

func TestHoles(t *testing.T) {
	every := func(n int, block []byte) map[int64][]byte {
		all := map[int64][]byte{}
		for i := range n {
			all[int64(i)*3*Block] = block
		}
		return all
	}
	block := noise(3, Block)
	for name, c := range map[string]struct {
		f     *File
		depth string
	}{
		"four":       {withHoles(1<<20, every(4, block)), "(0)"},
		"five":       {withHoles(1<<20, every(5, block)), "ETB0"},
		"one node":   {withHoles(8<<20, every(340, block)), "ETB0"},
		"two":        {withHoles(8<<20, every(341, block)), "ETB0"},
		"two levels": {withHoles(32<<20, every(1361, block)), "ETB1"},
		"a gigabyte": {withHoles(1<<30, map[int64][]byte{4096: []byte("x"), 500<<20 + 17: noise(4, 70_000), 1<<30 - 1: {1}}), "(1)"},
		"all holes":  {withHoles(5<<30, nil), ""},
		"crooked":    {withHoles(70_000, map[int64][]byte{10: []byte("a"), 4000: noise(5, 200), 5000: []byte("b"), 69_999: []byte("c")}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := withEntries(Entry{"after", withBytes(noise(6, 9000))}, Entry{"f", c.f})
			file := made(t, root, options(64<<20))
			if c.f.Size < 5<<30 {
				same(t, file, root)
			}
			if got := run(t, "debugfs", "-R", "stat f", file); !strings.Contains(got, c.depth) {
				t.Errorf("got\n%.2000s\nwant %s", got, c.depth)
			}
		})
	}
}

// TestSizes: filesystems with every shape of their groups.
func TestSizes(t *testing.T) {
	for _, size := range []int64{
		2 << 20, 5<<20 + 1234, 8 << 20, 64 << 20, 128<<20 + 4096, 130 << 20, 768 << 20, 2<<30 + 40<<20, 10<<30 + 5<<20, 70 << 30, 300 << 30,
	} {
		for _, ratio := range []int64{4096, 65536} {
			root := withEntries(Entry{"a", withBytes(noise(1, 100_000))}, Entry{"b", withEntries(Entry{"c", withBytes([]byte("c"))})})
			o := options(size)
			o.BytesPerInode = ratio
			if size > 20<<30 && ratio < 65536 {
				continue
			}
			same(t, made(t, root, o), root)
		}
	}
}

// TestAcrossCopies: a file goes around the copies of the superblock, and fills what
// there is to the last block.
func TestAcrossCopies(t *testing.T) {
	root := withEntries(Entry{"large", withBytes(bytes.Repeat(noise(1, 1<<20), 700))}, Entry{"small", withBytes([]byte("s"))})
	file := made(t, root, options(1<<30))
	same(t, file, root)
	if err := os.Truncate(file, 5<<30); err != nil {
		t.Fatal(err)
	}
	run(t, "resize2fs", file)
	run(t, "e2fsck", "-fn", file)
	same(t, file, root)
}

// TestGrows: the room for growing is where resize2fs wants it.
func TestGrows(t *testing.T) {
	root := everything()
	file := made(t, root, options(64<<20))
	for _, size := range []int64{200 << 20, 3 << 30, 20 << 30} {
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
		run(t, "resize2fs", file)
		run(t, "e2fsck", "-fn", file)
	}
	same(t, file, root)
}

// TestAsMke2fs: the shape is the one that mke2fs gives a filesystem of the same size.
func TestAsMke2fs(t *testing.T) {
	shape := regexp.MustCompile(`(?m)^(Filesystem features|Block count|Reserved block count|Inode count|Reserved GDT blocks|Total journal size|Flex block group size): .*`)
	const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
	for _, megabytes := range []int64{8, 20, 100, 512, 768, 3000, 20_000} {
		file, theirs := made(t, withEntries(), options(megabytes<<20)), filepath.Join(t.TempDir(), "img")
		run(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-i", "16384", "-O", features, theirs, fmt.Sprint(megabytes, "M"))
		got := shape.FindAllString(run(t, "dumpe2fs", "-h", file), -1)
		want := shape.FindAllString(run(t, "dumpe2fs", "-h", theirs), -1)
		if len(want) < 6 || !slices.Equal(got, want) {
			t.Errorf("%d MiB: got\n%s\nwant\n%s", megabytes, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// TestReadsAnyhow: the same tree gives the same bytes, however they are read, and
// zeros where it says so.
func TestReadsAnyhow(t *testing.T) {
	whole := func() *Image {
		root := everything()
		root.Entries = append(root.Entries, Entry{"zzz", withHoles(1<<20, map[int64][]byte{5000: noise(1, 100_000), 500_000: noise(2, 9)})})
		img, err := New(root, options(20<<20+777))
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	img := whole()
	want := make([]byte, img.Size())
	if n, err := img.ReadAt(want, 0); err != nil || n != len(want) {
		t.Fatal(n, err)
	}
	img, r := whole(), rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		off := r.Int64N(img.Size())
		got := make([]byte, r.Int64N(20_000))
		n, err := img.ReadAt(got, off)
		if err != nil && (!errors.Is(err, io.EOF) || int64(n) != img.Size()-off) {
			t.Fatal(n, err)
		}
		if !bytes.Equal(got[:n], want[off:off+int64(n)]) {
			t.Fatalf("other bytes at %d+%d", off, n)
		}
		next := off
		err = img.Extents(t.Context(), off, int64(n), func(at, length int64, state qcow2.ExtentState) error {
			if at != next || length <= 0 {
				t.Fatalf("got %d+%d behind %d", at, length, next)
			}
			next += length
			if state == qcow2.Zero && len(bytes.Trim(want[at:at+length], "\x00")) > 0 {
				t.Fatalf("no zeros at %d+%d", at, length)
			}
			return nil
		})
		if err != nil || next != off+int64(n) {
			t.Fatal(next, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	attributes := withBytes(nil)
	attributes.Xattrs = map[string]string{"user.a": strings.Repeat("a", 4090)}
	acl := withBytes(nil)
	acl.Xattrs = map[string]string{"system.posix_acl_access": "short"}
	names := withBytes(nil)
	var many []Entry
	for i := range 65_001 {
		many = append(many, Entry{fmt.Sprint(i), names})
	}
	var inodes []Entry
	for i := range 33_000 {
		inodes = append(inodes, Entry{fmt.Sprint(i), withBytes(nil)})
	}
	for name, c := range map[string]struct {
		root *File
		size int64
		want error
	}{
		"no folder":     {withBytes(nil), 64 << 20, ErrUnfit},
		"no name":       {withEntries(Entry{"", withBytes(nil)}), 64 << 20, ErrUnfit},
		"a path":        {withEntries(Entry{"a/b", withBytes(nil)}), 64 << 20, ErrUnfit},
		"dots":          {withEntries(Entry{"..", withBytes(nil)}), 64 << 20, ErrUnfit},
		"a long name":   {withEntries(Entry{strings.Repeat("n", 256), withBytes(nil)}), 64 << 20, ErrUnfit},
		"attributes":    {withEntries(Entry{"a", attributes}), 64 << 20, ErrUnfit},
		"acl":           {withEntries(Entry{"a", acl}), 64 << 20, ErrUnfit},
		"links":         {withEntries(many...), 64 << 20, ErrUnfit},
		"a long target": {withEntries(Entry{"a", &File{Mode: symlink, Target: strings.Repeat("t", 4096)}}), 64 << 20, ErrUnfit},
		"no target":     {withEntries(Entry{"a", &File{Mode: symlink}}), 64 << 20, ErrUnfit},
		"no kind":       {withEntries(Entry{"a", &File{}}), 64 << 20, ErrUnfit},
		"too large":     {withEntries(Entry{"a", withBytes(make([]byte, 10<<20))}), 10 << 20, ErrNoRoom},
		"no inodes":     {withEntries(inodes...), 64 << 20, ErrNoRoom},
		"tiny":          {withEntries(), 40 << 10, ErrNoRoom},
		"nothing":       {withEntries(), 100, ErrNoRoom},
		"huge":          {withEntries(), 1 << 45, ErrUnfit},
	} {
		if _, err := New(c.root, options(c.size)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

// TestChanges: what a file says of itself when it is read counts.
func TestChanges(t *testing.T) {
	gone := errors.New("it has changed")
	for name, change := range map[string]func(*memory){
		"shorter":   func(m *memory) { m.size = 10 },
		"otherwise": func(m *memory) { m.fault = gone },
	} {
		a := withBytes(noise(1, 5000))
		img, err := New(withEntries(Entry{"a", a}), options(10<<20))
		if err != nil {
			t.Fatal(err)
		}
		m := a.Content.(*memory)
		change(m)
		if _, err := img.ReadAt(make([]byte, img.Size()), 0); !errors.Is(err, gone) && !errors.Is(err, io.EOF) || m.opened != 1 {
			t.Errorf("%s: got %v after %d times", name, err, m.opened)
		}
	}
}
