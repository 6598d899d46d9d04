// Package nbd reads a disk that QEMU exports over the network block device
// protocol on a unix socket: its data, where it is zero, and which of it a
// dirty bitmap says has changed. It is as much of a client as a live snapshot
// needs: fixed newstyle negotiation, structured replies, and one of the meta
// contexts base:allocation and qemu:dirty-bitmap. The protocol is described in
// the NetworkBlockDevice project's doc/proto.md, the dirty bitmap's context in
// QEMU's docs/interop/nbd.txt.
//
// A server is not trusted: every length that it sends is held against what was
// asked for, and a reply that fits nothing ends the connection.
package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// ErrProtocol is returned, wrapped, when the server breaks the protocol.
var ErrProtocol = errors.New("nbd protocol error")

const (
	magicInit    = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption  = 0x49484156454f5054 // "IHAVEOPT"
	magicReply   = 0x3e889045565a9
	magicRequest = 0x25609513
	magicSimple  = 0x67446698
	magicChunk   = 0x668e33ef

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optGo              = 7
	optStructuredReply = 8
	optSetMetaContext  = 10

	repAck         = 1
	repInfo        = 3
	repMetaContext = 4
	repErrorBit    = 1 << 31

	infoExport = 0

	maxOptionReply = 64 << 10
)

// handshakeLimit bounds the negotiation; a server that is there answers at once.
const handshakeLimit = 10 * time.Second

// Client reads one export. Its methods are safe for concurrent use.
type Client struct {
	conn net.Conn
	size int64

	context uint32 // id of the meta context
	bitmap  bool   // which is of a dirty bitmap, else of what is allocated

	write   sync.Mutex // one request at a time on the wire
	mu      sync.Mutex
	next    uint64
	pending map[uint64]*request
	broken  error // why nothing can be asked any more
}

// Dial opens the export of that name. bitmap names a dirty bitmap that the
// server exports with it and by which Extents goes, "" for none.
func Dial(ctx context.Context, socket, export, bitmap string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connecting to the disk: %w", err)
	}
	var c *Client
	if err = checkPeer(conn, socket); err == nil {
		c, err = negotiate(conn, export, bitmap)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("opening the export %q: %w", export, err)
	}
	return c, nil
}

// negotiate does the handshake on a fresh connection and starts reading.
func negotiate(conn net.Conn, export, bitmap string) (*Client, error) {
	c := &Client{conn: conn, size: -1, pending: map[uint64]*request{}}
	if err := conn.SetDeadline(time.Now().Add(handshakeLimit)); err != nil {
		return nil, err
	}
	if err := c.greet(); err != nil {
		return nil, err
	}
	if err := c.option(optStructuredReply, nil, func(uint32, []byte) error { return nil }); err != nil {
		return nil, fmt.Errorf("structured replies: %w", err)
	}
	if err := c.contexts(export, bitmap); err != nil {
		return nil, fmt.Errorf("meta contexts: %w", err)
	}
	ask := append(binary.BigEndian.AppendUint32(nil, uint32(len(export))), export...)
	ask = append(ask, 0, 0) // no information beyond what comes anyway
	if err := c.option(optGo, ask, c.info); err != nil {
		return nil, err
	}
	if c.size < 0 {
		return nil, fmt.Errorf("%w: the server does not say how big the disk is", ErrProtocol)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	go c.receive()
	return c, nil
}

func (c *Client) greet() error {
	b := make([]byte, 18)
	if _, err := io.ReadFull(c.conn, b); err != nil {
		return err
	}
	be := binary.BigEndian
	if be.Uint64(b) != magicInit || be.Uint64(b[8:]) != magicOption || be.Uint16(b[16:])&flagFixedNewstyle == 0 {
		return fmt.Errorf("%w: no fixed newstyle server", ErrProtocol)
	}
	_, err := c.conn.Write(be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes))
	return err
}

// option sends an option and gives each of the server's replies before its
// acknowledgement to fn.
func (c *Client) option(opt uint32, data []byte, fn func(kind uint32, data []byte) error) error {
	be := binary.BigEndian
	b := be.AppendUint64(nil, magicOption)
	b = be.AppendUint32(b, opt)
	b = be.AppendUint32(b, uint32(len(data)))
	if _, err := c.conn.Write(append(b, data...)); err != nil {
		return err
	}
	// As many replies as any server has reason for.
	for range 64 {
		head := make([]byte, 20)
		if _, err := io.ReadFull(c.conn, head); err != nil {
			return err
		}
		kind, n := be.Uint32(head[12:]), be.Uint32(head[16:])
		if be.Uint64(head) != magicReply || be.Uint32(head[8:]) != opt || n > maxOptionReply {
			return fmt.Errorf("%w: a reply of %d bytes to option %d", ErrProtocol, n, be.Uint32(head[8:]))
		}
		text := make([]byte, n)
		if _, err := io.ReadFull(c.conn, text); err != nil {
			return err
		}
		switch {
		case kind == repAck:
			return nil
		case kind&repErrorBit != 0:
			return fmt.Errorf("the server refuses: error %#x %q", kind, text)
		}
		if err := fn(kind, text); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: endless replies to option %d", ErrProtocol, opt)
}

// contexts asks for one meta context: of the bitmap, or of what is allocated.
// Together they would be as slow as the slower one, and to find out what of a
// whole disk is allocated QEMU walks all tables of its chain.
func (c *Client) contexts(export, bitmap string) error {
	query := "base:allocation"
	if bitmap != "" {
		query, c.bitmap = "qemu:dirty-bitmap:"+bitmap, true
	}
	be := binary.BigEndian
	b := append(be.AppendUint32(nil, uint32(len(export))), export...)
	b = be.AppendUint32(b, 1)
	b = append(be.AppendUint32(b, uint32(len(query))), query...)
	found := false
	err := c.option(optSetMetaContext, b, func(kind uint32, data []byte) error {
		if kind != repMetaContext || len(data) < 4 {
			return fmt.Errorf("%w: a reply of kind %d", ErrProtocol, kind)
		}
		if string(data[4:]) == query {
			c.context, found = be.Uint32(data), true
		}
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("the server does not offer %s", query)
	}
	return err
}

func (c *Client) info(kind uint32, data []byte) error {
	be := binary.BigEndian
	if kind != repInfo || len(data) < 2 {
		return fmt.Errorf("%w: a reply of kind %d", ErrProtocol, kind)
	}
	if be.Uint16(data) != infoExport {
		return nil
	}
	if len(data) != 12 || be.Uint64(data[2:]) > 1<<62 {
		return fmt.Errorf("%w: the export's description", ErrProtocol)
	}
	c.size = int64(be.Uint64(data[2:]))
	return nil
}

// Size is the size of the disk, in bytes.
func (c *Client) Size() int64 { return c.size }

// HasBitmap says whether Extents goes by a dirty bitmap.
func (c *Client) HasBitmap() bool { return c.bitmap }
