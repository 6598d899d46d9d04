package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// put returns a write function for WriteFile.
func put(text string) func(*os.File) error {
	return func(f *os.File) error {
		_, err := f.WriteString(text)
		return err
	}
}

// wantFile checks a file's content; "" is no file.
func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s: got %q, want %q", filepath.Base(path), got, want)
	}
}

// wantNames checks what a folder holds.
func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", filepath.Base(dir), got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWriteFile(t *testing.T) {
	tests := []struct {
		name string
		old  string // "" is none
		perm os.FileMode
	}{
		{"a new file", "", 0o600},
		{"over an older one", "old", 0o644},
		{"read only", "", 0o444},
		{"more than the umask lets through", "", 0o666},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "file")
			if tt.old != "" {
				must(t, os.WriteFile(path, []byte(tt.old), 0o400))
			}
			if err := WriteFile(path, tt.perm, put("new")); err != nil {
				t.Fatalf("got %v, want no error", err)
			}
			wantFile(t, path, "new")
			wantNames(t, dir, "file")
			st, err := os.Stat(path)
			must(t, err)
			if got := st.Mode().Perm(); got != tt.perm {
				t.Errorf("got mode %o, want %o", got, tt.perm)
			}
		})
	}
}

func TestWriteFileThatFails(t *testing.T) {
	cause := errors.New("no more ink")
	half := func(f *os.File) error {
		f.WriteString("half")
		return cause
	}
	t.Run("while writing", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "file")
		must(t, os.WriteFile(path, []byte("old"), 0o600))
		if err := WriteFile(path, 0o600, half); !errors.Is(err, cause) {
			t.Errorf("got %v, want %v", err, cause)
		}
		wantFile(t, path, "old")
		wantNames(t, dir, "file")
	})
	t.Run("because a folder is in its place", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "file")
		must(t, os.MkdirAll(filepath.Join(path, "sub"), 0o700))
		if err := WriteFile(path, 0o600, put("new")); err == nil {
			t.Error("got no error, want one")
		}
		wantNames(t, dir, "file")
		wantNames(t, path, "sub")
	})
	t.Run("because there is no folder", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "none", "file")
		written := false
		err := WriteFile(path, 0o600, func(*os.File) error { written = true; return nil })
		if !errors.Is(err, fs.ErrNotExist) || written {
			t.Errorf("got %v, and it was written: %v; want fs.ErrNotExist before that", err, written)
		}
	})
	t.Run("because the file was closed", func(t *testing.T) {
		dir := t.TempDir()
		err := WriteFile(filepath.Join(dir, "file"), 0o600, func(f *os.File) error { return f.Close() })
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("got %v, want os.ErrClosed", err)
		}
		wantNames(t, dir)
	})
}

func TestWriteFileRemovesLeftovers(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{".tmp-1", ".tmp-2"} {
		must(t, os.WriteFile(at(name), []byte("half"), 0o444))
	}
	// Not leftovers: other names, and a folder.
	must(t, os.WriteFile(at(".hidden"), nil, 0o600))
	must(t, os.WriteFile(at("a.tmp-1"), nil, 0o600))
	must(t, os.Mkdir(at(".tmp-dir"), 0o700))
	// The outer one is under way while the inner one sweeps.
	err := WriteFile(at("outer"), 0o600, func(f *os.File) error {
		if err := WriteFile(at("inner"), 0o600, put("inner")); err != nil {
			return err
		}
		return put("outer")(f)
	})
	if err != nil {
		t.Fatalf("got %v, want no error", err)
	}
	wantFile(t, at("outer"), "outer")
	wantFile(t, at("inner"), "inner")
	wantNames(t, dir, ".hidden", ".tmp-dir", "a.tmp-1", "inner", "outer")
}

// Writers of one folder sweep while others write: none loses its file.
func TestWriteFileByMany(t *testing.T) {
	dir := t.TempDir()
	errs := make(chan error)
	for range 8 {
		go func() {
			var all []error
			for range 20 {
				all = append(all, WriteFile(filepath.Join(dir, "file"), 0o600, put("whole")))
			}
			errs <- errors.Join(all...)
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Errorf("got %v, want no error", err)
		}
	}
	wantFile(t, filepath.Join(dir, "file"), "whole")
	wantNames(t, dir, "file")
}

func TestRename(t *testing.T) {
	tests := []struct {
		name     string
		from, to string
		folder   bool
		old      string // what is at to; "" is nothing
	}{
		{"within a folder", "a", "b", false, ""},
		{"over an older file", "a", "b", false, "old"},
		{"between folders", "sub/a", "b", false, ""},
		{"a folder", "a", "sub/b", true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
			from, to := filepath.Join(dir, tt.from), filepath.Join(dir, tt.to)
			content := func(path string) string { return path }
			if tt.folder {
				must(t, os.Mkdir(from, 0o700))
				content = func(path string) string { return filepath.Join(path, "file") }
			}
			must(t, os.WriteFile(content(from), []byte("moved"), 0o600))
			if tt.old != "" {
				must(t, os.WriteFile(to, []byte(tt.old), 0o600))
			}
			if err := Rename(from, to); err != nil {
				t.Fatalf("got %v, want no error", err)
			}
			wantFile(t, content(to), "moved")
			if _, err := os.Lstat(from); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is still there: %v", tt.from, err)
			}
		})
	}
}

func TestRenameThatFails(t *testing.T) {
	dir := t.TempDir()
	from, none := filepath.Join(dir, "from"), filepath.Join(dir, "none")
	if err := Rename(none, filepath.Join(dir, "to")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: got %v, want fs.ErrNotExist", err)
	}
	must(t, os.WriteFile(from, []byte("here"), 0o600))
	if err := Rename(from, filepath.Join(none, "to")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("to where no folder is: got %v, want fs.ErrNotExist", err)
	}
	wantFile(t, from, "here")
	wantNames(t, dir, "from")
}

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	must(t, os.WriteFile(path, nil, 0o400))
	for _, which := range []string{"a file", "one that is not there"} {
		if err := Remove(path); err != nil {
			t.Errorf("%s: got %v, want no error", which, err)
		}
		wantNames(t, dir)
	}
	if err := Remove(filepath.Join(dir, "none", "file")); err != nil {
		t.Errorf("one whose folder is not there: got %v, want no error", err)
	}
	must(t, os.MkdirAll(filepath.Join(path, "sub"), 0o700))
	if err := Remove(path); err == nil {
		t.Error("a folder with something in it: got no error, want one")
	}
	wantNames(t, path, "sub")
}

func TestSyncDir(t *testing.T) {
	dir := t.TempDir()
	if err := SyncDir(dir); err != nil {
		t.Errorf("got %v, want no error", err)
	}
	if err := SyncDir(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}
