package build

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/recipe"
)

// Key is a key pair for the time of one build.
type Key struct{ signer ssh.Signer }

// NewKey makes a key pair.
func NewKey() (Key, error) {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return Key{}, err
	}
	signer, err := ssh.NewSignerFromKey(private)
	return Key{signer}, err
}

// Public is the key in the form of authorized_keys, with a comment.
func (k Key) Public() string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k.signer.PublicKey()))) + " kami-build"
}

// Guest is a booted guest that a recipe changes.
type Guest struct {
	Recipe   recipe.Recipe
	Address  string // host:port of its ssh server
	User     string
	Key      Key
	Progress ami.Progress
}

// Change installs a recipe's packages, puts its files in place and runs its
// script, all in the guest, and makes the guest forget who it is, so that what
// is launched from it becomes somebody of its own. It returns a *StepError with
// what the step printed, or a *PackageError.
func (g Guest) Change(ctx context.Context) error {
	client, err := g.dial(ctx)
	if err != nil {
		return &StepError{Step: "logging in to the guest", Err: err}
	}
	defer client.Close()
	// An interrupted build does not wait for the guest.
	stop := context.AfterFunc(ctx, func() { client.Close() })
	defer stop()
	r := g.Recipe
	packages := r.PackagesFor(r.Architecture)
	steps := []struct {
		name, command string
		stdin         func() (io.ReadCloser, error)
		skip          bool
	}{
		{name: "waiting for the guest's first boot to end", command: firstBoot},
		{name: "installing " + strings.Join(packages, ", "), command: install(packages), skip: len(packages) == 0},
	}
	for _, s := range steps {
		if !s.skip {
			if err := g.step(ctx, client, s.name, s.command, nil); err != nil {
				return packageFaults(err, r.Packages, "the package sources of "+r.From)
			}
		}
	}
	for _, f := range r.Files {
		if err := g.put(ctx, client, f); err != nil {
			return err
		}
	}
	if r.Script != "" {
		script, err := os.Open(filepath.Join(r.Dir, r.Script))
		if err != nil {
			return &StepError{Step: "reading " + r.Script, Err: err}
		}
		defer script.Close()
		if err := g.step(ctx, client, "running "+r.Script, "sh -s", script); err != nil {
			return err
		}
	}
	return g.step(ctx, client, "clearing the guest's identity", forget, nil)
}

// The guest's own preparations use the package manager too, and would be in the
// way; a guest without cloud-init has none.
const firstBoot = `if command -v cloud-init >/dev/null; then cloud-init status --wait >/dev/null || test $? = 2; fi`

func install(packages []string) string {
	return "export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8; apt-get -q -o Acquire::Retries=3 update && " +
		"apt-get -q -y --no-install-recommends -o Acquire::Retries=3 -o Dpkg::Options::=--force-confold install -- " +
		strings.Join(packages, " ") + " && apt-get clean && rm -rf /var/lib/apt/lists/*"
}

// What one guest is and no other: keys that let in and keys that prove who it
// is, its machine id, and what cloud-init remembers.
const forget = `set -u
if command -v cloud-init >/dev/null; then cloud-init clean --logs --seed; fi
rm -f /etc/ssh/ssh_host_* /etc/dropbear/*_host_key /var/lib/dbus/machine-id /var/lib/systemd/random-seed
[ ! -e /etc/machine-id ] || : >/etc/machine-id
rm -f /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys /root/.bash_history /home/*/.bash_history
sync`

func (g Guest) put(ctx context.Context, client *ssh.Client, f recipe.File) error {
	var content io.Reader = strings.NewReader(f.Content)
	if f.Source != "" {
		src, err := os.Open(filepath.Join(g.Recipe.Dir, f.Source))
		if err != nil {
			return &StepError{Step: "reading " + f.Source, Err: err}
		}
		defer src.Close()
		content = src
	}
	mode := f.Mode
	if mode == "" {
		mode = "0644"
	}
	path := quote(f.Path)
	command := fmt.Sprintf("mkdir -p %s && cat >%s && chmod %s %s", quote(filepath.Dir(f.Path)), path, mode, path)
	return g.step(ctx, client, "writing "+f.Path, command, content)
}

// step runs one command in the guest as root.
func (g Guest) step(ctx context.Context, client *ssh.Client, name, command string, stdin io.Reader) error {
	step := g.Progress.Step(name, 0)
	out, err := g.run(client, command, stdin)
	if ctx.Err() != nil {
		err = ctx.Err()
	} else if err != nil {
		err = &StepError{Step: name, Output: out, Err: err}
	}
	step.Done(err)
	return err
}

func (g Guest) run(client *ssh.Client, command string, stdin io.Reader) (output string, err error) {
	session, err := client.NewSession()
	if err != nil {
		return "", err
	}
	defer session.Close()
	var out tail
	session.Stdin, session.Stdout, session.Stderr = stdin, &out, &out
	command = "sh -c " + quote(command)
	if g.User != "root" {
		command = "sudo -n " + command
	}
	err = session.Run(command)
	return out.String(), err
}

// dialLimit bounds how long the guest is asked again to let us in: its ssh
// server answers before cloud-init has put the key in place.
const dialLimit = 3 * time.Minute

func (g Guest) dial(ctx context.Context) (*ssh.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	conf := &ssh.ClientConfig{
		User: g.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(g.Key.signer)}, Timeout: 10 * time.Second,
		// The guest has made its key a moment ago, and this address is the way
		// that its hypervisor on this host has made to it.
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), //nolint:gosec // see above
		// The newest first: a small server (dropbear) with a key of one kind
		// hangs up on a client that prefers others.
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256},
	}
	for {
		client, err := g.dialOnce(ctx, conf)
		if err == nil {
			return client, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(time.Second):
		}
	}
}

func (g Guest) dialOnce(ctx context.Context, conf *ssh.ClientConfig) (*ssh.Client, error) {
	d := net.Dialer{Timeout: conf.Timeout}
	conn, err := d.DialContext(ctx, "tcp", g.Address)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(2 * conf.Timeout)); err != nil {
		conn.Close()
		return nil, err
	}
	c, channels, requests, err := ssh.NewClientConn(conn, g.Address, conf)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		conn.Close()
		return nil, err
	}
	return ssh.NewClient(c, channels, requests), nil
}
