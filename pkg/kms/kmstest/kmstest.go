// Package kmstest holds the sentences of kms.Store's contract as tests, for
// every implementation to run.
package kmstest

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/kamivm/kami/pkg/kms"
)

// Run tests the store that open opens, again and again the same one.
func Run(t *testing.T, open func(t *testing.T) func() kms.Store) {
	t.Run("create", func(t *testing.T) { create(t, open(t)) })
	t.Run("missing", func(t *testing.T) { missing(t, open(t)()) })
	t.Run("delete", func(t *testing.T) { remove(t, open(t)()) })
	t.Run("race", func(t *testing.T) { race(t, open(t)) })
}

func create(t *testing.T, open func() kms.Store) {
	ctx, s := t.Context(), open()
	if keys, err := s.List(ctx); err != nil || len(keys) != 0 {
		t.Fatalf("List of a new store: %v, %v", keys, err)
	}
	start := time.Now().UTC().Truncate(time.Millisecond)
	one, err := s.Create(ctx, "alias/one", "the first")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := uuid.Parse(one.ID); err != nil || one.Alias != "alias/one" || one.Description != "the first" || one.Created.Before(start) {
		t.Errorf("Create: %+v, %v", one, err)
	}
	two, err := s.Create(ctx, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, "alias/one", ""); !errors.Is(err, kms.ErrExists) {
		t.Errorf("Create with an alias that is taken: %v, want ErrExists", err)
	}
	if _, err := s.Create(ctx, "one", ""); err == nil {
		t.Error("Create took a name that is no alias")
	}
	again := open() // it lasts
	keys, err := again.List(ctx)
	if err != nil || !slices.Equal(keys, []kms.Key{one, two}) && !slices.Equal(keys, []kms.Key{two, one}) {
		t.Errorf("List: %+v, %v", keys, err)
	}
	for _, name := range []string{one.ID, "alias/one"} {
		if k, err := again.Find(ctx, name); err != nil || k != one {
			t.Errorf("Find(%s): %+v, %v", name, k, err)
		}
	}
	first, err := s.Passphrase(ctx, one.ID)
	if err != nil || len(first) < 32 || bytes.ContainsAny(first, " \n\x00") {
		t.Errorf("Passphrase: %d bytes, %v", len(first), err)
	}
	if same, err := again.Passphrase(ctx, one.ID); err != nil || !bytes.Equal(first, same) {
		t.Errorf("Passphrase of the store opened anew is another, or %v", err)
	}
	if other, err := s.Passphrase(ctx, two.ID); err != nil || bytes.Equal(first, other) {
		t.Errorf("Passphrase of another key is the same, or %v", err)
	}
}

func missing(t *testing.T, s kms.Store) {
	ctx := t.Context()
	for _, name := range []string{uuid.NewString(), "alias/none", "", "..", "../kms", "A0000000-0000-0000-0000-000000000000"} {
		if _, err := s.Find(ctx, name); !errors.Is(err, kms.ErrNotFound) {
			t.Errorf("Find(%q): %v, want ErrNotFound", name, err)
		}
		if _, err := s.Passphrase(ctx, name); !errors.Is(err, kms.ErrNotFound) {
			t.Errorf("Passphrase(%q): %v, want ErrNotFound", name, err)
		}
		if err := s.Delete(ctx, name); !errors.Is(err, kms.ErrNotFound) {
			t.Errorf("Delete(%q): %v, want ErrNotFound", name, err)
		}
	}
}

func remove(t *testing.T, s kms.Store) {
	ctx := t.Context()
	k, err := s.Create(ctx, "alias/gone", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, k.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Passphrase(ctx, k.ID); !errors.Is(err, kms.ErrNotFound) {
		t.Errorf("Passphrase of a deleted key: %v, want ErrNotFound", err)
	}
	if _, err := s.Create(ctx, "alias/gone", ""); err != nil {
		t.Errorf("the alias of a deleted key is not free: %v", err)
	}
}

func race(t *testing.T, open func() kms.Store) {
	var wg sync.WaitGroup
	made := make(chan kms.Key, 8)
	for range cap(made) {
		wg.Go(func() {
			k, err := open().Create(t.Context(), "alias/race", "")
			if err == nil {
				made <- k
			} else if !errors.Is(err, kms.ErrExists) {
				t.Errorf("Create: %v", err)
			}
		})
	}
	wg.Wait()
	if len(made) != 1 {
		t.Errorf("%d of %d got the alias, want one", len(made), cap(made))
	}
}
