package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"
	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/hypervisor/qmp"
	"github.com/kamivm/kami/pkg/machine"
)

// startLimit bounds the wait for a QEMU that neither starts nor fails.
const startLimit = time.Minute

// Start runs the guest's QEMU and returns when that has its devices and the guest
// goes. A command that is killed meanwhile leaves nothing or a guest that runs.
func (d *Driver) Start(ctx context.Context, spec machine.Spec) (err error) {
	h, err := d.lookAt(spec)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r := d.run(spec.ID)
	alive, err := r.claim()
	if err != nil {
		return fmt.Errorf("starting %s: %w", spec.ID, err)
	}
	defer alive.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, r.remove())
		}
	}()
	c, err := newCommand(spec, h, r)
	if err != nil {
		return err
	}
	if h.firmware.code != "" {
		if err := h.firmware.makeStore(spec.Firmware.NVRAM); err != nil {
			return fmt.Errorf("making the UEFI variables: %w", err)
		}
	}
	p, err := c.run(r, alive, spec.Console.Log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("QEMU has not started within %v", startLimit))
	defer cancel()
	if err := p.started(ctx, r, c.keys); err != nil {
		return p.failed(ctx, r, err)
	}
	return nil
}

// process is a QEMU that this process has started.
type process struct {
	*os.Process
	ended chan struct{} // closed when it has, and its end has been noted
}

// run starts the process, in a session of its own: it outlives this one, and what
// is typed at a terminal does not reach it.
func (c *command) run(r runFolder, alive *os.File, log string) (p process, err error) {
	// QEMU would make it for all to read.
	console, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return p, err
	}
	console.Close()
	said, err := os.OpenFile(r.path(stderrFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return p, err
	}
	files := []*os.File{alive}
	defer func() {
		said.Close()
		for _, f := range files[1:] {
			f.Close()
		}
	}()
	for _, name := range c.sockets {
		f, err := listen(r.path(name))
		if err != nil {
			return p, fmt.Errorf("making the socket %s: %w", name, err)
		}
		files = append(files, f)
	}
	for _, key := range c.keys {
		f, err := pipeOf(key.Passphrase)
		if err != nil {
			return p, fmt.Errorf("handing over a key: %w", err)
		}
		files = append(files, f)
	}
	if c.tpm != "" {
		f, err := startTPM(c.tpm, said)
		if err != nil {
			return p, err
		}
		files = append(files, f)
	}
	closeOthersOnExec()
	argv := c.argv()
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // it outlives every context
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr, cmd.Dir = files, said, said, "/"
	cmd.Env = environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return p, fmt.Errorf("running QEMU: %w", err)
	}
	p = process{cmd.Process, make(chan struct{})}
	go func() {
		_ = cmd.Wait() // what it has come to is told by what it said
		close(p.ended)
	}()
	return p, nil
}

// environment is what a guest's processes are told: what else this one was is no
// guest's business.
func environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
}

// pipeOf is a pipe out of which secret can be read, once.
func pipeOf(secret []byte) (*os.File, error) {
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if _, err := in.Write(secret); err != nil { // it has room for more than any passphrase
		out.Close()
		return nil, err
	}
	return out, nil
}

// closeOthersOnExec keeps what this process was started with - a lock of a shell's,
// a pipe of make's - from living on in every guest. Go's own files are so already.
func closeOthersOnExec() { _ = unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC) }

// started waits until QEMU answers, which it does when all its devices are there,
// and has it forget the keys: its disks are open.
func (p process) started(ctx context.Context, r runFolder, keys []machine.Key) error {
	conn, err := dial(ctx, r.path(monitorSock))
	if err != nil {
		return err
	}
	m, err := qmp.New(ctx, conn)
	if err != nil {
		return err
	}
	defer m.Close()
	for _, key := range keys {
		if err := raw.NewMonitor(m.Within(ctx)).ObjectDel(secretID(key)); err != nil {
			return fmt.Errorf("having QEMU forget a key: %w", err)
		}
	}
	return context.Cause(ctx)
}

// failed ends a process that did not start, and says why it did not.
func (p process) failed(ctx context.Context, r runFolder, err error) error {
	if ctx.Err() == nil { // it is about to end by itself, when it closes a connection
		select {
		case <-p.ended:
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
		}
	}
	_ = p.Kill() // unless it has ended
	<-p.ended
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if said := complaint(r.said()); said != "" {
		return errors.New(said)
	}
	return fmt.Errorf("QEMU ended: %w", err)
}

// complaint is what QEMU says is wrong, without its name and without warnings.
func complaint(said string) string {
	var lines []string
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if name, rest, ok := strings.Cut(line, ": "); ok && strings.HasPrefix(name, "qemu-system-") {
			line = rest
		}
		if line != "" && !strings.HasPrefix(line, "warning:") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}
