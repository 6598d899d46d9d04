package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A unix socket's path has at most 107 bytes, by which hardly any home would do.
// So its folder is opened, and the kernel's name for that stands in its place.

// inFolder calls fn with a short path for the file at path.
func inFolder(path string, fn func(short string) error) error {
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(fd)
	return fn(fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(path)))
}

// listen makes the socket at path and returns it as a file that listens.
func listen(path string) (f *os.File, err error) {
	err = inFolder(path, func(short string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		f, err = l.File()
		return errors.Join(err, l.Close())
	})
	return f, err
}

// dial connects to the socket at path. Where as many wait already as QEMU lets
// wait, it tries until ctx ends.
func dial(ctx context.Context, path string) (conn net.Conn, err error) {
	err = inFolder(path, func(short string) error {
		var d net.Dialer
		for {
			conn, err = d.DialContext(ctx, "unix", short)
			if !errors.Is(err, unix.EAGAIN) {
				return err
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	return conn, err
}
