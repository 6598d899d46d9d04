package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"
	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/qmp"
)

// with calls fn with a conversation with the guest's QEMU. A guest that ends
// meanwhile is not running.
func (d *Driver) with(ctx context.Context, id ami.InstanceID, fn func(*qmp.Monitor) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := d.run(id)
	m, err := r.talk(ctx, monitorSock)
	if err != nil {
		return fmt.Errorf("%s: %w", id, err)
	}
	defer m.Close()
	err = fn(m)
	if errors.Is(err, qmp.ErrEnded) {
		err = errors.Join(hypervisor.ErrNotRunning, err)
	}
	return err
}

// Shutdown presses the power button.
func (d *Driver) Shutdown(ctx context.Context, id ami.InstanceID) error {
	return d.with(ctx, id, func(m *qmp.Monitor) error { return raw.NewMonitor(m.Within(ctx)).SystemPowerdown() })
}

// Reboot asks the guest's agent to reboot; where none answers the guest is typed
// Ctrl-Alt-Del.
func (d *Driver) Reboot(ctx context.Context, id ami.InstanceID) error {
	err := d.agentDo(ctx, id, agentLimit, "guest-shutdown", map[string]string{"mode": "reboot"}, nil)
	if !errors.Is(err, hypervisor.ErrNoAgent) {
		return err
	}
	type key struct {
		Type string `json:"type"`
		Data string `json:"data"`
	}
	keys := map[string]any{"keys": []key{{"qcode", "ctrl"}, {"qcode", "alt"}, {"qcode", "delete"}}}
	return d.with(ctx, id, func(m *qmp.Monitor) error { return qmp.Ask(m.Within(ctx), "send-key", keys, nil) })
}

// Resume lets a paused guest go on.
func (d *Driver) Resume(ctx context.Context, id ami.InstanceID) error {
	return d.with(ctx, id, func(m *qmp.Monitor) error { return raw.NewMonitor(m.Within(ctx)).Cont() })
}

const (
	// quitLimit bounds how long QEMU may take to end by itself, which is better
	// than its death: what it knows of changed blocks is written to the disks.
	quitLimit = 15 * time.Second
	// killLimit bounds how long the kernel may take to end it.
	killLimit = 10 * time.Second
)

// Destroy ends the guest's QEMU and removes its run folder. A guest that is not
// there is no error.
func (d *Driver) Destroy(ctx context.Context, id ami.InstanceID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := d.run(id)
	if _, err := os.Lstat(string(r)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := r.end(ctx); err != nil {
		return fmt.Errorf("ending %s: %w", id, err)
	}
	alive, err := r.claim()
	if err != nil { // it was started anew just now
		return fmt.Errorf("ending %s: %w", id, err)
	}
	defer alive.Close()
	return r.remove()
}

// end ends the guest's QEMU, if it has one, and waits until it has.
func (r runFolder) end(ctx context.Context) error {
	on, err := r.isOn()
	if err != nil || !on {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, quitLimit)
	defer cancel()
	if m, err := r.talk(asking, monitorSock); err == nil {
		_ = raw.NewMonitor(m.Within(asking)).Quit() // it may end before it answers
		m.Close()
		if r.ended(asking) == nil {
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	killing, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	if err := r.kill(); err != nil {
		return err
	}
	return r.ended(killing)
}

// kill ends the process that holds the lock on the pid file. It cannot hit
// another one: what is killed is held on to before the lock is looked at again.
func (r runFolder) kill() error {
	pid, err := r.pid()
	if err != nil {
		return err
	}
	if pid <= 0 {
		if on, err := r.isOn(); err != nil || !on {
			return err
		}
		return errors.New("its process cannot be found: it is just starting, or of another pid namespace")
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("finding process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if again, err := r.pid(); err != nil || again != pid {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending process %d: %w", pid, err)
	}
	return nil
}

// ended waits until the guest's QEMU has ended.
func (r runFolder) ended(ctx context.Context) error {
	for {
		if on, err := r.isOn(); err != nil || !on {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("its QEMU does not end: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
