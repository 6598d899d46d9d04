package objecttest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
)

// SSHServer is an SSH host of this test, which has OpenSSH's sftp-server for the
// user that the test runs as, and lets in who has its key.
type SSHServer struct {
	Dir    string   // for stores
	Host   string   // the address's host and port
	Client []string // the command line of ssh that knows the host and has the key

	listener net.Listener
	config   *ssh.ServerConfig
	program  string
	tmp      string
	mu       sync.Mutex
	conns    map[net.Conn]bool
}

// SFTPProgram is the path of OpenSSH's sftp-server. Without it the test fails.
func SFTPProgram(t testing.TB) string {
	t.Helper()
	for _, p := range []string{ // where distributions have it
		"/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server", "/usr/libexec/sftp-server",
	} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Fatal("OpenSSH's sftp-server is not installed: hack/setup.sh installs it (Debian: openssh-sftp-server)")
	return ""
}

// StartSSH starts a host that ends with the test.
func StartSSH(t testing.TB) *SSHServer {
	t.Helper()
	s := &SSHServer{Dir: t.TempDir(), program: SFTPProgram(t), tmp: t.TempDir(), conns: map[net.Conn]bool{}}
	host, user := s.newKey(t, "host"), s.newKey(t, "user")
	s.config = &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(user.PublicKey().Marshal()) {
			return nil, fmt.Errorf("not the key of the user")
		}
		return nil, nil
	}}
	s.config.AddHostKey(host)
	var err error
	if s.listener, err = new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	s.Host = s.listener.Addr().String()
	port := s.listener.Addr().(*net.TCPAddr).Port
	known := fmt.Sprintf("[127.0.0.1]:%d %s", port, ssh.MarshalAuthorizedKey(host.PublicKey()))
	write(t, filepath.Join(s.tmp, "known_hosts"), known)
	write(t, filepath.Join(s.tmp, "config"), fmt.Sprintf(
		"UserKnownHostsFile \"%s\"\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\nIdentityFile \"%s\"\nIdentitiesOnly yes\nIdentityAgent none\nLogLevel ERROR\n",
		filepath.Join(s.tmp, "known_hosts"), filepath.Join(s.tmp, "user")))
	s.Client = []string{"ssh", "-F", filepath.Join(s.tmp, "config")}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				s.serve(conn)
			}()
		}
	}()
	t.Cleanup(func() {
		s.listener.Close()
		s.Break()
		wg.Wait()
	})
	return s
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *SSHServer) newKey(t testing.TB, name string) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, name)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(s.tmp, name), string(pem.EncodeToMemory(block)))
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// ForgetHost makes ssh not know the host.
func (s *SSHServer) ForgetHost(t testing.TB) { write(t, filepath.Join(s.tmp, "known_hosts"), "") }

// ForgetKey makes ssh have another key than the host accepts.
func (s *SSHServer) ForgetKey(t testing.TB) { s.newKey(t, "user") }

// Identity is the file of the key that the host lets in.
func (s *SSHServer) Identity() string { return filepath.Join(s.tmp, "user") }

// URL is the address of a store in a new folder of the host.
func (s *SSHServer) URL(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(s.Dir, "store-")
	if err != nil {
		t.Fatal(err)
	}
	return "sftp://tester@" + s.Host + dir + "/of objects"
}

// Break breaks all connections.
func (s *SSHServer) Break() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// Connections is how many there are.
func (s *SSHServer) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *SSHServer) serve(raw net.Conn) {
	s.mu.Lock()
	s.conns[raw] = true
	s.mu.Unlock()
	defer func() {
		raw.Close()
		s.mu.Lock()
		delete(s.conns, raw)
		s.mu.Unlock()
	}()
	conn, channels, requests, err := ssh.NewServerConn(raw, s.config)
	if err != nil {
		return
	}
	defer conn.Close()
	go func() {
		for r := range requests { // keep-alives
			_ = r.Reply(false, nil)
		}
	}()
	for c := range channels {
		if c.ChannelType() != "session" {
			_ = c.Reject(ssh.UnknownChannelType, "only sessions")
			continue
		}
		if ch, reqs, err := c.Accept(); err == nil {
			go s.session(ch, reqs)
		}
	}
}

func (s *SSHServer) session(ch ssh.Channel, requests <-chan *ssh.Request) {
	defer ch.Close()
	for r := range requests {
		if r.Type != "subsystem" || len(r.Payload) < 4 || string(r.Payload[4:]) != "sftp" {
			_ = r.Reply(r.Type == "env", nil)
			continue
		}
		cmd := exec.CommandContext(context.Background(), s.program, "-e")
		in, err := cmd.StdinPipe()
		if err != nil {
			return
		}
		cmd.Stdout, cmd.Stderr = ch, ch.Stderr()
		if err := cmd.Start(); err != nil {
			_ = r.Reply(false, nil)
			return
		}
		_ = r.Reply(true, nil)
		go func() {
			_, _ = io.Copy(in, ch)
			in.Close()
		}()
		_ = cmd.Wait()
		_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{0}))
		return
	}
}
