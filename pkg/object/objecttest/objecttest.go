// Package objecttest holds the sentences of object.Store's contract as tests, for
// every implementation to run, and the servers that they run against.
package objecttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/object"
)

// Run tests the store that open opens: each call of open is for an empty store
// of its own, and each call of what it returns opens that one again.
func Run(t *testing.T, open func(t *testing.T) func() object.Store) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, open func() object.Store)
	}{
		{"an address", address},
		{"what was put is there, byte for byte", roundTrip},
		{"names", names},
		{"only clean names", badNames},
		{"put replaces", replaces},
		{"from the beginning of the reader", fromBeginning},
		{"as a whole or not at all", wholeOrNot},
		{"put new wants a free name", putNew},
		{"one of those that put new at once", putNewRace},
		{"not found", notFound},
		{"list in the order of names", list},
		{"list ends with the function's error", listError},
		{"delete is idempotent", remove},
		{"a name is free again", freeAgain},
		{"folders come and go", folders},
		{"an end to the context", canceled},
		{"many at once", concurrent},
		{"readers while it is replaced", replacedWhileRead},
	} {
		t.Run(strings.ReplaceAll(test.name, " ", "-"), func(t *testing.T) { test.run(t, open(t)) })
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// noise is n bytes that do not compress, always the same for a seed.
func noise(seed, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

func put(t *testing.T, s object.Store, name string, b []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, bytes.NewReader(b), int64(len(b))); err != nil {
		t.Fatalf("Put(%.60q): %v", name, err)
	}
}

func get(ctx context.Context, s object.Store, name string) ([]byte, error) {
	body, info, err := s.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	if err == nil && int64(len(b)) != info.Size {
		err = fmt.Errorf("got %d bytes of an object of %d", len(b), info.Size)
	}
	return b, err
}

func want(t *testing.T, s object.Store, name string, b []byte) {
	t.Helper()
	got, err := get(t.Context(), s, name)
	if err != nil {
		t.Errorf("Get(%.60q): %v", name, err)
		return
	}
	if !bytes.Equal(got, b) {
		t.Errorf("Get(%.60q): got %d other bytes, want the %d that were put", name, len(got), len(b))
	}
}

func wantAbsent(t *testing.T, s object.Store, name string) {
	t.Helper()
	if _, err := s.Stat(t.Context(), name); !errors.Is(err, object.ErrNotFound) {
		t.Errorf("Stat(%.60q): got %v, want ErrNotFound", name, err)
	}
	body, _, err := s.Get(t.Context(), name)
	if !errors.Is(err, object.ErrNotFound) {
		t.Errorf("Get(%.60q): got %v, want ErrNotFound", name, err)
	}
	if err == nil {
		body.Close()
	}
}

func listed(t *testing.T, s object.Store, prefix string) []string {
	t.Helper()
	got := []string{}
	err := s.List(t.Context(), prefix, func(o object.Info) error {
		got = append(got, o.Name)
		return nil
	})
	if err != nil {
		t.Fatalf("List(%q): %v", prefix, err)
	}
	return got
}

func wantList(t *testing.T, s object.Store, prefix string, names ...string) {
	t.Helper()
	if got := listed(t, s, prefix); !slices.Equal(got, names) {
		t.Errorf("List(%q): got %q, want %q", prefix, got, names)
	}
}

// faulty is a reader that fails after some bytes.
type faulty struct {
	*bytes.Reader
	left int
	err  error
}

func (f *faulty) Read(p []byte) (int, error) {
	if f.left <= 0 {
		return 0, f.err
	}
	n, err := f.Reader.Read(p[:min(len(p), f.left)])
	f.left -= n
	return n, err
}

func (f *faulty) ReadAt(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > int64(f.left) {
		return 0, f.err
	}
	return f.Reader.ReadAt(p, at)
}

// seeker is a reader that has no ReadAt.
type seeker struct{ io.ReadSeeker }
