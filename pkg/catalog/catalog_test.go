package catalog

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
)

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func image(name string) ami.Image {
	return ami.Image{
		ImageID: ami.NewImageID(), Name: name, OwnerID: ami.DefaultAccount, State: ami.ImageAvailable,
		CreationDate: time.Now().UTC().Truncate(time.Millisecond),
		BlockDeviceMappings: []ami.BlockDeviceMapping{
			{DeviceName: "/dev/sda1", Ebs: &ami.EBSBlockDevice{SnapshotID: "snap-0123456789abcdef0"}},
		},
	}
}

func TestImageRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	want := image("a")
	s := open(t, path)
	if err := s.Update(t.Context(), func(tx *Tx) error { return tx.PutImage(want) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	err := open(t, path).View(t.Context(), func(tx *Tx) error {
		got, err := tx.Image(want.ImageID)
		if err != nil {
			return err
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("image (-want +got):\n%s", d)
		}
		users, err := tx.ImagesUsingSnapshot("snap-0123456789abcdef0")
		if d := cmp.Diff([]ami.ImageID{want.ImageID}, users); d != "" {
			t.Errorf("users (-want +got):\n%s", d)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestNotFound(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	err := s.View(t.Context(), func(tx *Tx) error { _, err := tx.Volume("vol-0"); return err })
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

// TestNameRace lets two handles race for one name: exactly one wins.
func TestNameRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	stores := []*Store{open(t, path), open(t, path)}
	for range 20 {
		name := string(ami.NewImageID())
		errs := make([]error, len(stores))
		var wg sync.WaitGroup
		for i, s := range stores {
			wg.Go(func() {
				errs[i] = s.Update(t.Context(), func(tx *Tx) error { return tx.PutImage(image(name)) })
			})
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			switch {
			case err == nil:
				won++
			case !errors.Is(err, ErrExists):
				t.Fatalf("got %v, want ErrExists", err)
			}
		}
		if won != 1 {
			t.Fatalf("%d writers won the name, want 1", won)
		}
	}
}

func TestNameIsFreeAfterDeregistration(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	old := image("a")
	old.State = ami.ImageDeregistered
	err := s.Update(t.Context(), func(tx *Tx) error {
		return errors.Join(tx.PutImage(old), tx.PutImage(image("a")))
	})
	if err != nil {
		t.Error(err)
	}
}

func TestUpdateRollsBack(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	fail := errors.New("fail")
	err := s.Update(t.Context(), func(tx *Tx) error {
		if err := tx.PutImage(image("a")); err != nil {
			return err
		}
		return fail
	})
	if !errors.Is(err, fail) {
		t.Fatalf("got %v, want the error of the function", err)
	}
	err = s.View(t.Context(), func(tx *Tx) error {
		all, err := tx.Images()
		if len(all) != 0 {
			t.Errorf("%d images after a rollback, want none", len(all))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	s := open(t, path)
	if _, err := s.db.ExecContext(t.Context(), "PRAGMA user_version = 1000"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(context.Background(), path); !errors.Is(err, ErrNewer) {
		t.Errorf("got %v, want ErrNewer", err)
	}
}

func TestLayerRefs(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	d := digest.Of([]byte("layer"))
	err := s.Update(t.Context(), func(tx *Tx) error {
		return errors.Join(
			tx.PutSnapshot(ami.Snapshot{SnapshotID: ami.NewSnapshotID(), Layer: d}),
			tx.PutVolume(ami.Volume{VolumeID: ami.NewVolumeID(), Layer: d}),
			tx.PutVolume(ami.Volume{VolumeID: ami.NewVolumeID()}),
			tx.PutLease(Lease{ID: "ami-1", Layer: d, Created: time.Now()}),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	err = s.View(t.Context(), func(tx *Tx) error {
		refs, err := tx.LayerRefs()
		if diff := cmp.Diff(map[digest.Digest]int{d: 3}, refs); diff != "" {
			t.Errorf("refs (-want +got):\n%s", diff)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPrivate holds that nobody else can read a catalog, neither a new one nor
// one that was made readable.
func TestPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	for range 2 {
		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Update(t.Context(), func(tx *Tx) error { return tx.DeleteLease("none") }); err != nil {
			t.Fatal(err)
		}
		for _, suffix := range []string{"", "-wal", "-shm"} {
			info, err := os.Stat(path + suffix)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("catalog.db%s is %v, want 0600", suffix, info.Mode())
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamagedRecords: one record that cannot be decoded does not hide the others.
func TestDamagedRecords(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	good, bad := image("good"), image("bad")
	err := s.Update(t.Context(), func(tx *Tx) error {
		if err := errors.Join(tx.PutImage(good), tx.PutImage(bad)); err != nil {
			return err
		}
		for id := range 2 {
			if err := tx.PutLease(Lease{ID: string(good.ImageID) + string(rune('a'+id)), Created: time.Now()}); err != nil {
				return err
			}
		}
		_, err := tx.conn.ExecContext(t.Context(), "UPDATE images SET doc = '{' WHERE id = ?", string(bad.ImageID))
		if err == nil {
			_, err = tx.conn.ExecContext(t.Context(), "UPDATE leases SET created = 'x' WHERE id = ?", string(good.ImageID)+"a")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = s.View(t.Context(), func(tx *Tx) error {
		images, err := tx.Images()
		if d := cmp.Diff([]ami.Image{good}, images); d != "" || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), string(bad.ImageID)) {
			t.Errorf("got the error %v and images (-want +got):\n%s", err, d)
		}
		if leases, err := tx.Leases(); len(leases) != 1 || !errors.Is(err, ErrDamaged) {
			t.Errorf("got the leases %v (%v), want one beside ErrDamaged", leases, err)
		}
		if _, err := tx.Image(bad.ImageID); !errors.Is(err, ErrDamaged) || errors.Is(err, ErrNotFound) {
			t.Errorf("got %v, want ErrDamaged", err)
		}
		damage, err := tx.Verify()
		if len(damage) != 2 {
			t.Errorf("got the damage %v, want two", damage)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
