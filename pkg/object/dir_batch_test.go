package object_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/kamivm/kami/pkg/object"
)

func TestBatch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "objects")
	d, err := object.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b := d.Batch()
	defer b.Discard()
	name := func(i int) string { return fmt.Sprintf("bucket/chunks/%02d/%d", i%7, i) }
	for range 2 { // the second time in folders that are there
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if err := b.Put(t.Context(), name(i), []byte(name(i))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := b.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 100 {
		r, _, err := d.Get(t.Context(), name(i))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || string(got) != name(i) {
			t.Errorf("%s: got %q, %v", name(i), got, err)
		}
	}
}

// TestBatchIsNotThereBeforeCommit: nor after Discard, and nothing is left of it.
func TestBatchIsNotThereBeforeCommit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "objects")
	d, err := object.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := d.Batch()
	if err := b.Put(t.Context(), "a/b/c", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Stat(t.Context(), "a/b/c"); err == nil {
		t.Error("it is there before Commit")
	}
	for _, bad := range []string{"../x", "/x", ".kami/x", ""} {
		if err := b.Put(t.Context(), bad, nil); err == nil {
			t.Errorf("%q was taken for a name", bad)
		}
	}
	b.Discard()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if all, err := filepath.Glob(filepath.Join(dir, ".kami", "*")); err != nil || len(all) > 0 {
		t.Errorf("left are %q, %v", all, err)
	}
}

// TestBatchFollowsNoLinks: what is put through a link does not leave the store.
func TestBatchFollowsNoLinks(t *testing.T) {
	out, dir := t.TempDir(), filepath.Join(t.TempDir(), "objects")
	for _, at := range []string{"a", "b/c"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, at)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(out, filepath.Join(dir, at)); err != nil {
			t.Fatal(err)
		}
	}
	d, err := object.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, name := range []string{"a/x/y", "a/y", "b/c/y"} {
		b := d.Batch()
		if err := b.Put(t.Context(), name, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(t.Context()); err == nil {
			t.Errorf("%s was written through a link", name)
		}
		b.Discard()
	}
	if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
		t.Errorf("outside are %v, %v", left, err)
	}
}

// TestBatchBesideOthers: what others make and delete meanwhile is right in the end.
func TestBatchBesideOthers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "objects")
	d, err := object.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b := d.Batch()
	defer b.Discard()
	put := func(name string) {
		t.Helper()
		if err := b.Put(t.Context(), name, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	there := func(name string, want bool) {
		t.Helper()
		for what, stat := range map[string]func() (object.Info, error){
			"the batch": func() (object.Info, error) { return b.Stat(t.Context(), name) },
			"the store": func() (object.Info, error) { return d.Stat(t.Context(), name) },
		} {
			if _, err := stat(); (err == nil) != want || err != nil && !errors.Is(err, object.ErrNotFound) {
				t.Errorf("%s in %s: got %v, want it there: %v", name, what, err, want)
			}
		}
	}
	there("b/chunks/ab/1", false)
	put("b/chunks/ab/1")
	if err := b.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	there("b/chunks/ab/1", true)
	for name, others := range map[string]func() error{
		"the folder goes": func() error { return os.RemoveAll(filepath.Join(dir, "b/chunks/ab")) },
		"all of them go":  func() error { return os.RemoveAll(filepath.Join(dir, "b")) },
		"a folder comes":  func() error { return os.Mkdir(filepath.Join(dir, "b/chunks/cd"), 0o755) },
		"they go and come": func() error {
			return errors.Join(os.RemoveAll(filepath.Join(dir, "b")), os.MkdirAll(filepath.Join(dir, "b/chunks"), 0o755))
		},
		"the object is there": func() error { return nil },
	} {
		put("b/chunks/ab/1")
		put("b/chunks/cd/1")
		if err := others(); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		if err := b.Commit(t.Context()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		there("b/chunks/ab/1", true)
		there("b/chunks/cd/1", true)
		if err := d.Delete(t.Context(), "b/chunks/cd/1"); err != nil {
			t.Fatal(err)
		}
		there("b/chunks/cd/1", false)
	}
}
