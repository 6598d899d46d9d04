package object

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"time"
)

// stallError is what a connection returns on which nothing moved.
type stallError struct{ limit time.Duration }

func (e *stallError) Error() string   { return fmt.Sprintf("the server was silent for %s", e.limit) }
func (e *stallError) Timeout() bool   { return true }
func (e *stallError) Temporary() bool { return true }

// Unwrap makes it a deadline's, as those of connections are.
func (e *stallError) Unwrap() error { return os.ErrDeadlineExceeded }

// patientConn is a connection that fails when for the limit no byte has come or
// gone. What moves one way keeps the other waiting: an answer may come long after
// the first byte of a long request.
type patientConn struct {
	net.Conn
	limit time.Duration
}

// Dial makes connections that fail when they were silent for longer than limit, with
// an error that is a timeout's (os.ErrDeadlineExceeded).
func Dial(limit time.Duration) func(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: limit, KeepAlive: limit}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &patientConn{conn, limit}, nil
	}
}

// writeStep is how much is written under one deadline, in bytes: a slow line
// moves that much in time.
const writeStep = 16 << 10

func (c *patientConn) Read(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	return n, c.told(err)
}

func (c *patientConn) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		if err := c.SetDeadline(time.Now().Add(c.limit)); err != nil {
			return n, err
		}
		var m int
		m, err = c.Conn.Write(p[n:min(len(p), n+writeStep)])
		n += m
	}
	return n, c.told(err)
}

func (c *patientConn) told(err error) error {
	if e, ok := err.(net.Error); ok && e.Timeout() { //nolint:errorlint // a connection's own error
		return &stallError{c.limit}
	}
	return err
}

// pause waits before try number n+1, longer each time, at most limit. It ends
// with ctx.
func pause(ctx context.Context, n int, limit time.Duration) error {
	wait := min(limit, 100*time.Millisecond<<min(n, 20))
	wait = wait/2 + rand.N(wait/2+1) // so that not all come back at once
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
