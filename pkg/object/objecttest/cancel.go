package objecttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/object"
)

// soon is how long a call may take to notice that its context has ended.
const soon = 5 * time.Second

func canceled(t *testing.T, open func() object.Store) {
	s := open()
	put(t, s, "x", noise(1, 3<<20))
	over, cancel := context.WithCancel(t.Context())
	cancel()
	calls := map[string]func(context.Context) error{
		"Put":    func(ctx context.Context) error { return s.Put(ctx, "y", bytes.NewReader([]byte("y")), 1) },
		"PutNew": func(ctx context.Context) error { return s.PutNew(ctx, "y", bytes.NewReader([]byte("y")), 1) },
		"Get":    func(ctx context.Context) error { _, err := get(ctx, s, "x"); return err },
		"Stat":   func(ctx context.Context) error { _, err := s.Stat(ctx, "x"); return err },
		"List":   func(ctx context.Context) error { return s.List(ctx, "", func(object.Info) error { return nil }) },
		"Delete": func(ctx context.Context) error { return s.Delete(ctx, "x") },
	}
	for name, call := range calls {
		start := time.Now()
		if err := call(over); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want context.Canceled", name, err)
		}
		if d := time.Since(start); d > soon {
			t.Errorf("%s took %s", name, d)
		}
	}

	// While bytes move.
	for _, size := range []int{1 << 20, 12 << 20} {
		ctx, cancel := context.WithCancel(t.Context())
		err := s.Put(ctx, "y", &canceling{bytes.NewReader(noise(2, size)), cancel, size / 2}, int64(size))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Put of %d bytes that is canceled: got %v, want context.Canceled", size, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body, _, err := s.Get(ctx, "x")
	must(t, err)
	defer body.Close()
	if _, err := io.ReadFull(body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.Copy(io.Discard, slow{body}); !errors.Is(err, context.Canceled) {
		t.Errorf("Read that is canceled: got %v, want context.Canceled", err)
	}
	wantAbsent(t, s, "y")
	want(t, s, "x", noise(1, 3<<20))
}

// slow reads little by little, so that not all is there when the context ends.
type slow struct{ io.Reader }

func (s slow) Read(p []byte) (int, error) { return s.Reader.Read(p[:min(len(p), 4096)]) }

// canceling is a reader that cancels when it has been read so far.
type canceling struct {
	*bytes.Reader
	cancel func()
	left   int
}

func (c *canceling) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if c.left -= n; c.left <= 0 {
		c.cancel()
	}
	return n, err
}

func (c *canceling) ReadAt(p []byte, at int64) (int, error) {
	if int(at) >= c.left {
		c.cancel()
	}
	return c.Reader.ReadAt(p, at)
}
