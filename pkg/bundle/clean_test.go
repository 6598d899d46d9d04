package bundle

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// guestDisk makes a filesystem of a kind with files that are to go and some that
// are not, and with what a deleted file has left.
func guestDisk(t *testing.T, kind string) *os.File {
	t.Helper()
	members := []member{
		regular("etc/hostname", "kept"), regular("root/.ssh/authorized_keys", strings.Repeat("SECRET-KEY", 2000)),
		regular("root/.bash_history", "SECRET-HISTORY"), regular("tmp/a/b/c", strings.Repeat("SECRET-TMP", 3000)), folder("tmp/empty"),
		regular("home/u/.ssh/id_ed25519", "SECRET-ID"), regular("home/u/odd \"name\"_history", "kept too"),
		regular("home/u/.\"odd\"_history", "SECRET-ODD"), regular("etc/ssl/x.pem", "-----BEGIN CERTIFICATE-----"),
		regular("srv/two", "kept by its other name"), link(tar.TypeLink, "srv/id_rsa", "srv/two"), regular("srv/gone", strings.Repeat("SECRET-DELETED", 3000)),
	}
	tpl, err := openTemplate(t, TemplateInput{Path: writeFile(t, "t.tar", tarOf(t, members...)), Filter: Filter{Off: true}, Size: 32 << 20})
	must(t, err)
	raw := rawOf(t, tpl.Source)
	if kind != "ext4" { // the same files, by other means
		dir := filepath.Join(t.TempDir(), "d")
		must(t, os.Mkdir(dir, 0o700))
		if out, err := exec.CommandContext(t.Context(), "/sbin/debugfs", "-R", "rdump / "+dir, raw).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		must(t, os.RemoveAll(filepath.Join(dir, "lost+found")))
		must(t, os.Remove(filepath.Join(dir, "srv/id_rsa")))
		must(t, os.Link(filepath.Join(dir, "srv/two"), filepath.Join(dir, "srv/id_rsa")))
		raw = filepath.Join(t.TempDir(), "other")
		if out, err := exec.CommandContext(t.Context(), "/sbin/mke2fs", "-q", "-t", kind, "-F", "-d", dir, raw, "32M").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "/sbin/debugfs", "-w", "-R", "rm /srv/gone", raw).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.OpenFile(raw, os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestClean(t *testing.T) {
	for _, kind := range []string{"ext2", "ext3", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			f := guestDisk(t, kind)
			if !bytes.Contains(readAll(t, f.Name()), []byte("SECRET-DELETED")) {
				t.Fatal("the deleted file has left nothing: the test shows nothing")
			}
			left, err := Clean(t.Context(), f, Filter{})
			must(t, err)
			sound(t, f.Name())
			b := readAll(t, f.Name())
			for _, secret := range []string{"SECRET-KEY", "SECRET-HISTORY", "SECRET-TMP", "SECRET-ID", "SECRET-ODD", "SECRET-DELETED"} {
				if bytes.Contains(b, []byte(secret)) {
					t.Errorf("%s is still on the disk", secret)
				}
			}
			for path, want := range map[string]string{
				"/etc/hostname": "kept", "/srv/two": "kept by its other name", "/etc/ssl/x.pem": "-----BEGIN CERTIFICATE-----",
			} {
				if got := debug(t, f.Name(), "cat "+path); !strings.Contains(got, want) {
					t.Errorf("%s: got %q, want %q", path, got, want)
				}
			}
			for _, path := range []string{"/root/.ssh/authorized_keys", "/tmp/a", "/tmp/empty", "/srv/id_rsa", "/root/.bash_history"} {
				if got := debug(t, f.Name(), "stat "+path); !strings.Contains(got, "not found") {
					t.Errorf("%s is still there", path)
				}
			}
			if got := debug(t, f.Name(), "stat /srv/two"); !strings.Contains(got, "Links: 1") {
				t.Errorf("srv/two has lost its name: %s", got)
			}
			if left.Files < 8 {
				t.Errorf("got %+v", left)
			}
		})
	}
}

func TestCleanRefuses(t *testing.T) {
	dir := t.TempDir()
	open := func(name string, b []byte) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		must(t, err)
		t.Cleanup(func() { f.Close() })
		_, err = f.Write(b)
		must(t, err)
		must(t, f.Truncate(4<<20))
		return f
	}
	xfs := append([]byte("XFSB"), noise(1, 5000)...)
	journal := readAll(t, guestDisk(t, "ext4").Name())
	copy(journal[superAt+0xe4:], "\x01\x02\x03\x04") // on another device
	for name, f := range map[string]*os.File{"xfs": open("xfs", xfs), "zeros": open("zeros", nil), "journal": open("journal", journal[:4<<20])} {
		if _, err := Clean(t.Context(), f, Filter{}); !errors.Is(err, ErrNotCleaned) {
			t.Errorf("%s: got %v, want ErrNotCleaned", name, err)
		}
	}
}

// FuzzExt: no filesystem makes the reader panic, loop or take much memory.
func FuzzExt(f *testing.F) {
	tpl, err := openTemplate(f, TemplateInput{Path: writeFile(f, "t.tar", tarOf(f, regular("a/b/c", "x"), regular("id_rsa", strings.Repeat("y", 9000)))), Filter: Filter{Off: true}, Size: 1 << 20})
	if err != nil {
		f.Fatal(err)
	}
	raw, err := os.ReadFile(rawOf(f, tpl.Source))
	if err != nil {
		f.Fatal(err)
	}
	for _, at := range []int{superAt, superAt + 0x20, 4096, 4096 * 6, 4096*6 + 256} {
		f.Add(at, []byte{0xff, 0xff})
		f.Add(at+4, []byte{0, 0, 0, 1})
	}
	f.Fuzz(func(t *testing.T, at int, change []byte) {
		b := bytes.Clone(raw)
		if at < 0 || at >= len(b) {
			return
		}
		copy(b[at:], change)
		x, err := openExt(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		c, err := Filter{}.compile()
		must(t, err)
		gone, err := x.pick(t.Context(), c)
		if err != nil {
			return
		}
		unlink(gone)
		for _, g := range gone {
			_ = x.runs(g.raw, func(_, physical, count int64) error {
				if physical <= 0 || physical+count > x.blocks {
					t.Errorf("blocks %d+%d of %d", physical, count, x.blocks)
				}
				return nil
			})
		}
	})
}

// TestCleanADisk: a partition is cleaned where it is, with a journal that has to be
// replayed, and the rest of the disk stays.
func TestCleanADisk(t *testing.T) {
	tpl, err := openTemplate(t, TemplateInput{Path: writeFile(t, "t.tar", tarOf(t,
		regular("boot/vmlinuz-6.1", "kernel"), regular("root/.bash_history", "SECRET"), regular("etc/kept", "k"))), Partition: PartitionGPT, Filter: Filter{Off: true}, Size: 64 << 20})
	must(t, err)
	if tpl.Partition != PartitionGPT {
		t.Errorf("got the partitioning %s", tpl.Partition)
	}
	f, err := os.OpenFile(rawOf(t, tpl.Source), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	out, err := exec.CommandContext(t.Context(), "/sbin/debugfs", "-w", "-R", "feature needs_recovery", f.Name()+"?offset=8388608").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("needs_recovery")) {
		t.Fatalf("%v: %s", err, out)
	}
	before := readAll(t, f.Name())[:8<<20]
	left, err := Clean(t.Context(), f, Filter{})
	must(t, err)
	after := readAll(t, f.Name())
	if !bytes.Equal(before, after[:8<<20]) || bytes.Contains(after, []byte("SECRET")) || left.Files != 1 {
		t.Errorf("got %+v, or more changed than the partition", left)
	}
	part := writeFile(t, "part", after[8<<20:len(after)-1<<20])
	sound(t, part)
	if got := debug(t, part, "cat /etc/kept"); !strings.HasSuffix(got, "k") {
		t.Errorf("got %q", got)
	}
}
