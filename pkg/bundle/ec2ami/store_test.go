package ec2ami

import (
	"bytes"
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kamivm/kami/pkg/object"
)

// memory is an object store for tests.
type memory struct {
	mu      sync.Mutex
	objects map[string][]byte
	// before is called with each verb and name; its error is the verb's.
	before func(verb, name string) error
	gets   int // running, and the most that ran at once
	most   int
}

func newMemory() *memory { return &memory{objects: map[string][]byte{}} }

func (s *memory) ask(ctx context.Context, verb, name string) error {
	if s.before != nil {
		if err := s.before(verb, name); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (s *memory) URL() string  { return "memory:" }
func (s *memory) Close() error { return nil }

func (s *memory) Put(ctx context.Context, name string, r io.ReadSeeker, _ int64) error {
	if err := s.ask(ctx, "put", name); err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[name] = b
	return err
}

func (s *memory) PutNew(ctx context.Context, name string, r io.ReadSeeker, size int64) error {
	s.mu.Lock()
	_, ok := s.objects[name]
	s.mu.Unlock()
	if ok {
		return object.ErrExists
	}
	return s.Put(ctx, name, r, size)
}

func (s *memory) Get(ctx context.Context, name string) (io.ReadCloser, object.Info, error) {
	s.mu.Lock()
	s.gets++
	s.most = max(s.most, s.gets)
	s.mu.Unlock()
	err := s.ask(ctx, "get", name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets--
	b, ok := s.objects[name]
	if err == nil && !ok {
		err = object.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(b)), object.Info{Name: name, Size: int64(len(b))}, err
}

func (s *memory) Stat(ctx context.Context, name string) (object.Info, error) {
	_, info, err := s.Get(ctx, name)
	return info, err
}

func (s *memory) List(ctx context.Context, prefix string, fn func(object.Info) error) error {
	for _, name := range s.names() {
		if strings.HasPrefix(name, prefix) {
			info, err := s.Stat(ctx, name)
			if err == nil {
				err = fn(info)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *memory) Delete(ctx context.Context, name string) error {
	if err := s.ask(ctx, "delete", name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, name)
	return nil
}

func (s *memory) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.objects))
}

// copyOf is a store with the same objects, to spoil.
func (s *memory) copyOf() *memory {
	c := newMemory()
	for name, b := range s.objects {
		c.objects[name] = bytes.Clone(b)
	}
	return c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
