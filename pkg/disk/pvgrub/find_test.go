package pvgrub

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write the golden files anew")

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/sbin:/usr/sbin", "MTOOLS_SKIP_CHECK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// bzImage has the head of an x86 kernel.
func bzImage(wide bool) []byte {
	b := bytes.Repeat([]byte("kernel"), 200)
	copy(b[0x1fe:], "\x55\xaa")
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	b[0x236] = 0
	if wide {
		b[0x236] = 1
	}
	return b
}

// content is what a file of an archive stands for.
func content(b []byte) []byte {
	text := string(b)
	switch {
	case text == "@bzImage\n":
		return bzImage(true)
	case text == "@zImage\n":
		return bzImage(false)
	case strings.HasPrefix(text, "@grubenv\n"):
		b := append([]byte(envHead), b[len("@grubenv\n"):]...)
		return append(b, bytes.Repeat([]byte("#"), 1024-len(b))...)
	}
	return b
}

// filesystem is one line of an archive's head: a partition's number (0 for the
// whole disk), its format, UUID and label.
type filesystem struct {
	number            int
	kind, uuid, label string
}

const fsSize = 4 << 20

// makeDisk makes the disk that an archive describes, and returns its path.
func makeDisk(t testing.TB, a *txtar.Archive) string {
	t.Helper()
	table := ""
	var list []filesystem
	for line := range strings.Lines(string(a.Comment)) {
		f := strings.Fields(line)
		if len(f) == 1 && (f[0] == "gpt" || f[0] == "msdos") {
			table = f[0]
		}
		if len(f) != 4 {
			continue
		}
		if n, err := strconv.Atoi(f[0]); err == nil {
			list = append(list, filesystem{n, f[1], f[2], f[3]})
		}
	}
	dir := t.TempDir()
	for _, f := range a.Files {
		p := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(string(f.Data), "-> "); ok {
			err = os.Symlink(strings.TrimSpace(to), p)
		} else {
			err = os.WriteFile(p, content(f.Data), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var filesystems [][]byte
	for _, f := range list {
		filesystems = append(filesystems, makeFS(t, f, filepath.Join(dir, strconv.Itoa(f.number))))
	}
	out := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(out, assemble(table, list, filesystems), 0o644); err != nil {
		t.Fatal(err)
	}
	return out
}

func makeFS(t testing.TB, f filesystem, tree string) []byte {
	t.Helper()
	img := filepath.Join(t.TempDir(), "fs")
	if err := os.WriteFile(img, make([]byte, fsSize), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if f.kind == "vfat" {
		run(t, "mkfs.vfat", "-n", f.label, "-i", strings.ReplaceAll(f.uuid, "-", ""), img)
		entries, err := os.ReadDir(tree)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			run(t, "mcopy", "-s", "-i", img, filepath.Join(tree, e.Name()), "::/")
		}
	} else {
		args := []string{"-q", "-F", "-t", f.kind, "-L", f.label, "-d", tree}
		if f.uuid != "-" {
			args = append(args, "-U", f.uuid)
		}
		run(t, "mke2fs", append(args, img)...)
	}
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// assemble puts filesystems into partitions one behind the other, from 1 MiB on.
func assemble(table string, list []filesystem, filesystems [][]byte) []byte {
	if table == "" {
		return filesystems[0]
	}
	const first = 1 << 20
	le := binary.LittleEndian
	b := make([]byte, first, first+len(list)*(fsSize+first))
	b[510], b[511] = 0x55, 0xaa
	record := func(at, i int, kind byte, start, size int) {
		e := b[at+446+16*i:]
		e[4] = kind
		le.PutUint32(e[8:], uint32(start/sectorSize))
		le.PutUint32(e[12:], uint32(size/sectorSize))
	}
	if table == "gpt" {
		record(0, 0, 0xee, sectorSize, 1<<30)
		copy(b[sectorSize:], "EFI PART")
		le.PutUint64(b[sectorSize+72:], 2)
		le.PutUint32(b[sectorSize+80:], 128)
		le.PutUint32(b[sectorSize+84:], 128)
	}
	extendedAt, last := 0, 0
	for i, f := range list {
		start := len(b)
		switch {
		case table == "gpt":
			e := b[2*sectorSize+128*(f.number-1):]
			e[0] = 0xaf
			le.PutUint64(e[32:], uint64(start/sectorSize))
			le.PutUint64(e[40:], uint64((start+fsSize)/sectorSize-1))
		case f.number < 5:
			record(0, f.number-1, 0x83, start, fsSize)
		default: // a logical one has a table of its own before it
			b = append(b, make([]byte, first)...)
			b[start+510], b[start+511] = 0x55, 0xaa
			if extendedAt == 0 {
				record(0, 3, 0x05, start, 1<<30)
				extendedAt = start
			} else {
				record(last, 1, 0x05, start-extendedAt, fsSize)
			}
			record(start, 0, 0x83, first, fsSize)
			last = start
		}
		b = append(b, filesystems[i]...)
	}
	return b
}

// report is a configuration as the archives have it.
func report(c Config) string {
	var b strings.Builder
	fmt.Fprintf(&b, "source %s\n", c.Source)
	for _, e := range c.Entries {
		fmt.Fprintf(&b, "entry %s\n  kernel %s %d %s %s\n", e.Title, e.Kernel, e.Kernel.Size, e.Kernel.Format, e.Kernel.Architecture)
		for _, i := range e.Initrds {
			fmt.Fprintf(&b, "  initrd %s %d\n", i, i.Size)
		}
		fmt.Fprintf(&b, "  cmdline %s\n", e.Cmdline)
	}
	for _, p := range c.Passed {
		fmt.Fprintf(&b, "passed %s\n", p)
	}
	return b.String()
}

func findIn(t testing.TB, path string) (Config, error) {
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
	return Find(t.Context(), f, st.Size())
}

func TestFind(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, p := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(p), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(p)
			if err != nil {
				t.Fatal(err)
			}
			want := ""
			if n := len(a.Files) - 1; a.Files[n].Name == "want" {
				want, a.Files = string(a.Files[n].Data), a.Files[:n]
			}
			c, err := findIn(t, makeDisk(t, a))
			got := report(c)
			if err != nil {
				got = fmt.Sprintf("error %v\n", err)
			}
			if *update {
				a.Files = append(a.Files, txtar.File{Name: "want", Data: []byte(got)})
				if err := os.WriteFile(p, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			for _, e := range c.Entries {
				for _, f := range append(slices.Clone(e.Initrds), e.Kernel) {
					var b bytes.Buffer
					if n, err := f.WriteTo(&b); err != nil || n != f.Size || int64(b.Len()) != n {
						t.Errorf("%s: wrote %d bytes of %d: %v", f, n, f.Size, err)
					}
				}
			}
		})
	}
}
