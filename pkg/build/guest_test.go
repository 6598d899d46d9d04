package build

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/recipe"
)

// sshGuest is an ssh server that notes what it is asked to run and runs nothing.
type sshGuest struct {
	address string
	answer  func(command string) (output string, status uint32)

	mu       sync.Mutex
	commands []string
	inputs   []string
}

func newSSHGuest(t *testing.T, key Key, answer func(string) (string, uint32)) *sshGuest {
	t.Helper()
	host, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	conf := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		if string(k.Marshal()) != string(key.signer.PublicKey().Marshal()) {
			return nil, errors.New("another key")
		}
		return nil, nil
	}}
	conf.AddHostKey(host.signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	g := &sshGuest{address: l.Addr().String(), answer: answer}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go g.serve(conn, conf)
		}
	}()
	return g
}

func (g *sshGuest) serve(conn net.Conn, conf *ssh.ServerConfig) {
	_, channels, requests, err := ssh.NewServerConn(conn, conf)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		ch, reqs, err := c.Accept()
		if err != nil {
			return
		}
		go g.session(ch, reqs)
	}
}

func (g *sshGuest) session(ch ssh.Channel, reqs <-chan *ssh.Request) {
	defer ch.Close()
	for req := range reqs {
		if req.Type != "exec" {
			req.Reply(false, nil)
			continue
		}
		req.Reply(true, nil)
		command := string(req.Payload[4:])
		input, _ := io.ReadAll(ch)
		g.mu.Lock()
		g.commands, g.inputs = append(g.commands, command), append(g.inputs, string(input))
		g.mu.Unlock()
		out, status := g.answer(command)
		io.WriteString(ch, out)
		ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
		return
	}
}

func webRecipe(t *testing.T) recipe.Recipe {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"index.html": "<p>hello", "setup.sh": "echo set up\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return recipe.Recipe{
		Name: "web", From: "debian-12", Dir: dir, Packages: []string{"nginx-light", "curl"}, Script: "setup.sh",
		Files: []recipe.File{
			{Path: "/var/www/it's.html", Source: "index.html"},
			{Path: "/usr/local/bin/hello", Content: "#!/bin/sh\n", Mode: "0755"},
		},
	}
}

func TestChangeOrder(t *testing.T) {
	for _, user := range []string{"root", "admin"} {
		t.Run(user, func(t *testing.T) {
			key, err := NewKey()
			if err != nil {
				t.Fatal(err)
			}
			g := newSSHGuest(t, key, func(string) (string, uint32) { return "", 0 })
			guest := Guest{Recipe: webRecipe(t), Address: g.address, User: user, Key: key, Progress: ami.NoProgress}
			if err := guest.Change(t.Context()); err != nil {
				t.Fatal(err)
			}
			// Each command has these words, and each was given this input.
			want := []struct{ words, input string }{
				{"cloud-init status --wait", ""},
				{"install -- nginx-light curl", ""},
				{`/var/www/it`, "<p>hello"},
				{"/usr/local/bin/hello", "#!/bin/sh\n"},
				{"sh -s", "echo set up\n"},
				{"ssh_host_", ""},
			}
			if len(g.commands) != len(want) {
				t.Fatalf("the guest ran %d commands, want %d: %q", len(g.commands), len(want), g.commands)
			}
			for i, w := range want {
				if !strings.Contains(g.commands[i], w.words) || g.inputs[i] != w.input {
					t.Errorf("command %d is %q with input %q, want %q with %q", i, g.commands[i], g.inputs[i], w.words, w.input)
				}
				if sudo := strings.HasPrefix(g.commands[i], "sudo -n sh -c "); sudo != (user != "root") {
					t.Errorf("command %d as %s: %q", i, user, g.commands[i])
				}
			}
			if !strings.Contains(g.commands[3], "chmod 0755") || !strings.Contains(g.commands[2], "chmod 0644") {
				t.Errorf("the files' modes: %q, %q", g.commands[2], g.commands[3])
			}
		})
	}
}

func TestChangeSaysWhatAFailedStepPrinted(t *testing.T) {
	for _, c := range []struct{ printed, want, output string }{
		{"E: Unable to fetch some archives\n", "installing nginx-light, curl: Process exited with status 100", "E: Unable to fetch some archives"},
		{"E: Unable to locate package curl\n", "packages[1]: curl: there is no such package in the package sources of debian-12", ""},
	} {
		key, err := NewKey()
		if err != nil {
			t.Fatal(err)
		}
		g := newSSHGuest(t, key, func(command string) (string, uint32) {
			if strings.Contains(command, "apt-get") {
				return c.printed, 100
			}
			return "", 0
		})
		err = Guest{Recipe: webRecipe(t), Address: g.address, User: "root", Key: key, Progress: ami.NoProgress}.Change(t.Context())
		if err == nil || err.Error() != c.want {
			t.Fatalf("Change: got error %v, want %s", err, c.want)
		}
		var step *StepError
		if errors.As(err, &step) && step.Output != c.output {
			t.Errorf("the step's output is %q, want %q", step.Output, c.output)
		}
		if len(g.commands) != 2 {
			t.Errorf("after the failure the guest ran on: %q", g.commands)
		}
	}
}

func TestChangeStopsWhenInterrupted(t *testing.T) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	hang := make(chan struct{})
	defer close(hang)
	g := newSSHGuest(t, key, func(string) (string, uint32) {
		cancel() // the first command never ends
		<-hang
		return "", 0
	})
	err = Guest{Recipe: webRecipe(t), Address: g.address, User: "root", Key: key, Progress: ami.NoProgress}.Change(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Change: %v, want context.Canceled", err)
	}
}

func TestChangeWithAKeyThatIsNotLetIn(t *testing.T) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	g := newSSHGuest(t, key, func(string) (string, uint32) { return "", 0 })
	// In life the guest is asked again for minutes.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err = Guest{Recipe: webRecipe(t), Address: g.address, User: "root", Key: other, Progress: ami.NoProgress}.Change(ctx)
	var step *StepError
	if !errors.As(err, &step) || step.Step != "logging in to the guest" {
		t.Errorf("Change: %v, want a failure to log in", err)
	}
	if len(g.commands) != 0 {
		t.Errorf("the guest ran %q for a key that it does not know", g.commands)
	}
}

func TestPublicKeyHasOneLine(t *testing.T) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	public, comment, _, rest, err := ssh.ParseAuthorizedKey([]byte(key.Public()))
	if err != nil || len(rest) > 0 || comment != "kami-build" || public.Type() != ssh.KeyAlgoED25519 {
		t.Errorf("Public() is %q: %v", key.Public(), err)
	}
}
