package hypervisortest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
)

func (c Config) backup(t *testing.T) {
	d := c.open(t)
	s, ok := d.(hypervisor.Snapshotter)
	if !ok {
		t.Fatalf("the driver %s snapshots no running guests", d.Name())
	}
	guest := c.start(t, d)
	path := guest.Disks[0].Path
	one := func(bitmap, next string) hypervisor.Backup {
		return hypervisor.Backup{
			Disks: []hypervisor.BackupDisk{{Path: path, Bitmap: bitmap}}, Next: next,
			SocketDir: c.backupDir(t), CopiesDir: c.backupDir(t),
		}
	}
	if _, err := s.Backup(t.Context(), ami.NewInstanceID(), one("", "")); !errors.Is(err, hypervisor.ErrNotRunning) {
		t.Errorf("Backup of an unknown guest: %v, want ErrNotRunning", err)
	}
	other := one("", "")
	other.Disks[0].Path += ".other"
	if _, err := s.Backup(t.Context(), guest.ID, other); err == nil {
		t.Error("a disk that the guest does not have was backed up")
	}

	// The guest is made quiet once, and what hinders that is told.
	loud := errors.New("not quiet")
	quiet := one("", "")
	calls := 0
	quiet.Quiesce = func(context.Context) error { calls++; return loud }
	if _, err := s.Backup(t.Context(), guest.ID, quiet); !errors.Is(err, loud) || calls != 1 {
		t.Errorf("Backup of a guest that cannot be quiesced: %v after %d calls, want %v after one", err, calls, loud)
	}
	quiet = one("", "")
	quiet.Quiesce = func(context.Context) error { calls++; return nil }
	if err := c.view(t, s, guest, quiet).Close(); err != nil || calls != 2 {
		t.Errorf("Close of the view of a quiet guest: %v after %d calls", err, calls)
	}

	// All of the disk, for nothing is known of an earlier instant.
	v := c.view(t, s, guest, one("", "kami-next"))
	c.sees(t, v, path, guest)
	if _, err := v.Disk(path + ".other"); err == nil {
		t.Error("the view has a disk that was not asked for")
	}
	for range 2 {
		if err := v.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	// Nothing is written since: what the bitmap of that instant says.
	v = c.view(t, s, guest, one("kami-next", "kami-last"))
	if got := c.dirty(t, v, path); c.Runs && got != 0 {
		t.Errorf("%d bytes changed while the guest wrote nothing", got)
	}
	// One that its process left open is ended by the next.
	v = c.view(t, s, guest, one("kami-last", ""))
	c.sees(t, v, path, guest)
	// A bitmap that was dropped is no bitmap: all counts as changed.
	v = c.view(t, s, guest, one("kami-next", ""))
	dv := c.disk(t, v, path)
	if dv.Incremental() {
		t.Error("a bitmap that is gone counts as one")
	}
	if got := c.dirty(t, v, path); got != dv.Size() {
		t.Errorf("without a bitmap %d bytes of %d count as changed", got, dv.Size())
	}
}

// backupDir is a folder whose path is short enough for a socket in it.
func (c Config) backupDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kami-suite")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return filepath.Clean(dir)
}

func (c Config) view(t *testing.T, s hypervisor.Snapshotter, guest machine.Spec, b hypervisor.Backup) hypervisor.View {
	t.Helper()
	v, err := s.Backup(t.Context(), guest.ID, b)
	if err != nil {
		t.Fatalf("Backup: %v", err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return v
}

func (c Config) disk(t *testing.T, v hypervisor.View, path string) hypervisor.DiskView {
	t.Helper()
	dv, err := v.Disk(path)
	if err != nil {
		t.Fatal(err)
	}
	if dv.Size() != diskSize {
		t.Errorf("the disk has %d bytes, want %d", dv.Size(), diskSize)
	}
	return dv
}

// sees checks what the view shows: the sector that the guest booted from, and
// the copy that a real guest has written.
func (c Config) sees(t *testing.T, v hypervisor.View, path string, guest machine.Spec) {
	t.Helper()
	dv := c.disk(t, v, path)
	want := BootSector("guest " + string(guest.ID))
	for at, wanted := range map[int64]bool{0: true, WrittenAt: c.Runs} {
		got := make([]byte, len(want))
		if _, err := dv.ReadAt(got, at); err != nil {
			t.Fatalf("ReadAt(%d): %v", at, err)
		}
		if wanted != bytes.Equal(got, want) {
			t.Errorf("the guest's sector at %d: %v, want %v", at, !wanted, wanted)
		}
	}
}

// dirty counts the bytes that count as changed, and checks that the runs cover
// the disk without a gap and that only zeros are said to be zero.
func (c Config) dirty(t *testing.T, v hypervisor.View, path string) (n int64) {
	t.Helper()
	dv := c.disk(t, v, path)
	var at int64
	err := dv.Extents(t.Context(), 0, dv.Size(), func(off, length int64, dirty, zero bool) error {
		if off != at || length <= 0 {
			t.Errorf("a run of %d bytes at %d, want it at %d", length, off, at)
		}
		at = off + length
		if dirty {
			n += length
		}
		if zero {
			p := make([]byte, length)
			if _, err := dv.ReadAt(p, off); err != nil {
				return err
			}
			if !bytes.Equal(p, make([]byte, length)) {
				t.Errorf("the run of %d bytes at %d is said to be zero and is not", length, off)
			}
		}
		return nil
	})
	if err != nil || at != dv.Size() {
		t.Errorf("Extents: %v, up to %d of %d", err, at, dv.Size())
	}
	return n
}
