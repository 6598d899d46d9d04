package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"
	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/qmp"
)

// runFolder is where the run files of one guest are.
type runFolder string

// The files of a run folder. QEMU is given all but the pid file as open files, so
// that no path is too long for a socket, and none is there that nobody holds.
const (
	aliveFile   = "alive"        // locked by QEMU from before it starts until its end
	pidFile     = "pid"          // written, locked and, at an orderly end, removed by QEMU
	stderrFile  = "stderr"       // what QEMU has said
	monitorSock = "monitor.sock" // for what changes the guest
	statusSock  = "status.sock"  // for what is only asked, so that it need not wait for that
	consoleSock = "console.sock"
	agentSock   = "agent.sock"
)

func (r runFolder) path(name string) string { return filepath.Join(string(r), name) }

// claim makes the folder empty but for the lock that says that the guest lives,
// and takes that. It returns ErrExists where a guest, or somebody who is starting
// it, has it. The lock is its open file's: it lives on in a process that is given
// that, and has ended when the last one has.
func (r runFolder) claim() (*os.File, error) {
	for {
		if err := os.MkdirAll(string(r), 0o700); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(r.path(aliveFile), os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, os.ErrNotExist) { // removed just now
			continue
		}
		if err != nil {
			return nil, err
		}
		whole := unix.Flock_t{Type: unix.F_WRLCK}
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &whole)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			f.Close()
			return nil, hypervisor.ErrExists
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
		}
		held, herr := f.Stat()
		named, nerr := os.Stat(f.Name())
		if herr != nil || nerr != nil || !os.SameFile(held, named) { // removed before it was locked
			f.Close()
			continue
		}
		return f, r.empty()
	}
}

// empty removes what an earlier run has left.
func (r runFolder) empty() error {
	entries, err := os.ReadDir(string(r))
	for _, e := range entries {
		if e.Name() != aliveFile {
			err = errors.Join(err, os.RemoveAll(r.path(e.Name())))
		}
	}
	return err
}

// remove removes the folder, and what it is in where that is empty then.
func (r runFolder) remove() error {
	if err := os.RemoveAll(string(r)); err != nil {
		return err
	}
	os.Remove(filepath.Dir(string(r)))
	return nil
}

// isOn says whether a guest's QEMU lives, or one that is just being started.
func (r runFolder) isOn() (bool, error) {
	holder, err := lockOn(r.path(aliveFile), unix.F_OFD_GETLK)
	return holder != nil, err
}

// pid is the number of the guest's QEMU, 0 where there is none: the kernel says
// who holds the lock on the pid file. What is written in that is of no interest.
func (r runFolder) pid() (int, error) {
	holder, err := lockOn(r.path(pidFile), unix.F_GETLK)
	if holder == nil {
		return 0, err
	}
	return int(holder.Pid), err
}

// lockOn returns the lock that keeps others from writing to a file, nil for none.
func lockOn(path string, question int) (*unix.Flock_t, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), question, &lock); err != nil {
		return nil, fmt.Errorf("looking for a lock on %s: %w", path, err)
	}
	if lock.Type == unix.F_UNLCK {
		return nil, nil
	}
	return &lock, nil
}

// atRest says how a guest ended that is not on. One whose QEMU came to its end by
// itself has taken its pid file with it; it also does when it is told to by a
// signal, as all processes are when a host shuts down, and says so.
func (r runFolder) atRest() (hypervisor.State, error) {
	if _, err := os.Lstat(r.path(aliveFile)); errors.Is(err, os.ErrNotExist) {
		return hypervisor.StateGone, nil
	}
	if _, err := os.Lstat(r.path(pidFile)); err == nil {
		return hypervisor.StateCrashed, nil
	}
	if strings.Contains(r.said(), "terminating on signal") {
		return hypervisor.StateCrashed, nil
	}
	return hypervisor.StateOff, nil
}

// saidLimit bounds how much of what QEMU has said is read, in bytes.
const saidLimit = 64 << 10

// said is the end of what QEMU has said.
func (r runFolder) said() string {
	f, err := os.Open(r.path(stderrFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(st.Size(), saidLimit))
	n, _ := f.ReadAt(b, st.Size()-int64(len(b)))
	return string(b[:n])
}

// status asks QEMU what the guest does, in its words.
func (r runFolder) status(ctx context.Context) (string, error) {
	m, err := r.talk(ctx, statusSock)
	if err != nil {
		return "", err
	}
	defer m.Close()
	info, err := raw.NewMonitor(m.Within(ctx)).QueryStatus()
	return info.Status.String(), err
}

// talkLimit bounds the wait for a QEMU to take up a conversation. It has one at a
// time on each of its monitors.
const talkLimit = 30 * time.Second

// talk opens a conversation on one of the monitors. It returns ErrNotRunning when
// the guest is not on.
func (r runFolder) talk(ctx context.Context, socket string) (*qmp.Monitor, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, talkLimit, fmt.Errorf("the guest's QEMU does not answer within %v", talkLimit))
	defer cancel()
	conn, err := dial(ctx, r.path(socket))
	if err == nil {
		var m *qmp.Monitor
		if m, err = qmp.New(ctx, conn); err == nil {
			return m, nil
		}
	}
	if on, oerr := r.isOn(); oerr != nil || !on {
		return nil, errors.Join(hypervisor.ErrNotRunning, oerr)
	}
	return nil, err
}
