package object_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/object/objecttest"
)

func TestSFTP(t *testing.T) {
	host, opts := objecttest.StartSSH(t), quick()
	opts.SSH = host.Client
	objecttest.Run(t, func(t *testing.T) func() object.Store { return opener(t, host.URL(t), opts) })
}

// A server without OpenSSH's extensions.
func TestSFTPBare(t *testing.T) {
	server, opts := objecttest.SFTPProgram(t), quick()
	opts.SSH = []string{"sh", "-c", "exec " + server + " -e -P posix-rename,hardlink,fsync", "sh"}
	objecttest.Run(t, func(t *testing.T) func() object.Store {
		return opener(t, "sftp://bare"+t.TempDir()+"/store", opts)
	})
}

// One connection is enough, and an idle one is no stalled one.
func TestSFTPConnection(t *testing.T) {
	host := objecttest.StartSSH(t)
	opts := object.Options{Stall: 300 * time.Millisecond, Attempts: 2, SSH: host.Client}
	s := opener(t, host.URL(t), opts)()
	for range 3 {
		must(t, s.Put(t.Context(), "x", strings.NewReader("x"), 1))
		if n := host.Connections(); n != 1 {
			t.Errorf("got %d connections, want 1", n)
		}
		time.Sleep(400 * time.Millisecond)
	}
	must(t, s.Close())
	for range 100 {
		if host.Connections() == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if n := host.Connections(); n != 0 {
		t.Errorf("after Close: got %d connections, want none", n)
	}
}

// What was under way when a connection broke goes on over the next one.
func TestSFTPBreaks(t *testing.T) {
	host, opts := objecttest.StartSSH(t), quick()
	opts.SSH = host.Client
	s := opener(t, host.URL(t), opts)()
	data := noise(20 << 20)
	breaking := &breaks{Reader: bytes.NewReader(data), at: 8 << 20, do: host.Break}
	must(t, s.Put(t.Context(), "x", breaking, int64(len(data))))
	breaking = &breaks{Reader: bytes.NewReader(data), at: 8 << 20, do: host.Break}
	must(t, s.PutNew(t.Context(), "y", breaking, int64(len(data))))
	for _, name := range []string{"x", "y"} {
		body, _, err := s.Get(t.Context(), name)
		must(t, err)
		var got bytes.Buffer
		for i := 1; ; i++ {
			if _, err = io.CopyN(&got, body, 3<<20); err != nil {
				break
			}
			host.Break()
		}
		body.Close()
		if !errors.Is(err, io.EOF) || !bytes.Equal(got.Bytes(), data) {
			t.Errorf("%s: got %d other bytes, %v", name, got.Len(), err)
		}
	}
	host.Break()
	if _, err := s.Stat(t.Context(), "x"); err != nil {
		t.Error(err)
	}
}

// breaks is a reader that does something when it has been read so far, once.
type breaks struct {
	*bytes.Reader
	at int64
	do func()
}

func (b *breaks) ReadAt(p []byte, at int64) (int, error) {
	if b.do != nil && at >= b.at {
		b.do()
		b.do = nil
	}
	return b.Reader.ReadAt(p, at)
}

// A server that says nothing any more.
func TestSFTPSilence(t *testing.T) {
	for name, command := range map[string]string{
		"from the beginning": "exec sleep 60",
		// Its greeting, and then nothing.
		"after the greeting": `printf '\0\0\0\005\002\0\0\0\003'; exec sleep 60`,
		"noise":              `printf 'Welcome to this host!!'; exec sleep 60`,
	} {
		opts := object.Options{Stall: 300 * time.Millisecond, Attempts: 3, Backoff: 10 * time.Millisecond, SSH: []string{"sh", "-c", command, "sh"}}
		s := opener(t, "sftp://host/dir", opts)()
		start := time.Now()
		err := s.Put(t.Context(), "x", strings.NewReader("x"), 1)
		if !errors.Is(err, object.ErrUnreachable) || time.Since(start) > 10*time.Second {
			t.Errorf("%s: got %v after %s, want ErrUnreachable", name, err, time.Since(start))
		}
		if name == "noise" { // that fails at once
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		start = time.Now()
		if _, err = s.Stat(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
			t.Errorf("%s: got %v after %s, want the end of the context", name, err, time.Since(start))
		}
		cancel()
	}
}

func TestSFTPRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*objecttest.SSHServer)
		text   string
	}{
		{"another host key", func(h *objecttest.SSHServer) { h.ForgetHost(t) }, "host's key"},
		{"no key", func(h *objecttest.SSHServer) { h.ForgetKey(t) }, "log in"},
	} {
		host, opts := objecttest.StartSSH(t), quick()
		tt.change(host)
		opts.SSH = host.Client
		s := opener(t, host.URL(t), opts)()
		_, err := s.Stat(t.Context(), "x")
		if !errors.Is(err, object.ErrDenied) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got %v, want ErrDenied with %q", tt.name, err, tt.text)
		}
		t.Log(err)
	}
	s := opener(t, "sftp://host/dir", object.Options{SSH: []string{"/no/such/ssh"}})()
	if _, err := s.Stat(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "openssh-client") || errors.Is(err, object.ErrNotFound) {
		t.Errorf("no ssh: got %v", err)
	}
}

// The key can be named.
func TestSFTPIdentity(t *testing.T) {
	host := objecttest.StartSSH(t)
	opts := quick()
	key := filepath.Join(t.TempDir(), "a key")
	must(t, os.Rename(host.Identity(), key))
	opts.SSH, opts.Identities = host.Client, []string{key}
	must(t, opener(t, host.URL(t), opts)().Put(t.Context(), "x", strings.NewReader("x"), 1))
}
