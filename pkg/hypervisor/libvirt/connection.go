package libvirt

import (
	"context"
	"errors"

	"libvirt.org/go/libvirt"

	"github.com/kamivm/kami/pkg/hypervisor"
)

// call runs a call of libvirt's, which cannot be interrupted, and stops waiting
// for it when ctx ends.
func call[T any](ctx context.Context, fn func() (T, error)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	type answer struct {
		v   T
		err error
	}
	done := make(chan answer, 1)
	go func() {
		v, err := fn()
		done <- answer{v, err}
	}()
	select {
	case a := <-done:
		return a.v, translate(a.err)
	case <-ctx.Done():
		if cause := context.Cause(ctx); errors.Is(cause, hypervisor.ErrUnreachable) { // it has a limit of ours
			return zero, cause
		}
		return zero, ctx.Err()
	}
}

// ask is call on the driver's connection, which lives until the call has
// returned even if the driver is closed before, and is made anew where it has
// broken: libvirt was restarted, and its guests live on.
func ask[T any](ctx context.Context, d *Driver, fn func() (T, error)) (T, error) {
	return call(ctx, func() (T, error) {
		var zero T
		if err := d.mend(); err != nil {
			return zero, err
		}
		d.mending.RLock()
		defer d.mending.RUnlock()
		if err := d.conn.Ref(); err != nil {
			return zero, err
		}
		defer d.conn.Close()
		return fn()
	})
}

// mend connects anew where the connection has broken. What was under way on the
// old one has failed, or is about to.
func (d *Driver) mend() error {
	whole := func() bool {
		alive, err := d.conn.IsAlive()
		return alive || err != nil || d.closed.Load() // what was closed stays so
	}
	d.mending.RLock()
	ok := whole()
	d.mending.RUnlock()
	if ok {
		return nil
	}
	d.mending.Lock()
	defer d.mending.Unlock()
	if whole() {
		return nil
	}
	conn, err := libvirt.NewConnect(d.uri)
	if err != nil {
		return err
	}
	d.conn.Close()
	d.conn = conn
	return nil
}

// run is ask for what returns nothing.
func (d *Driver) run(ctx context.Context, fn func() error) error {
	_, err := ask(ctx, d, func() (struct{}, error) { return struct{}{}, fn() })
	return err
}
