package object

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// resumed reads an object of size bytes and opens it again where a connection
// broke.
type resumed struct {
	ctx   context.Context //nolint:containedctx // that of the Get which it is the body of
	opts  Options
	body  io.ReadCloser
	check *check // nil for none
	// open opens the object from an offset; it has tried again already, so its
	// failure is the end.
	open func(from int64) (io.ReadCloser, error)
	told func(error) error // names the failure of a body

	done, size int64 // bytes
	tries      int   // since the mark
	mark       int64 // what was done at the last fresh start
	err        error
}

// freshStart is after how many bytes a broken connection is a new misfortune
// and not the same again.
const freshStart = 64 << 10

func (r *resumed) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, r.err
	}
	for r.err == nil {
		// What has arrived already could be read on to its end.
		if r.ctx.Err() != nil {
			r.err = context.Cause(r.ctx)
			break
		}
		switch {
		case r.done == r.size:
			if r.err = r.check.verify(); r.err == nil {
				r.err = io.EOF
			}
		case r.body == nil:
			r.body, r.err = r.open(r.done)
		default:
			n, err := r.body.Read(p[:min(int64(len(p)), r.size-r.done)])
			r.check.write(p[:n])
			r.done += int64(n)
			if err != nil && r.done < r.size {
				r.broken(err)
			}
			if n > 0 {
				return n, nil
			}
		}
	}
	return 0, r.err
}

// broken gives the connection up, and waits before the next one if there is to
// be one.
func (r *resumed) broken(err error) {
	r.body.Close()
	r.body = nil
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if r.done-r.mark >= freshStart {
		r.mark, r.tries = r.done, 0
	}
	r.tries++
	switch {
	case r.ctx.Err() != nil:
		r.err = context.Cause(r.ctx)
	case r.tries < r.opts.Attempts:
		r.err = pause(r.ctx, r.tries, r.opts.Backoff)
	case errors.Is(err, io.ErrUnexpectedEOF):
		r.err = fmt.Errorf("the object broke off after %d of %d bytes, %d times: %w", r.done, r.size, r.tries, err)
	default:
		r.err = r.told(err)
	}
}

func (r *resumed) Close() error {
	if r.body != nil {
		r.body.Close() // only read from
		r.body = nil
	}
	if r.err == nil {
		r.err = errors.New("the object was closed")
	}
	return nil
}
