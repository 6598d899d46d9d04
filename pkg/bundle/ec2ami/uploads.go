package ec2ami

import (
	"bytes"
	"context"
	"crypto/sha1"
	"io"
	"sync"

	"github.com/kamivm/kami/pkg/object"
)

// ahead is how many parts are on their way at once. With the one that is filled or
// read it is what the package holds in memory.
const ahead = 4

// uploads cuts a stream into parts and puts several at once.
type uploads struct {
	ctx     context.Context //nolint:containedctx // of one Write
	cancel  context.CancelCauseFunc
	store   object.Store
	prefix  string
	replace bool

	cur   []byte // the part that is filled
	free  chan []byte
	group sync.WaitGroup

	mu    sync.Mutex
	parts []Part
	put   []bool // which parts were written
	size  int64
}

func newUploads(ctx context.Context, store object.Store, prefix string, replace bool) *uploads {
	u := &uploads{store: store, prefix: prefix, replace: replace, free: make(chan []byte, ahead+1)}
	u.ctx, u.cancel = context.WithCancelCause(ctx)
	for range ahead + 1 {
		u.free <- nil // made when it is needed
	}
	return u
}

// Write takes encrypted bytes. It waits while all parts are on their way.
func (u *uploads) Write(b []byte) (int, error) {
	given := len(b)
	for len(b) > 0 {
		if u.cur == nil {
			select {
			case u.cur = <-u.free:
				if u.cur == nil {
					u.cur = make([]byte, 0, PartSize)
				}
			case <-u.ctx.Done():
			}
		}
		if u.ctx.Err() != nil {
			return 0, context.Cause(u.ctx)
		}
		n := min(len(b), PartSize-len(u.cur))
		u.cur, b = append(u.cur, b[:n]...), b[n:]
		if len(u.cur) == PartSize {
			u.send()
		}
	}
	return given, nil
}

// alive is a writer that takes nothing once the uploads have failed.
func (u *uploads) alive() io.Writer { return alive{u.ctx} }

type alive struct{ ctx context.Context } //nolint:containedctx // of one Write

func (a alive) Write(b []byte) (int, error) {
	if a.ctx.Err() != nil {
		return 0, context.Cause(a.ctx)
	}
	return len(b), nil
}

// send puts the part that is filled.
func (u *uploads) send() {
	u.mu.Lock()
	n := len(u.parts)
	name := partName(u.prefix, n)
	u.parts, u.put = append(u.parts, Part{Name: name}), append(u.put, false)
	u.size += int64(len(u.cur))
	u.mu.Unlock()
	buf := u.cur
	u.cur = nil
	u.group.Go(func() {
		sum := sha1.Sum(buf)
		put := u.store.PutNew
		if u.replace {
			put = u.store.Put
		}
		err := put(u.ctx, name, bytes.NewReader(buf), int64(len(buf)))
		u.mu.Lock()
		u.parts[n].Digest, u.put[n] = sum, err == nil
		u.mu.Unlock()
		if err != nil {
			u.cancel(err)
		}
		u.free <- buf[:0]
	})
}

// wait ends the stream, with err if it failed, and returns what was put.
func (u *uploads) wait(err error) ([]Part, int64, error) {
	if err == nil && len(u.cur) > 0 {
		u.send()
	}
	if err != nil {
		u.cancel(err)
	}
	u.group.Wait()
	if u.ctx.Err() != nil {
		err = context.Cause(u.ctx)
	}
	u.cancel(nil)
	return u.parts, u.size, err
}

// undo takes away what was put.
func (u *uploads) undo(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	for i, part := range u.parts {
		if u.put[i] {
			_ = u.store.Delete(ctx, part.Name) // what is left is told of by the next of that name
		}
	}
}
