package pvgrub

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/disk/guestfs"
	"github.com/rogpeppe/go-internal/txtar"
)

// whole is a disk of one ext4 without partitions, with the files given as name,
// content, name, content.
func whole(t testing.TB, files ...string) string {
	t.Helper()
	a := &txtar.Archive{Comment: []byte("0 ext4 - root\n")}
	for i := 0; i < len(files); i += 2 {
		a.Files = append(a.Files, txtar.File{Name: "0" + files[i], Data: []byte(files[i+1])})
	}
	return makeDisk(t, a)
}

func TestRefusals(t *testing.T) {
	const cfg = "/boot/grub/grub.cfg"
	kernel := string(bzImage(true))
	for _, c := range []struct {
		name string
		disk string
		want error
		says []string
	}{
		{"an empty disk", plain(t, make([]byte, 1<<20)), ErrNoFilesystem, []string{"(hd0)"}},
		{"less than a sector", plain(t, make([]byte, 100)), ErrNoFilesystem, nil},
		{
			"xfs in a partition", plain(t, assemble("gpt", []filesystem{{number: 2}}, [][]byte{append([]byte("XFSB"), make([]byte, fsSize)...)})),
			ErrNoFilesystem,
			[]string{"(hd0,gpt2)", "xfs"},
		},
		{"no configuration", whole(t, "/etc/hostname", "x"), ErrNoConfig, []string{"/boot/grub/menu.lst", "(hd0) (ext4)"}},
		{"extlinux", whole(t, "/boot/extlinux.conf", "x"), ErrNoConfig, []string{"/boot/extlinux.conf is there, which is not read"}},
		{"an empty configuration", whole(t, cfg, ""), ErrNoKernel, []string{"has no entries"}},
		{"no kernel", whole(t, cfg, "menuentry a {\n linux /boot/none\n}\n"), os.ErrNotExist, []string{`entry "a"`, "/boot/none"}},
		{"no initial RAM disk", whole(t, cfg, "menuentry a {\n linux /k\n initrd /i\n}\n", "/k", kernel), os.ErrNotExist, []string{"(hd0)/i"}},
		{"a kernel that is a text", whole(t, cfg, "menuentry a {\n linux /k\n}\n", "/k", "#!/bin/sh\n"), ErrNotKernel, []string{"a script"}},
		{"a kernel that is a directory", whole(t, cfg, "menuentry a {\n linux /d\n}\n", "/d/x", ""), guestfs.ErrNotAFile, nil},
		{
			"a kernel that leads outside", whole(t, "/boot/grub/menu.lst", "title a\nroot (hd0)\nkernel /boot/../../../../../../../../etc/passwd\n"),
			os.ErrNotExist,
			[]string{"/etc/passwd"},
		},
		{"a link that leads outside", whole(t, cfg, "menuentry a {\n linux /k\n}\n", "/k", "-> ../../../../../../etc/passwd"), os.ErrNotExist, nil},
		{"links in a ring", whole(t, cfg, "menuentry a {\n linux /k\n}\n", "/k", "-> /l", "/l", "-> /k"), guestfs.ErrTooLarge, []string{"links"}},
		{"another disk", whole(t, cfg, "menuentry a {\n linux (hd1,gpt1)/k\n}\n"), ErrNoKernel, []string{"hd1", "only the guest's root disk"}},
		{"a host's device", whole(t, cfg, "menuentry a {\n linux (host)/etc/passwd\n}\n"), ErrNoKernel, []string{"(host)"}},
		{"another loader", whole(t, cfg, "menuentry a {\n chainloader +1\n}\n"), ErrNoKernel, []string{"chainloader"}},
		{"a script without end", whole(t, cfg, "if true; then\n"), ErrNoConfig, []string{"fi"}},
		{"a script that grows", whole(t, cfg, "set a=aaaaaaaaaaaaaaaa\n"+strings.Repeat("set a=$a$a\n", 40)), ErrTooLarge, nil},
		{"a script that sources itself", whole(t, cfg, "source $prefix/grub.cfg\n"), ErrTooLarge, []string{"files in each other"}},
		{"a script of many commands", whole(t, cfg, strings.Repeat("a\n", maxSteps+1)), ErrTooLarge, []string{"commands"}},
		{"blocks in each other", whole(t, cfg, strings.Repeat("submenu x {\n", 1000)), ErrTooLarge, []string{"blocks"}},
		{"many entries", whole(t, cfg, strings.Repeat("menuentry a {\n}\n", MaxEntries+1)), ErrTooLarge, []string{"entries"}},
		{"many titles", whole(t, "/boot/grub/menu.lst", strings.Repeat("title a\n", MaxEntries+1)), ErrTooLarge, []string{"entries"}},
		{"a long configuration", whole(t, cfg, strings.Repeat("# long\n", MaxConfig/7+1)), ErrTooLarge, []string{"grub.cfg"}},
		{"a long command line", whole(t, cfg, "menuentry a {\n linux /k "+strings.Repeat("x", 5000)+"\n}\n", "/k", kernel), ErrTooLarge, []string{"command line"}},
		{"a command line with a line end", whole(t, cfg, "menuentry a {\n linux /k 'a\nb'\n}\n", "/k", kernel), ErrNoKernel, []string{"control characters"}},
		{"words that move the cursor", whole(t, cfg, "menuentry '\x1b[2Ja' {\n linux /\x1b[2J\n}\n"), ErrNoKernel, []string{"(hd0)/\ufffd[2J"}},
		{"a large kernel", sparse(t, MaxKernel+1), ErrTooLarge, []string{"the kernel (hd0)/k"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := findIn(t, c.disk)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v %v, want %v", got.Entries, err, c.want)
			}
			if strings.ContainsRune(err.Error(), '\x1b') {
				t.Errorf("the message moves the cursor: %q", err)
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("the message does not say %q: %v", s, err)
				}
			}
		})
	}
}

func plain(t testing.TB, b []byte) string {
	t.Helper()
	p := t.TempDir() + "/disk"
	if err := os.WriteFile(p, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// sparse is a disk whose kernel has size bytes, all of them holes.
func sparse(t testing.TB, size int64) string {
	t.Helper()
	dir, img := t.TempDir(), t.TempDir()+"/img"
	for p, text := range map[string]string{"/k": "", "/boot/grub/grub.cfg": "menuentry a {\n linux /k\n}\n"} {
		if err := os.MkdirAll(dir+"/boot/grub", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(dir+"/k", size); err != nil {
		t.Fatal(err)
	}
	run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-d", dir, img, "8M")
	return img
}

// TestNextConfiguration: a menu.lst that was left behind gives way to what boots.
func TestNextConfiguration(t *testing.T) {
	disk := whole(t,
		"/boot/grub/menu.lst", "title old\nroot (hd0)\nkernel /boot/gone\n",
		"/boot/grub/grub.cfg", "set default=7\nmenuentry new {\n linux /k a=$b c\n}\n", "/k", "@bzImage\n")
	c, err := findIn(t, disk)
	if err != nil || c.Source != "(hd0)/boot/grub/grub.cfg" || c.Entries[0].Cmdline != "a= c" {
		t.Fatalf("got %+v, %v", c, err)
	}
	if len(c.Passed) != 2 || !strings.Contains(c.Passed[0], "/boot/gone") || !strings.Contains(c.Passed[1], `"7" is not there`) {
		t.Errorf("passed %q", c.Passed)
	}
}

// TestStandIns: an entry that neither is the default nor a fallback stands in.
func TestStandIns(t *testing.T) {
	disk := whole(t, "/boot/grub/grub.cfg", "menuentry new {\n linux /gone\n}\nsubmenu more {\n menuentry old {\n linux /k\n}\n}\n", "/k", "@bzImage\n")
	c, err := findIn(t, disk)
	if err != nil || len(c.Entries) != 1 || c.Entries[0].Title != "old" {
		t.Fatalf("got %+v, %v", c, err)
	}
}

func TestCancelled(t *testing.T) {
	b, err := os.ReadFile(whole(t, "/boot/grub/grub.cfg", "menuentry a {\n linux /k\n}\n", "/k", "@bzImage\n"))
	if err != nil {
		t.Fatal(err)
	}
	// Cancelled at each read, there is never anything else than that error.
	for n := 1; n < 60; n++ {
		ctx, cancel := context.WithCancel(t.Context())
		r := &cancelling{b: bytes.NewReader(b), left: n, cancel: cancel}
		if _, err := Find(ctx, r, int64(len(b))); r.left < 0 && !errors.Is(err, context.Canceled) {
			t.Errorf("after %d reads: got %v", n, err)
		}
		cancel()
	}
	if _, err := (File{}).WriteTo(&bytes.Buffer{}); err == nil {
		t.Error("a file of no guest was written")
	}
}

type cancelling struct {
	b      *bytes.Reader
	left   int
	cancel func()
}

func (c *cancelling) ReadAt(p []byte, off int64) (int, error) {
	if c.left--; c.left == 0 {
		c.cancel()
		c.left = -1 << 30
	}
	return c.b.ReadAt(p, off)
}

// elf is a kernel with a Xen note of the kind given.
func elf(note uint32) []byte {
	le := binary.LittleEndian
	b := make([]byte, 4096)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[18:], 62)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 1)
	h := b[64:]
	le.PutUint32(h, 4)
	le.PutUint64(h[8:], 1024)
	le.PutUint64(h[32:], 60)
	for i, kind := range []uint32{6, note} {
		n := b[1024+20*i:]
		le.PutUint32(n, 4)
		le.PutUint32(n[4:], 4)
		le.PutUint32(n[8:], kind)
		copy(n[12:], "Xen\x00")
	}
	return b
}

func TestKernels(t *testing.T) {
	packed := func(b []byte) []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		z.Write(b)
		z.Close()
		return out.Bytes()
	}
	arm := make([]byte, 4096)
	copy(arm, "MZ")
	copy(arm[0x38:], "ARM\x64")
	for _, c := range []struct {
		name   string
		bytes  []byte
		format string
		arch   ami.Architecture
		pvh    bool
	}{
		{"bzImage", bzImage(true), FormatBzImage, ami.ArchX8664, false},
		{"of 32 bits", bzImage(false), FormatBzImage, ami.ArchI386, false},
		{"arm64", arm, FormatARM64Image, ami.ArchARM64, false},
		{"arm64 in gzip", packed(arm), FormatGzip, ami.ArchARM64, false},
		{"zboot", []byte("MZ\x00\x00zimg and more"), FormatEFIZboot, ami.ArchARM64, false},
		{"ELF with PVH", elf(18), FormatELF, ami.ArchX8664, true},
		{"ELF without", elf(17), FormatELF, ami.ArchX8664, false},
		{"ELF in gzip", packed(elf(18)), FormatGzip, ami.ArchX8664, false},
		{"gzip cut off", []byte("\x1f\x8b\x08"), FormatGzip, "", false},
		{"xz", []byte("\xfd7zXZ\x00..."), FormatXZ, "", false},
		{"bzip2", []byte("BZh9"), FormatBzip2, "", false},
		{"lzo", []byte("\x89LZO\x00\r\n\x1a\n"), FormatLZO, "", false},
		{"zstd", []byte("\x28\xb5\x2f\xfd"), FormatZstd, "", false},
	} {
		got, err := findIn(t, whole(t, "/boot/grub/grub.cfg", "menuentry a {\n linux /k\n}\n", "/k", string(c.bytes)))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if k := got.Entries[0].Kernel; k.Format != c.format || k.Architecture != c.arch || k.PVH != c.pvh {
			t.Errorf("%s: got %s %s, PVH %v", c.name, k.Format, k.Architecture, k.PVH)
		}
	}
	for _, c := range []struct{ head, want string }{
		{"", "empty"},
		{"MZ\x00", "an EFI program"},
		{"070701", "a cpio archive"},
		{"\x00\x00\x00", "nothing but zeros"},
		{"hello", "68 65 6c 6c 6f"},
	} {
		if got := describe([]byte(c.head)); !strings.Contains(got, c.want) {
			t.Errorf("%q is %s, want %s", c.head, got, c.want)
		}
	}
}

// TestTables: a disk whose table is nonsense has no partitions, and no loop.
func TestTables(t *testing.T) {
	le := binary.LittleEndian
	base := func() []byte {
		b := make([]byte, 1<<20)
		b[510], b[511] = 0x55, 0xaa
		return b
	}
	record := func(b []byte, at, i int, kind byte, start, size uint32) {
		e := b[at+446+16*i:]
		e[4] = kind
		le.PutUint32(e[8:], start)
		le.PutUint32(e[12:], size)
	}
	ring := base()
	record(ring, 0, 0, 0x05, 100, 1000)
	ring[100*512+510], ring[100*512+511] = 0x55, 0xaa
	record(ring, 100*512, 0, 0x83, 1, 10)
	record(ring, 100*512, 1, 0x05, 0, 10)
	wild := base()
	record(wild, 0, 0, 0x83, 0xffffffff, 0xffffffff)
	record(wild, 0, 1, 0x83, 1, 0xffffffff)
	large := base()
	copy(large[512:], "EFI PART")
	le.PutUint64(large[512+72:], 2)
	le.PutUint32(large[512+80:], 0xffffffff)
	le.PutUint32(large[512+84:], 4096)
	for _, c := range []struct {
		name string
		disk []byte
		want string
	}{
		{"a ring of logical ones", ring, "[(hd0) (hd0,msdos5)]"},
		{"behind the end", wild, "[(hd0) (hd0,msdos2)]"},
		{"a large GPT", large, "[(hd0)]"},
	} {
		got, err := slicesOf(t.Context(), bytes.NewReader(c.disk), int64(len(c.disk)))
		var names []string
		for _, s := range got {
			names = append(names, s.device())
		}
		if err != nil || fmt.Sprint(names) != c.want {
			t.Errorf("%s: got %v %v, want %s", c.name, names, err, c.want)
		}
	}
}
