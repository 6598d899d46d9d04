package object

import (
	"bytes"
	"context"
	"fmt"
	"io"
)

// ReadSmall reads a small object as a whole. It returns ErrNotFound, and an error for
// one of more than limit bytes.
func ReadSmall(ctx context.Context, s Store, name string, limit int64) ([]byte, error) {
	body, info, err := s.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if info.Size > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, info.Size, limit)
	}
	b, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return b, err
}

// WriteSmall puts a small object.
func WriteSmall(ctx context.Context, s Store, name string, b []byte) error {
	return s.Put(ctx, name, bytes.NewReader(b), int64(len(b)))
}
