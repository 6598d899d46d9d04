// Package qmp speaks the QEMU machine protocol with a guest's QEMU. Its Monitor
// is a transport behind go-qemu's interface of that name, so that go-qemu's typed
// calls run over it: replies may be of any length, each belongs to its command by
// an id, and a command ends with its context. What kami asks of QEMU's disks and
// their dirty bitmaps stands beside it, for every driver that has a monitor,
// whatever carries it.
package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

// ErrEnded is returned, wrapped, when QEMU has closed the connection.
var ErrEnded = errors.New("QEMU has ended the conversation")

// maxLine bounds one message of QEMU's, in bytes: many times the longest that
// there is (its schema has 400 KiB), and no more than memory can bear.
const maxLine = 64 << 20

// Monitor is one conversation with a QEMU. Its methods are safe for concurrent
// use.
type Monitor struct {
	conn  net.Conn
	write sync.Mutex // one command at a time on the wire

	mu      sync.Mutex
	last    uint64
	pending map[uint64]chan []byte
	events  map[chan qmp.Event]bool
	ended   error // why nothing can be asked any more
}

// New greets the QEMU at the other end of conn, which is the monitor's from then
// on, also when that fails. A QEMU that talks with somebody else does not answer
// until ctx ends.
func New(ctx context.Context, conn net.Conn) (*Monitor, error) {
	m := &Monitor{conn: conn, pending: map[uint64]chan []byte{}, events: map[chan qmp.Event]bool{}}
	in := bufio.NewReaderSize(conn, 64<<10)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	err := greet(in)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("greeting QEMU: %w", err)
	}
	go m.receive(in)
	if err := Ask(m.Within(ctx), "qmp_capabilities", nil, nil); err != nil {
		conn.Close()
		return nil, err
	}
	return m, nil
}

func greet(in *bufio.Reader) error {
	line, err := readLine(in)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrEnded, err)
	}
	var greeting struct {
		QMP *json.RawMessage `json:"QMP"`
	}
	if err := json.Unmarshal(line, &greeting); err != nil || greeting.QMP == nil {
		return errors.New("this is no monitor of QEMU's")
	}
	return nil
}

// readLine reads one message; QEMU ends each with a line break.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
		if len(line) > maxLine {
			return nil, fmt.Errorf("a message of more than %d bytes", maxLine)
		}
	}
}

// receive deals out what QEMU says until the conversation ends.
func (m *Monitor) receive(in *bufio.Reader) {
	for {
		line, err := readLine(in)
		if err == nil {
			err = m.deal(line)
		}
		if err != nil {
			m.end(err)
			return
		}
	}
}

func (m *Monitor) deal(line []byte) error {
	if len(bytes.TrimSpace(line)) == 0 {
		return nil
	}
	var kind struct {
		ID    *uint64 `json:"id"`
		Event string  `json:"event"`
	}
	if err := json.Unmarshal(line, &kind); err != nil {
		return fmt.Errorf("reading QEMU's message: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if kind.Event != "" {
		var e qmp.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("reading QEMU's event: %w", err)
		}
		for listener := range m.events {
			select {
			case listener <- e:
			default: // who does not listen misses it
			}
		}
		return nil
	}
	if kind.ID == nil { // QEMU could not even read the command
		return fmt.Errorf("QEMU says %q to no command", line)
	}
	if answer, ok := m.pending[*kind.ID]; ok { // else nobody waits for it any more
		delete(m.pending, *kind.ID)
		answer <- line
	}
	return nil
}

// end ends everything under way; the first reason stays.
func (m *Monitor) end(err error) {
	m.conn.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended != nil {
		return
	}
	m.ended = fmt.Errorf("%w: %w", ErrEnded, err)
	for _, answer := range m.pending {
		close(answer)
	}
	for listener := range m.events {
		close(listener)
	}
	m.pending, m.events = nil, nil
}

// Connect does nothing: New has connected.
func (m *Monitor) Connect() error { return nil }

// Close ends the conversation; what is under way fails.
func (m *Monitor) Close() error {
	m.end(net.ErrClosed)
	return nil
}

// Disconnect is Close, by go-qemu's name.
func (m *Monitor) Disconnect() error { return m.Close() }

// Run sends one command, which is JSON without an id, and returns QEMU's answer.
// What QEMU refuses is an *Error.
func (m *Monitor) Run(command []byte) ([]byte, error) { return m.run(context.Background(), command) }

// Within is the monitor for commands that end with ctx. QEMU may still carry out
// one that was given up.
func (m *Monitor) Within(ctx context.Context) qmp.Monitor { return within{m, ctx} }

type within struct {
	*Monitor
	ctx context.Context
}

func (w within) Run(command []byte) ([]byte, error) { return w.run(w.ctx, command) }

func (m *Monitor) run(ctx context.Context, command []byte) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(command, &fields); err != nil {
		return nil, fmt.Errorf("a command that is no JSON: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	answer := make(chan []byte, 1)
	m.mu.Lock()
	if m.ended != nil {
		m.mu.Unlock()
		return nil, m.ended
	}
	m.last++
	id := m.last
	m.pending[id] = answer
	m.mu.Unlock()
	fields["id"] = strconv.AppendUint(nil, id, 10)
	text, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	m.send(ctx, append(text, '\n'))
	select {
	case line, ok := <-answer:
		if !ok {
			m.mu.Lock()
			defer m.mu.Unlock()
			return nil, m.ended
		}
		return line, refusal(line)
	case <-ctx.Done():
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.pending, id)
		return nil, context.Cause(ctx)
	}
}

// send writes a command. One that is not written as a whole ends the
// conversation, which tells whoever waits for an answer.
func (m *Monitor) send(ctx context.Context, text []byte) {
	m.write.Lock()
	defer m.write.Unlock()
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = m.conn.SetWriteDeadline(time.Unix(1, 0))
		close(over)
	})
	_, err := m.conn.Write(text)
	if !stop() {
		<-over
		err = errors.Join(err, m.conn.SetWriteDeadline(time.Time{}))
	}
	if err != nil {
		m.end(err)
	}
}

// Events returns what QEMU tells by itself until ctx or the conversation ends,
// when the channel is closed. A reader that is 64 events behind misses some.
func (m *Monitor) Events(ctx context.Context) (<-chan qmp.Event, error) {
	listener := make(chan qmp.Event, 64)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended != nil {
		return nil, m.ended
	}
	m.events[listener] = true
	context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.events[listener] {
			delete(m.events, listener)
			close(listener)
		}
	})
	return listener, nil
}

var (
	_ qmp.Monitor = (*Monitor)(nil)
	_ qmp.Monitor = within{}
)
