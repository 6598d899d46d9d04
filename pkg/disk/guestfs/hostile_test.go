package guestfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"runtime"
	"testing"
)

// small is a small image of a small tree, in one of the formats.
func small(t testing.TB, name string) []byte {
	t.Helper()
	if name == "dirty" {
		return contentsOf(t, unpack(t, "dirty.img.gz"))
	}
	dir := t.TempDir()
	write(t, dir+"/boot/grub/menu.lst", []byte("default 0\n"))
	write(t, dir+"/boot/vmlinuz-with-a-long-name", noise(1, 30000))
	write(t, dir+"/boot/tiny", []byte("tiny"))
	for _, n := range []string{"a", "b", "c"} {
		write(t, dir+"/boot/"+n+"/"+n, noise(2, 3000))
	}
	img := image(t, 1<<20)
	switch name {
	case "fat12":
		run(t, "mkfs.vfat", "-F", "12", "-n", "X", img)
		run(t, "mcopy", "-s", "-i", img, dir+"/boot", "::/")
		return contentsOf(t, img)
	case "fat32":
		// It has as many clusters as a FAT32 must, and all that is in them lies at
		// the beginning.
		img := image(t, 34<<20)
		run(t, "mkfs.vfat", "-F", "32", "-s", "1", "-n", "X", img)
		run(t, "mcopy", "-s", "-i", img, dir+"/boot", "::/")
		return contentsOf(t, img)[:1<<20]
	}
	if err := os.Symlink("../boot/vmlinuz-with-a-long-name", dir+"/boot/vmlinuz"); err != nil {
		t.Fatal(err)
	}
	args := map[string][]string{
		"ext2":   {"-t", "ext2"},
		"ext4":   {"-t", "ext4", "-O", "^has_journal"},
		"inline": {"-t", "ext4", "-O", "inline_data,^has_journal", "-I", "256"},
	}[name]
	run(t, "mke2fs", append(append([]string{"-q", "-F", "-b", "1024", "-d", dir}, args...), img)...)
	return contentsOf(t, img)
}

func contentsOf(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// counter is a disk that knows how much was read of it.
type counter struct {
	io.ReaderAt
	bytes int64
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	c.bytes += int64(len(p))
	return c.ReaderAt.ReadAt(p, off)
}

// exercise reads what can be read of a disk that may be damaged: nothing of it may
// panic, and no more be read than there are steps.
func exercise(t testing.TB, img []byte) {
	t.Helper()
	ctx := t.Context()
	c := &counter{ReaderAt: bytes.NewReader(img)}
	f, err := Open(ctx, c, int64(len(img)))
	if err != nil {
		if f != nil {
			t.Error("a filesystem and an error")
		}
		return
	}
	left := 300 // of what is looked at
	var walk func(dir string, depth int)
	walk = func(dir string, depth int) {
		names, err := f.ReadDir(ctx, dir)
		if err != nil || depth > 20 {
			return
		}
		for _, name := range names {
			if left--; left < 0 {
				return
			}
			p := path.Join(dir, name)
			file, err := f.Open(ctx, p)
			if errors.Is(err, ErrNotAFile) {
				walk(p, depth+1)
			}
			if err != nil {
				continue
			}
			if file.Size() < 0 {
				t.Fatalf("%s has %d bytes", p, file.Size())
			}
			b := make([]byte, min(file.Size(), 1<<18))
			file.ReadAt(ctx, b, 0)
			file.ReadAt(ctx, b[:min(len(b), 100)], file.Size()-min(file.Size(), 100))
		}
	}
	walk("/", 0)
	if c.bytes > maxMetadata+300<<18 {
		t.Errorf("%d bytes were read", c.bytes)
	}
}

// TestDamagedImages flips bytes, most of them where the metadata is.
func TestDamagedImages(t *testing.T) {
	for _, name := range []string{"ext2", "ext4", "inline", "dirty", "fat12", "fat32"} {
		t.Run(name, func(t *testing.T) {
			img := small(t, name)
			r := rand.New(rand.NewPCG(7, 7))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for range 400 {
				b := bytes.Clone(img)
				for range 1 + r.IntN(20) {
					// Where there is something: zeros are mostly free blocks.
					at := r.IntN(len(b))
					for range 50 {
						if b[at] != 0 {
							break
						}
						at = r.IntN(min(len(b), 200<<10))
					}
					b[at] = byte(r.Uint32())
				}
				exercise(t, b)
			}
			runtime.ReadMemStats(&after)
			if grown := after.HeapSys - min(before.HeapSys, after.HeapSys); grown > 256<<20 {
				t.Errorf("the heap grew by %d bytes", grown)
			}
		})
	}
}

// patched is the image with the patches of a fuzzer: three bytes of where, one of
// what.
func patched(img, patches []byte) []byte {
	b := bytes.Clone(img)
	for ; len(patches) >= 4; patches = patches[4:] {
		b[int(binary.LittleEndian.Uint32(patches)&0xffffff)%len(b)] = patches[3]
	}
	return b
}

func FuzzExt(f *testing.F) {
	var images [][]byte
	for _, name := range []string{"ext2", "ext4", "inline", "dirty"} {
		images = append(images, small(f, name))
	}
	for i := range images {
		f.Add(uint8(i), []byte{0x00, 0x04, 0x00, 0xff})
		f.Add(uint8(i), []byte{0x18, 0x04, 0x00, 0x03, 0x58, 0x04, 0x00, 0x01, 0x60, 0x04, 0x00, 0xff})
	}
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		exercise(t, patched(images[int(which)%len(images)], patches))
	})
}

func FuzzFAT(f *testing.F) {
	images := [][]byte{small(f, "fat12"), small(f, "fat32")}
	for i := range images {
		f.Add(uint8(i), []byte{0x0d, 0x00, 0x00, 0x80})
		f.Add(uint8(i), []byte{0x2c, 0x00, 0x00, 0x05, 0x04, 0x02, 0x00, 0x02})
	}
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		exercise(t, patched(images[int(which)%len(images)], patches))
	})
}

// TestLoops are structures that lead back to themselves.
func TestLoops(t *testing.T) {
	t.Run("a FAT chain", func(t *testing.T) {
		img := small(t, "fat32")
		at := bytes.Index(img, []byte("VMLINU"))
		if at < 0 {
			t.Fatal("no such file")
		}
		first := int(le16(img, at+26)) | int(le16(img, at+20))<<16
		table := int(le16(img, 14)) * 512
		binary.LittleEndian.PutUint32(img[table+4*first:], uint32(first))
		binary.LittleEndian.PutUint32(img[at+28:], 0xffffffff)
		f, err := Open(t.Context(), bytes.NewReader(img), int64(len(img)))
		if err != nil {
			t.Fatal(err)
		}
		file, err := f.Open(t.Context(), "/boot/vmlinuz-with-a-long-name")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := file.CopyTo(context.Background(), io.Discard); !errors.Is(err, ErrDamaged) {
			t.Errorf("copied %d bytes: %v", n, err)
		}
	})
	t.Run("a directory in itself", func(t *testing.T) {
		img := small(t, "fat32")
		root := int(le32(img, 44))
		at := bytes.Index(img, []byte("BOOT       \x10"))
		if at < 0 {
			t.Fatal("no such directory")
		}
		binary.LittleEndian.PutUint16(img[at+26:], uint16(root))
		exercise(t, img)
	})
}

// TestHoles: a file that ends with a hole, and one whose blocks were set aside and
// never written, read as zeros, whatever lies there.
func TestHoles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/hole", noise(3, 5000))
	if err := os.Truncate(dir+"/hole", 3<<20+1); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"ext2", "ext4"} {
		img := image(t, 8<<20)
		run(t, "mke2fs", "-q", "-F", "-t", kind, "-b", "1024", "-d", dir, img)
		if kind == "ext4" {
			script := t.TempDir() + "/script"
			write(t, script, []byte("write /dev/null aside\nfallocate aside 0 99\nset_inode_field aside size 102400\n"))
			run(t, "debugfs", "-w", "-f", script, img)
		}
		f := open(t, img)
		want := append(noise(3, 5000), make([]byte, 3<<20+1-5000)...)
		if b, err := f.ReadFile(t.Context(), "/hole", 4<<20); err != nil || !bytes.Equal(b, want) {
			t.Errorf("%s: %d bytes, %v", kind, len(b), err)
		}
		if kind == "ext4" {
			if b, err := f.ReadFile(t.Context(), "/aside", 4<<20); err != nil || !bytes.Equal(b, make([]byte, 102400)) {
				t.Errorf("%s: aside has %d bytes, %v", kind, len(b), err)
			}
		}
	}
}

// TestRefusedFeatures: what would be read wrongly is said.
func TestRefusedFeatures(t *testing.T) {
	img := small(t, "ext4")
	mark := func(inode int, flag uint32) []byte {
		b := bytes.Clone(img)
		table := int(le32(b, 2048+8)) * 1024 // of the first group
		at := table + (inode-1)*int(le16(b, 1024+0x58)) + 0x20
		binary.LittleEndian.PutUint32(b[at:], le32(b, at)|flag)
		return b
	}
	feature := func(bit uint32) []byte {
		b := bytes.Clone(img)
		binary.LittleEndian.PutUint32(b[1024+0x60:], le32(b, 1024+0x60)|bit)
		return b
	}
	for _, c := range []struct {
		name string
		img  []byte
	}{
		{"an encrypted directory", mark(rootInode, flagEncrypt)},
		{"a casefolded directory", mark(rootInode, flagCasefold)},
		{"an unknown feature", feature(1 << 30)},
		{"a journal device", feature(inJournalDev)},
		{"a journal elsewhere", feature(inRecover)},
	} {
		f, err := Open(t.Context(), bytes.NewReader(c.img), int64(len(c.img)))
		if err == nil {
			_, err = f.ReadDir(t.Context(), "/")
		}
		if !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
}
