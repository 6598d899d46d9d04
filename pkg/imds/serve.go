package imds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// What a guest may take of its host. One connection has at most maxRequests
// requests, each with a header of at most maxHeader bytes; a guest may take
// requestLimit for a request and as long to take in its answer, and let the
// connection lie for idleLimit between two.
const (
	maxRequests  = 1000
	maxHeader    = 16 << 10
	requestLimit = 10 * time.Second
	idleLimit    = 60 * time.Second
)

// Serve answers the requests that come on one connection, until that ends or ctx
// does. Where conn is not a net.Conn, such as a pair of pipes, its two directions
// are carried over one that can have limits in time.
func Serve(ctx context.Context, conn io.ReadWriter, h http.Handler) error {
	c, ok := conn.(net.Conn)
	if !ok {
		var arrived func()
		c, arrived = carry(conn)
		defer arrived()
	}
	l := &single{conn: c, ended: make(chan struct{})}
	var served atomic.Int64
	server := http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if served.Add(1) >= maxRequests {
				w.Header().Set("Connection", "close")
			}
			h.ServeHTTP(w, req)
		}),
		ReadTimeout: requestLimit, WriteTimeout: requestLimit, IdleTimeout: idleLimit, MaxHeaderBytes: maxHeader - headerSlop,
		DisableGeneralOptionsHandler: true,
		// What goes wrong is of the guest's making, and its own to see.
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				l.Close()
			}
		},
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	defer c.Close()
	if err := server.Serve(l); !errors.Is(err, io.EOF) && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return ctx.Err()
}

// headerSlop is what net/http lets a header be over its limit.
const headerSlop = 4096

// single is a listener with one connection to accept.
type single struct {
	conn  net.Conn
	taken bool
	once  sync.Once
	ended chan struct{}
}

func (l *single) Accept() (net.Conn, error) {
	if !l.taken {
		l.taken = true
		return l.conn, nil
	}
	<-l.ended
	return nil, io.EOF
}

func (l *single) Close() error {
	l.once.Do(func() { close(l.ended) })
	return nil
}

func (l *single) Addr() net.Addr { return l.conn.LocalAddr() }

// duplex is a connection of two, of which each has limits in time of its own.
type duplex struct{ in, out net.Conn }

func (d duplex) Read(b []byte) (int, error)         { return d.in.Read(b) }
func (d duplex) Write(b []byte) (int, error)        { return d.out.Write(b) }
func (d duplex) Close() error                       { return errors.Join(d.in.Close(), d.out.Close()) }
func (d duplex) LocalAddr() net.Addr                { return d.in.LocalAddr() }
func (d duplex) RemoteAddr() net.Addr               { return d.in.RemoteAddr() }
func (d duplex) SetReadDeadline(t time.Time) error  { return d.in.SetReadDeadline(t) }
func (d duplex) SetWriteDeadline(t time.Time) error { return d.out.SetWriteDeadline(t) }
func (d duplex) SetDeadline(t time.Time) error {
	return errors.Join(d.SetReadDeadline(t), d.SetWriteDeadline(t))
}

// carry makes a connection that carries to and from conn. arrived waits, once
// that is closed, until all that was answered is on its way. What reads conn ends
// when conn does.
func carry(conn io.ReadWriter) (c net.Conn, arrived func()) {
	asked, in := net.Pipe()
	out, answered := net.Pipe()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(asked, conn) // to the end, however that comes
		asked.Close()
	}()
	go func() {
		_, _ = io.Copy(conn, answered)
		answered.Close() // if it is conn that takes no more
		close(done)
	}()
	return duplex{in, out}, func() { <-done }
}
