package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	cmdRead        = 0
	cmdDisconnect  = 2
	cmdBlockStatus = 7

	chunkDone        = 1 << 0
	chunkNone        = 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkErrorBit    = 1 << 15

	stateZero  = 1 << 1 // base:allocation
	stateDirty = 1 << 0 // qemu:dirty-bitmap

	// maxRead and maxStatus are the longest ranges of one request, in bytes;
	// the protocol's own limits are 32 MiB for data and 4 GiB for anything.
	maxRead   = 8 << 20
	maxStatus = 1 << 30
	// maxExtents bounds a reply about a range: one extent a sector would be more
	// than any server sends.
	maxExtents = maxStatus / 512
	maxText    = 8 << 10
)

// request is one question under way. Its fields belong to the receiver until
// done is closed.
type request struct {
	off    int64
	length int64
	buf    []byte              // read
	filled int64               // bytes of buf that came
	status map[uint32][]extent // block status, by context
	err    error
	done   chan struct{}
}

type extent struct {
	length int64
	flags  uint32
}

// send puts a request on the wire.
func (c *Client) send(kind uint16, r *request) error {
	c.mu.Lock()
	if c.broken != nil {
		c.mu.Unlock()
		return c.broken
	}
	c.next++
	handle := c.next
	c.pending[handle] = r
	c.mu.Unlock()

	be := binary.BigEndian
	b := be.AppendUint32(nil, magicRequest)
	b = be.AppendUint16(b, 0)
	b = be.AppendUint16(b, kind)
	b = be.AppendUint64(b, handle)
	b = be.AppendUint64(b, uint64(r.off))
	b = be.AppendUint32(b, uint32(r.length))
	c.write.Lock()
	_, err := c.conn.Write(b)
	c.write.Unlock()
	if err != nil {
		c.fail(err)
	}
	return nil
}

// fail ends everything under way; the first reason stays.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return
	}
	c.broken = fmt.Errorf("reading the disk: %w", err)
	for _, r := range c.pending {
		r.err = c.broken
		close(r.done)
	}
	c.pending = nil
	c.conn.Close()
}

// receive deals out the server's replies until the connection ends.
func (c *Client) receive() {
	in := bufio.NewReaderSize(c.conn, 64<<10)
	for {
		if err := c.reply(in); err != nil {
			c.fail(err)
			return
		}
	}
}

func (c *Client) reply(in io.Reader) error {
	be := binary.BigEndian
	head := make([]byte, 20)
	if _, err := io.ReadFull(in, head[:16]); err != nil {
		return err
	}
	if be.Uint32(head) == magicSimple {
		r, err := c.find(be.Uint64(head[8:]))
		if err != nil {
			return err
		}
		// Structured replies were agreed on: only a failure may come like this.
		code := be.Uint32(head[4:])
		if code == 0 {
			return fmt.Errorf("%w: a simple reply", ErrProtocol)
		}
		r.err = fmt.Errorf("the server reports error %d", code)
		c.finish(be.Uint64(head[8:]), r)
		return nil
	}
	if _, err := io.ReadFull(in, head[16:]); err != nil {
		return err
	}
	if be.Uint32(head) != magicChunk {
		return fmt.Errorf("%w: no reply", ErrProtocol)
	}
	flags, kind, handle, n := be.Uint16(head[4:]), be.Uint16(head[6:]), be.Uint64(head[8:]), be.Uint32(head[16:])
	r, err := c.find(handle)
	if err != nil {
		return err
	}
	if err := r.chunk(in, kind, int64(n)); err != nil {
		return err
	}
	if flags&chunkDone != 0 {
		c.finish(handle, r)
	}
	return nil
}

func (c *Client) find(handle uint64) (*request, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.pending[handle]
	if !ok {
		return nil, fmt.Errorf("%w: a reply that nobody asked for", ErrProtocol)
	}
	return r, nil
}

func (c *Client) finish(handle uint64, r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending != nil { // else fail has told it already
		delete(c.pending, handle)
		close(r.done)
	}
}

// chunk takes one piece of a reply, of n bytes.
func (r *request) chunk(in io.Reader, kind uint16, n int64) error {
	be := binary.BigEndian
	fixed := func(size int64) ([]byte, error) {
		if n < size {
			return nil, fmt.Errorf("%w: a chunk of %d bytes", ErrProtocol, n)
		}
		b := make([]byte, size)
		_, err := io.ReadFull(in, b)
		return b, err
	}
	switch {
	case kind == chunkNone && n == 0:
		return nil
	case kind == chunkOffsetData && r.buf != nil:
		b, err := fixed(8)
		if err != nil {
			return err
		}
		p, err := r.part(be.Uint64(b), n-8)
		if err != nil {
			return err
		}
		_, err = io.ReadFull(in, p)
		return err
	case kind == chunkOffsetHole && r.buf != nil && n == 12:
		b, err := fixed(12)
		if err != nil {
			return err
		}
		p, err := r.part(be.Uint64(b), int64(be.Uint32(b[8:])))
		clear(p)
		return err
	case kind == chunkBlockStatus && r.status != nil && n >= 12 && (n-4)%8 == 0 && (n-4)/8 <= maxExtents:
		return r.blockStatus(in, n)
	case kind&chunkErrorBit != 0 && n >= 6 && n <= maxText:
		b, err := fixed(n)
		if err != nil {
			return err
		}
		text := b[6:]
		text = text[:min(int(be.Uint16(b[4:])), len(text))]
		r.err = errors.Join(r.err, fmt.Errorf("the server reports error %d: %s", be.Uint32(b), text))
		return nil
	}
	return fmt.Errorf("%w: a chunk of kind %d and %d bytes", ErrProtocol, kind, n)
}

// part is the piece of the buffer that a chunk fills.
func (r *request) part(off uint64, n int64) ([]byte, error) {
	at := int64(off) - r.off
	if n < 0 || at < 0 || at > int64(len(r.buf)) || n > int64(len(r.buf))-at {
		return nil, fmt.Errorf("%w: data outside what was asked for", ErrProtocol)
	}
	r.filled += n
	return r.buf[at : at+n], nil
}

func (r *request) blockStatus(in io.Reader, n int64) error {
	be := binary.BigEndian
	head := make([]byte, 4)
	if _, err := io.ReadFull(in, head); err != nil {
		return err
	}
	b := make([]byte, n-4)
	if _, err := io.ReadFull(in, b); err != nil {
		return err
	}
	var out []extent
	for ; len(b) > 0; b = b[8:] {
		e := extent{int64(be.Uint32(b)), be.Uint32(b[4:])}
		if e.length == 0 {
			return fmt.Errorf("%w: an extent of no length", ErrProtocol)
		}
		out = append(out, e)
	}
	r.status[be.Uint32(head)] = out
	return nil
}

// ReadAt reads the disk at off. It is io.ReaderAt.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("reading the disk at a negative offset")
	}
	if off >= c.size {
		return 0, io.EOF
	}
	want := min(int64(len(p)), c.size-off)
	for done := int64(0); done < want; {
		n := min(want-done, maxRead)
		r := &request{off: off + done, length: n, buf: p[done : done+n], done: make(chan struct{})}
		if err := c.send(cmdRead, r); err != nil {
			return int(done), err
		}
		<-r.done
		if r.err == nil && r.filled != n {
			r.err = fmt.Errorf("%w: %d bytes of %d", ErrProtocol, r.filled, n)
		}
		if r.err != nil {
			return int(done), r.err
		}
		done += n
	}
	if want < int64(len(p)) {
		return int(want), io.EOF
	}
	return int(want), nil
}

// Extents calls fn with consecutive runs that cover [off, off+length). With a
// bitmap dirty is what that says, and zero is never said; without one everything
// is dirty, and zero says that the run reads as zeros.
func (c *Client) Extents(ctx context.Context, off, length int64, fn func(off, length int64, dirty, zero bool) error) error {
	for end := min(off+length, c.size); off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		r := &request{off: off, length: min(end-off, maxStatus), status: map[uint32][]extent{}, done: make(chan struct{})}
		if err := c.send(cmdBlockStatus, r); err != nil {
			return err
		}
		select {
		case <-r.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if r.err != nil {
			return r.err
		}
		status := r.status[c.context]
		if len(status) == 0 {
			return fmt.Errorf("%w: no block status", ErrProtocol)
		}
		for _, e := range status {
			n := min(e.length, end-off)
			if n <= 0 {
				break // the last extent may be told of to its own end
			}
			dirty, zero := true, e.flags&stateZero != 0
			if c.bitmap {
				dirty, zero = e.flags&stateDirty != 0, false
			}
			if err := fn(off, n, dirty, zero); err != nil {
				return err
			}
			off += n
		}
	}
	return nil
}

// closeLimit bounds how long a server may take to be told of the end.
const closeLimit = time.Second

// Close ends the connection. What is under way fails.
func (c *Client) Close() error {
	c.mu.Lock()
	open := c.broken == nil
	c.mu.Unlock()
	if open {
		// A polite end; the server does not answer it, nor is it waited for.
		if err := c.conn.SetWriteDeadline(time.Now().Add(closeLimit)); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		if err := c.send(cmdDisconnect, &request{done: make(chan struct{})}); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
	}
	c.fail(net.ErrClosed)
	return nil
}
