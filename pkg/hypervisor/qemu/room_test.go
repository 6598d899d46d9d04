package qemu

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
	"github.com/kamivm/kami/pkg/qcow2"
)

// scribbler is a boot sector that writes to one place of every 64 KiB in the
// first 4 MiB of its disk, over and over.
func scribbler() []byte {
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0x8e, 0xd0, // mov ss, ax
		0xbc, 0x00, 0x7c, // mov sp, 0x7c00
		0x88, 0xd3, // mov bl, dl: the drive that was booted from
		0xbe, 0x24, 0x7c, // again: mov si, packet
		0x88, 0xda, // mov dl, bl
		0xb8, 0x00, 0x43, // mov ax, 0x4300: extended write
		0xcd, 0x13, // int 0x13
		0x81, 0x06, 0x2c, 0x7c, 0x80, 0x00, // add word [lba], 128
		0x81, 0x26, 0x2c, 0x7c, 0xff, 0x1f, // and word [lba], 0x1fff
		0xeb, 0xe9, // jmp again
		0x90,
		// packet: 8 sectors from 0000:7c00 to sector lba
		0x10, 0, 8, 0, 0x00, 0x7c, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0,
	}
	sector := make([]byte, 512)
	copy(sector, code)
	copy(sector[446:], []byte{0x80, 0, 2, 0, 0x83, 0, 3, 0, 1, 0, 0, 0, 0xff, 0x07, 0, 0})
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// scribbling starts a guest of scribbler on a head that is written to the end.
func scribbling(t *testing.T, d *Driver) machine.Spec {
	t.Helper()
	dir := t.TempDir()
	disk, sector := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "sector")
	err := errors.Join(qcow2.CreateHead(disk, 8<<20, "", "", nil), os.WriteFile(sector, scribbler(), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 8M", "-c", "write -s "+sector+" 0 512", disk)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return guest(t, d, nil, func(s *machine.Spec) {
		s.Disks = []machine.Disk{{Path: disk, Format: machine.FormatQCOW2, Boot: true}}
	})
}

// TestOutOfRoom fills the folder of the copies that a view makes, and holds that
// the guest, which is paused then, goes on when the view is closed.
func TestOutOfRoom(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount a file system that is small")
	}
	d, small := open(t, t.TempDir()), t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=1m", "none", small).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", small).Run() })
	s := scribbling(t, d)
	v, err := d.Backup(t.Context(), s.ID, hypervisor.Backup{
		Disks: []hypervisor.BackupDisk{{Path: s.Disks[0].Path}}, SocketDir: shortDir(t), CopiesDir: small,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	becomes(t, d, s.ID, hypervisor.StateIOError)
	if err := v.Close(); !errors.Is(err, hypervisor.ErrOutOfRoom) {
		t.Errorf("Close: %v, want it to say that the guest had no room", err)
	}
	time.Sleep(2 * time.Second) // in which it would be paused again
	becomes(t, d, s.ID, hypervisor.StateRunning)
}

// TestOneInstant reads two disks that a guest writes to, each twice: a view does
// not move, whatever the guest does, and the bitmaps know of all that does.
func TestOneInstant(t *testing.T) {
	d := open(t, t.TempDir())
	s := scribbling(t, d)
	path, size := s.Disks[0].Path, int64(8<<20)
	read := func(bitmap, next string) (image []byte, dirty func(off int64) bool) {
		v, err := d.Backup(t.Context(), s.ID, hypervisor.Backup{
			Disks: []hypervisor.BackupDisk{{Path: path, Bitmap: bitmap}}, Next: next, SocketDir: shortDir(t), CopiesDir: t.TempDir(),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		dv, err := v.Disk(path)
		if err != nil {
			t.Fatal(err)
		}
		var passes [2][]byte
		for i := range passes {
			passes[i] = make([]byte, size)
			if _, err := dv.ReadAt(passes[i], 0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if string(passes[0]) != string(passes[1]) {
			t.Error("the view moves")
		}
		changed := map[int64]bool{}
		err = dv.Extents(t.Context(), 0, size, func(off, length int64, dirty, _ bool) error {
			for ; length > 0 && dirty; off, length = off+512, length-512 {
				changed[off] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return passes[0], func(off int64) bool { return changed[off] }
	}
	before, _ := read("", "kami-1")
	for i, bitmap := range []string{"kami-1", "kami-2", "kami-3"} {
		after, dirty := read(bitmap, "kami-"+string(rune('2'+i)))
		differ := 0
		for off := int64(0); off < size; off += 512 {
			if string(before[off:off+512]) == string(after[off:off+512]) {
				continue
			}
			if differ++; !dirty(off) {
				t.Errorf("view %d: what changed at %d is not known to have", i, off)
			}
		}
		t.Logf("view %d: %d sectors differ", i, differ)
		before = after
	}
}

// shortDir is a folder whose path is short enough for a socket in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kami")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
