package object_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/object/objecttest"
)

func TestDir(t *testing.T) {
	objecttest.Run(t, func(t *testing.T) func() object.Store {
		return opener(t, t.TempDir()+"/not/there yet", quick())
	})
}

// What links lead to outside of the directory is neither read nor written, nor
// deleted.
func TestDirLinks(t *testing.T) {
	s, dir := dirStore(t)
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600))
	must(t, os.Symlink(outside, filepath.Join(dir, "out")))
	must(t, os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "file")))
	must(t, os.Symlink("../"+filepath.Base(outside), filepath.Join(dir, "up")))
	must(t, syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	for _, name := range []string{"out/secret", "up/secret", "file", "fifo"} {
		if got, err := read(t, s, name); err == nil {
			t.Errorf("Get(%s): got %q", name, got)
		}
		if _, err := s.Stat(t.Context(), name); err == nil {
			t.Errorf("Stat(%s): got no error", name)
		}
	}
	for _, name := range []string{"out/secret", "out/new", "up/secret", "out/a/b"} {
		if err := s.Put(t.Context(), name, strings.NewReader("x"), 1); err == nil {
			t.Errorf("Put(%s): got no error", name)
		}
		if err := s.PutNew(t.Context(), name, strings.NewReader("x"), 1); err == nil {
			t.Errorf("PutNew(%s): got no error", name)
		}
		s.Delete(t.Context(), name)
	}
	// A link in the place of an object is replaced, not followed.
	must(t, s.Put(t.Context(), "file", strings.NewReader("mine"), 4))
	if b, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || string(b) != "secret" {
		t.Errorf("outside: got %q, %v", b, err)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("outside: got %v, %v", entries, err)
	}
	var listed []string
	must(t, s.List(t.Context(), "", func(o object.Info) error {
		listed = append(listed, o.Name)
		return nil
	}))
	if len(listed) != 1 || listed[0] != "file" {
		t.Errorf("List: got %q, want the file that was put", listed)
	}
}

func TestDirIsNone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := object.OpenDir(file); err == nil {
		t.Error("a file was opened as a directory")
	}
	// One that is not there is empty, and looking does not make it.
	dir := filepath.Join(t.TempDir(), "none")
	s, err := object.OpenDir(dir)
	must(t, err)
	if _, err := s.Stat(t.Context(), "x"); !errors.Is(err, object.ErrNotFound) {
		t.Errorf("Stat: got %v, want ErrNotFound", err)
	}
	must(t, s.Delete(t.Context(), "x"))
	must(t, s.Close())
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory was made: %v", err)
	}
}

// Where there is no room it says so, and nothing is left.
func TestDirWithoutRoom(t *testing.T) {
	s, dir := dirStore(t)
	bin, err := os.Executable()
	must(t, err)
	out, err := task{Do: "put too much", URL: dir}.command(t, bin).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "file too large") {
		t.Errorf("Put: got %v, %q, want that it is too large", err, out)
	}
	if _, err := s.Stat(t.Context(), "big"); !errors.Is(err, object.ErrNotFound) {
		t.Errorf("Stat: got %v, want ErrNotFound", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".kami", "*")); err != nil || len(left) > 0 {
		t.Errorf("%q is left, %v", left, err)
	}
}
