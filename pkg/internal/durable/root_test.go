package durable

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func openRoot(t *testing.T, files map[string]string) (*os.Root, string) {
	t.Helper()
	dir := place(t, files)
	root, err := os.OpenRoot(dir)
	must(t, err)
	t.Cleanup(func() { root.Close() })
	return root, dir
}

func TestRenameIn(t *testing.T) {
	root, dir := openRoot(t, map[string]string{"a/from": newText, "b/to": oldText})
	must(t, RenameIn(root, "a/from", "b/to"))
	wantFile(t, filepath.Join(dir, "b/to"), newText)
	wantFile(t, filepath.Join(dir, "a/from"), "")
	if err := RenameIn(root, "b/to", "none/to"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("into a folder that is not there: got %v", err)
	}
	must(t, os.Symlink(t.TempDir(), filepath.Join(dir, "out")))
	if err := RenameIn(root, "b/to", "out/to"); err == nil {
		t.Error("out of the root: got no error")
	}
	wantFile(t, filepath.Join(dir, "b/to"), newText)
}

func TestLinkIn(t *testing.T) {
	// By a link, and where the filesystem has none, by a rename that replaces
	// nothing.
	for name, place := range map[string]func(root *os.Root, from, to string) error{"link": LinkIn, "rename": moveIn} {
		root, dir := openRoot(t, map[string]string{"a/from": newText, "b/old": oldText})
		if err := place(root, "a/from", "b/old"); !errors.Is(err, os.ErrExist) {
			t.Errorf("%s to a name that is taken: got %v", name, err)
		}
		wantFile(t, filepath.Join(dir, "b/old"), oldText)
		if err := place(root, "a/from", "none/to"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s into a folder that is not there: got %v", name, err)
		}
		must(t, place(root, "a/from", "b/new"))
		wantFile(t, filepath.Join(dir, "b/new"), newText)
	}
}

func TestRemoveIn(t *testing.T) {
	root, dir := openRoot(t, map[string]string{"a/b": oldText})
	for range 2 {
		must(t, RemoveIn(root, "a/b"))
		wantFile(t, filepath.Join(dir, "a/b"), "")
	}
	must(t, RemoveIn(root, "none/b"))
}

func TestMkdirAllIn(t *testing.T) {
	root, dir := openRoot(t, map[string]string{"file": oldText})
	for _, name := range []string{".", "a", "a/b/c", "a/b/c", "a"} {
		must(t, MkdirAllIn(root, name, 0o755))
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || !st.IsDir() {
			t.Errorf("%s: got %v, %v", name, st, err)
		}
	}
	for _, name := range []string{"file", "file/a", "file/a/b"} {
		if err := MkdirAllIn(root, name, 0o755); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%s: got %v, want ENOTDIR", name, err)
		}
	}
}
