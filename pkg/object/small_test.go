package object

import (
	"errors"
	"testing"
)

func TestSmallObjects(t *testing.T) {
	s, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := WriteSmall(t.Context(), s, "a/b", []byte("four")); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadSmall(t.Context(), s, "a/b", 4); err != nil || string(b) != "four" {
		t.Errorf("got %q, %v", b, err)
	}
	if b, err := ReadSmall(t.Context(), s, "a/b", 3); err == nil || b != nil {
		t.Errorf("got %q, %v of one that is too large", b, err)
	}
	if _, err := ReadSmall(t.Context(), s, "a/c", 4); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v of none", err)
	}
}
