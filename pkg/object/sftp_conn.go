package object

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pkg/sftp"
)

// sftpRequests is how many requests of one file are under way together, of 32
// KiB each.
const sftpRequests = 64

// sshTarget is where to connect; an empty user or port is for ssh's
// configuration to say.
type sshTarget struct{ user, host, port string }

// sftpConn is a connection: one process of ssh. Its methods are those of the
// SFTP client, to be called within run.
type sftpConn struct {
	*sftp.Client
	cmd    *exec.Cmd
	stderr *tail
	stall  time.Duration

	moved  atomic.Int64 // when a byte came or went, in nanoseconds of time.Since(began)
	began  time.Time
	busy   atomic.Int64 // calls that wait for the server
	silent atomic.Bool  // it was ended for being so

	ended chan struct{} // closed when the process is gone
}

// dialSFTP starts ssh. What ssh says becomes ErrDenied or ErrUnreachable.
func dialSFTP(ctx context.Context, to sshTarget, opts Options) (*sftpConn, error) {
	seconds := max(1, int(opts.Stall/time.Second))
	args := append([]string{}, opts.SSH[1:]...)
	args = append(args, "-o", "BatchMode=yes", "-o", "ConnectTimeout="+strconv.Itoa(seconds),
		"-o", "ServerAliveInterval="+strconv.Itoa(max(1, seconds/3)), "-o", "ServerAliveCountMax=3",
		"-o", "ForwardAgent=no", "-o", "ForwardX11=no", "-o", "ClearAllForwardings=yes", "-o", "PermitLocalCommand=no")
	for _, file := range opts.Identities {
		args = append(args, "-i", file)
	}
	if to.port != "" {
		args = append(args, "-p", to.port)
	}
	if to.user != "" {
		args = append(args, "-l", to.user)
	}
	args = append(args, "-s", "--", to.host, "sftp")

	//nolint:gosec,noctx // the connection outlives the call that opened it
	cmd := exec.Command(opts.SSH[0], args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is kami's, which clears up
	c := &sftpConn{cmd: cmd, stderr: &tail{}, stall: opts.Stall, began: time.Now(), ended: make(chan struct{})}
	cmd.Stderr = c.stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		// Not wrapped: what is not there is no object.
		return nil, errors.New("ssh does not start; it is in the Debian package openssh-client: " + err.Error())
	}
	err = c.run(ctx, func() (err error) {
		c.Client, err = sftp.NewClientPipe(countedReader{out, c}, countedWriter{in, c}, sftp.UseConcurrentWrites(true), sftp.MaxConcurrentRequestsPerFile(sftpRequests))
		return err
	})
	go func() {
		if c.Client != nil {
			c.Wait() //nolint:errcheck // it ends when the connection does, and why is asked elsewhere
		}
		in.Close()
		cmd.Wait() //nolint:errcheck // as above
		close(c.ended)
	}()
	if err != nil {
		c.kill()
		<-c.ended
		return nil, c.refusal(ctx, err)
	}
	return c, nil
}

// refusal is why no connection came to be.
func (c *sftpConn) refusal(ctx context.Context, err error) error {
	text := c.stderr.String()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case strings.Contains(text, "Host key verification failed"), strings.Contains(text, "REMOTE HOST IDENTIFICATION HAS CHANGED"):
		return fmt.Errorf("%w: ssh does not know the host's key; connect once by hand with ssh and compare the key: %s", ErrDenied, text)
	case strings.Contains(text, "Permission denied"):
		return fmt.Errorf("%w: ssh could not log in without asking; it needs a key that the host accepts, in its agent or named in ~/.ssh/config: %s", ErrDenied, text)
	case strings.Contains(text, "Bad configuration option"), strings.Contains(text, "terminating,"):
		return fmt.Errorf("ssh does not accept its configuration: %s", text)
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, c.whyBroken(err))
}

// whyBroken is the cause of a broken connection, with what ssh said of it.
func (c *sftpConn) whyBroken(err error) error {
	if c.silent.Load() {
		return &stallError{c.stall}
	}
	if text := c.stderr.String(); text != "" {
		return fmt.Errorf("ssh: %s", strings.TrimPrefix(text, "ssh: "))
	}
	return fmt.Errorf("the connection of ssh ended: %w", err)
}

// run calls fn, which talks to the server, and returns when it does. A server
// that is silent for the stall limit while fn waits loses the connection, and so
// does one that is busy when ctx ends: that is the only way to have fn end.
func (c *sftpConn) run(ctx context.Context, fn func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.busy.Add(1)
	defer c.busy.Add(-1)
	c.move()
	done := make(chan struct{})
	defer close(done)
	go c.watch(ctx, done)
	return fn()
}

// ctxGrace is how long a call may go on when its context has ended, for an
// answer that is on its way: the connection is others' too.
const ctxGrace = time.Second

func (c *sftpConn) watch(ctx context.Context, done <-chan struct{}) {
	tick := time.NewTicker(max(c.stall/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-ctx.Done():
			select {
			case <-done:
			case <-time.After(ctxGrace):
				c.kill()
			}
			return
		case <-tick.C:
			if time.Since(c.began)-time.Duration(c.moved.Load()) > c.stall {
				c.silent.Store(true)
				c.kill()
				return
			}
		}
	}
}

func (c *sftpConn) move() { c.moved.Store(int64(time.Since(c.began))) }

// kill ends ssh and what it started to connect.
func (c *sftpConn) kill() {
	select {
	case <-c.ended: // the number may be another's by now
	default:
		syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) //nolint:errcheck // it is gone, then
	}
}

// close ends the connection.
func (c *sftpConn) close() {
	go func() {
		select {
		case <-c.ended:
		case <-time.After(ctxGrace):
			c.kill()
		}
	}()
	c.Client.Close()
	<-c.ended
}

// lost says whether the connection is gone.
func (c *sftpConn) lost() bool {
	select {
	case <-c.ended:
		return true
	default:
		return c.silent.Load()
	}
}

// broke says whether err is that of a connection which is gone.
func (c *sftpConn) broke(err error) bool {
	return errors.Is(err, sftp.ErrSSHFxConnectionLost) || errors.Is(err, sftp.ErrSSHFxNoConnection) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) || c.lost()
}

// underFile says whether a part of name before its last is a file in dir.
func (c *sftpConn) underFile(dir, name string) bool {
	for parent := path.Dir(name); parent != "."; parent = path.Dir(parent) {
		if st, err := c.Lstat(path.Join(dir, parent)); err == nil && !st.IsDir() {
			return true
		}
	}
	return false
}

// countedReader and countedWriter note when bytes move.
type (
	countedReader struct {
		io.Reader
		c *sftpConn
	}
	countedWriter struct {
		io.WriteCloser
		c *sftpConn
	}
)

func (r countedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.c.move()
	return n, err
}

func (w countedWriter) Write(p []byte) (int, error) {
	n, err := w.WriteCloser.Write(p)
	w.c.move()
	return n, err
}

// tail keeps the end of what ssh says, for an error.
type tail struct {
	mu sync.Mutex
	b  []byte
}

// tailBytes is how much of it.
const tailBytes = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > tailBytes {
		t.b = bytes.Clone(t.b[len(t.b)-tailBytes:])
	}
	return len(p), nil
}

// String is what was said, on one line and without what a terminal would obey.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	clean := strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r == 0x7f {
			return -1
		}
		return r
	}, string(t.b))
	return strings.Join(strings.FieldsFunc(clean, func(r rune) bool { return r == '\n' }), "; ")
}
