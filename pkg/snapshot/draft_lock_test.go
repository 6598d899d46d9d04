package snapshot

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Those who put share a draft; who has it alone has it alone.
func TestDraftLocks(t *testing.T) {
	s := open(t)
	newDraft(t, s)
	a, b, c := openDraft(t, s), openDraft(t, s), openDraft(t, s)
	if err := errors.Join(a.Share(), b.Share()); err != nil {
		t.Fatal(err)
	}
	if err := c.TryTake(); !errors.Is(err, ErrDraftBusy) {
		t.Errorf("taking what is shared: got %v, want ErrDraftBusy", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Take(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	taken := make(chan error)
	go func() { taken <- c.Take(t.Context()) }()
	if err := errors.Join(a.Close(), b.Close(), <-taken); err != nil {
		t.Fatal(err)
	}
	if err := put(s, 0, 1); !errors.Is(err, ErrDraftBusy) {
		t.Errorf("sharing what is taken: got %v, want ErrDraftBusy", err)
	}
	if err := errors.Join(c.Close(), put(s, 0, 1)); err != nil {
		t.Error(err)
	}
}

// Shares that follow one another without a gap keep nobody waiting for good.
func TestDraftNoStarving(t *testing.T) {
	s := open(t)
	newDraft(t, s)
	share := openDraft(t, s)
	if err := share.Share(); err != nil {
		t.Fatal(err)
	}
	limit, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	taken := make(chan error, 1)
	go func() {
		d, err := s.OpenDraft(theDraft)
		if err == nil {
			err = d.Take(limit)
			err = errors.Join(err, d.Close())
		}
		taken <- err
	}()
	for { // the next share is taken before the last one is let go
		next := openDraft(t, s)
		err := next.Share()
		share.Close()
		if share = next; err != nil {
			if !errors.Is(err, ErrDraftBusy) {
				t.Error(err)
			}
			break
		}
		if limit.Err() != nil {
			break
		}
	}
	if err := <-taken; err != nil {
		t.Errorf("who waits for the draft got %v", err)
	}
	if err := put(s, 0, 1); err != nil {
		t.Errorf("after that a put got %v", err)
	}
	// Who has waited in vain is in nobody's way.
	if err := errors.Join(share.Close(), openDraft(t, s).Share()); err != nil {
		t.Error(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := openDraft(t, s).Take(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if err := put(s, 0, 1); err != nil {
		t.Errorf("after one that waited in vain a put got %v", err)
	}
}
