package qemu

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"
	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/ami"
)

// Console opens the guest's serial console, both ways. QEMU lets one in at a time:
// another one is told so.
func (d *Driver) Console(ctx context.Context, id ami.InstanceID) (io.ReadWriteCloser, error) {
	r := d.run(id)
	m, err := r.talk(ctx, statusSock)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", id, err)
	}
	defer m.Close()
	all, err := raw.NewMonitor(m.Within(ctx)).QueryChardev()
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if c.Label == "console" && !strings.HasPrefix(c.Filename, "disconnected:") {
			return nil, fmt.Errorf("the console of %s is in use by another command", id)
		}
	}
	conn, err := dial(ctx, r.path(consoleSock))
	if err != nil {
		return nil, err
	}
	return console{conn.(*net.UnixConn)}, nil
}

type console struct{ *net.UnixConn }

// typeLimit bounds how long a guest may take to read what was typed last.
const typeLimit = 2 * time.Second

// Close closes the console when the guest has read what was typed: QEMU gives it
// that by a few bytes at a time, and drops the rest when it is hung up on.
func (c console) Close() error {
	for end := time.Now().Add(typeLimit); c.unread() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	return c.UnixConn.Close()
}

// unread is what was written and not read yet, in bytes of the kernel's.
func (c console) unread() (n int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	if cerr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); cerr != nil || err != nil {
		return 0
	}
	return n
}
