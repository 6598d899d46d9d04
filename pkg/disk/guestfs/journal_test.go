package guestfs

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unpack writes a packed image to a file of its own.
func unpack(t testing.TB, name string) string {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "img")
	if err := os.WriteFile(out, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return out
}

// contents are all files and directories, by path.
func contents(t testing.TB, f *FS) map[string]string {
	t.Helper()
	out := map[string]string{}
	var walk func(dir string)
	walk = func(dir string) {
		names, err := f.ReadDir(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		out[dir+"/"] = strings.Join(names, "\n")
		for _, name := range names {
			p := path.Join(dir, name)
			file, err := f.Open(t.Context(), p)
			if errors.Is(err, ErrNotAFile) {
				walk(p)
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if _, err := file.CopyTo(t.Context(), &b); err != nil {
				t.Fatal(err)
			}
			out[p] = b.String()
		}
	}
	walk("/")
	return out
}

// replayed is the image as e2fsck leaves it.
func replayed(t testing.TB, img string) string {
	t.Helper()
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "replayed")
	if err := os.WriteFile(out, b, 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "e2fsck", "-p", "-E", "journal_only", out)
	return out
}

func sameAs(t testing.TB, img string) map[string]string {
	t.Helper()
	got, want := contents(t, open(t, img)), contents(t, open(t, replayed(t, img)))
	if len(got) != len(want) {
		t.Errorf("got %d files and directories, want %d", len(got), len(want))
	}
	for p, w := range want {
		if g, ok := got[p]; !ok || g != w {
			t.Errorf("%s: got %.60q, want %.60q", p, g, w)
		}
	}
	return got
}

// TestKilledGuest: what is in the journal only is read, and what was freed since
// is not taken from it.
func TestKilledGuest(t *testing.T) {
	for _, name := range []string{"dirty.img.gz", "dirty-ext3.img.gz"} {
		t.Run(name, func(t *testing.T) {
			got := sameAs(t, unpack(t, name))
			for p, want := range map[string]string{
				"/boot/vmlinuz": "new kernel\n", "/boot/vmlinuz-1": "old kernel\n",
				"/boot/grub/grub.cfg": "linux /boot/vmlinuz-2\n", "/boot/modules/module number 40": "40\n", "/again/": "",
			} {
				if p == "/again/" {
					if n := len(strings.Split(got["/again/"], "\n")); n != 40 {
						t.Errorf("/again has %d files, want 40", n)
					}
				} else if got[p] != want {
					t.Errorf("%s: got %q, want %q", p, got[p], want)
				}
			}
			if _, ok := got["/old/"]; ok {
				t.Error("the removed directory is still there")
			}
		})
	}
}

// TestWrittenJournals has e2fsprogs write transactions, with revoked blocks, with
// the journal's magic number as a block's beginning, and with checksums.
func TestWrittenJournals(t *testing.T) {
	dir := t.TempDir()
	old := noise(1, 8192)
	write(t, dir+"/file", old)
	for _, c := range []struct {
		name string
		args []string
	}{
		{"ext3", []string{"-t", "ext3"}},
		{"64bit", []string{"-t", "ext4", "-O", "^metadata_csum,64bit"}},
		{"checksums", []string{"-t", "ext4", "-O", "metadata_csum"}},
		{"of 4k blocks", []string{"-t", "ext4", "-b", "4096"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := image(t, 16<<20)
			run(t, "mke2fs", append(append([]string{"-q", "-F", "-b", "1024", "-d", dir}, c.args...), img)...)
			size := 1024
			if slices.Contains(c.args, "4096") {
				size = 4096
			}
			blocks := strings.Fields(run(t, "debugfs", "-R", "blocks /file", img))
			first, second := blocks[len(blocks)-8192/size], blocks[len(blocks)-8192/size+1]
			escaped := noise(2, size)
			binary.BigEndian.PutUint32(escaped, journalMagic)
			data := t.TempDir() + "/data"
			write(t, data, escaped)
			script := t.TempDir() + "/script"
			csum := ""
			if c.name == "checksums" {
				csum = " -c"
			}
			write(t, script, []byte("jo"+csum+"\njw -b "+first+" "+data+"\njc\njo"+csum+"\njw -b "+second+" "+data+"\njc\njo"+csum+"\njw -r "+second+"\njc\n"))
			run(t, "debugfs", "-w", "-f", script, img)
			got := sameAs(t, img)["/file"]
			want := string(escaped) + string(old[size:])
			if got != want {
				t.Errorf("the file begins with % x and goes on with % x", got[:8], got[size:size+8])
			}
		})
	}
}

// TestTornJournal: a transaction whose commit block is not sound ends the log; one
// whose blocks are not what was logged is damage.
func TestTornJournal(t *testing.T) {
	img, err := os.ReadFile(unpack(t, "dirty.img.gz"))
	if err != nil {
		t.Fatal(err)
	}
	const block = 1024
	// The journal's blocks, by what their heads say.
	var commits, descriptors, supers []int
	for at := 0; at < len(img); at += block {
		if be32(img, at) == journalMagic {
			switch be32(img, at+4) {
			case jbdCommit:
				commits = append(commits, at)
			case jbdDescriptor:
				descriptors = append(descriptors, at)
			case jbdSuper2:
				supers = append(supers, at)
			}
		}
	}
	if len(commits) != 2 || len(descriptors) != 2 || len(supers) != 1 {
		t.Fatalf("the fixture has %d commits and %d descriptors", len(commits), len(descriptors))
	}
	for _, c := range []struct {
		name        string
		flip        int
		again, boot bool // which transaction's files are there
		err         error
	}{
		{"the second commit", commits[1] + 100, false, true, nil},
		{"the second descriptor", descriptors[1] + 20, false, true, nil},
		{"the first commit", commits[0] + 100, false, false, nil},
		{"a block of the second", descriptors[1] + block + 100, false, false, ErrDamaged},
		{"the journal's superblock", supers[0] + 0x18, false, false, ErrDamaged},
	} {
		b := bytes.Clone(img)
		b[c.flip] ^= 0x55
		f, err := Open(t.Context(), bytes.NewReader(b), int64(len(b)))
		if !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.err)
		}
		if err != nil {
			continue
		}
		for p, want := range map[string]bool{"/again/40": c.again, "/boot/vmlinuz-2": c.boot, "/old/a file that goes 9": !c.boot} {
			if _, err := f.Open(t.Context(), p); (err == nil) != want {
				t.Errorf("%s: %s: got %v, want it there %v", c.name, p, err, want)
			}
		}
	}
}
