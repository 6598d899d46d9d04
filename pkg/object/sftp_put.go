package object

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path"
	"time"

	"github.com/kamivm/kami/pkg/internal/durable"
)

// Put writes an object.
func (s *sftpStore) Put(ctx context.Context, name string, r io.ReadSeeker, size int64) error {
	return s.put(ctx, name, r, size, (*sftpConn).replace)
}

// PutNew writes an object whose name is free.
func (s *sftpStore) PutNew(ctx context.Context, name string, r io.ReadSeeker, size int64) error {
	switch _, err := s.Stat(ctx, name); { // saves sending what is there
	case err == nil:
		return fmt.Errorf("%w: %s in %s", ErrExists, name, s.url)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	linked := false // it may have been, before a connection was lost
	return s.put(ctx, name, r, size, func(c *sftpConn, temp, to string) error {
		again := linked
		linked = true
		return c.placeNew(temp, to, again)
	})
}

// put writes r to a file of its own and has place move that to its name.
func (s *sftpStore) put(ctx context.Context, name string, r io.ReadSeeker, size int64, place func(c *sftpConn, temp, to string) error) error {
	if err := CheckName(name); err != nil {
		return err
	}
	body, err := bodyOf(r, size)
	if err != nil {
		return fmt.Errorf("%s for %s: %w", name, s.url, err)
	}
	temp := path.Join(s.path(reserved), rand.Text())
	defer s.discard(ctx, temp)
	written := false
	return s.do(ctx, name, func(c *sftpConn) error {
		if !written {
			if err := s.write(ctx, c, temp, body, size); err != nil {
				return err
			}
			written = true
		}
		durable.Step("object.written")
		return s.place(c, temp, name, place)
	})
}

// write makes the file temp of the whole of body.
func (s *sftpStore) write(ctx context.Context, c *sftpConn, temp string, body *source, size int64) error {
	section, err := body.section(0, size)
	if err != nil {
		return err
	}
	f, err := c.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if errors.Is(err, fs.ErrNotExist) {
		if err := c.MkdirAll(path.Dir(temp)); err != nil {
			return err
		}
		f, err = c.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	}
	if err != nil {
		return err
	}
	_, err = f.ReadFromWithConcurrency(patient{ctx, section}, sftpRequests)
	if berr := body.failed(); berr != nil {
		err = berr
	}
	if _, can := c.HasExtension("fsync@openssh.com"); can && err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	st, err := c.Stat(temp)
	if err != nil {
		return err
	}
	if st.Size() != size {
		return fmt.Errorf("the server kept %d of %d bytes", st.Size(), size)
	}
	s.firstTemp.Do(func() { s.sweep(c, st.ModTime()) })
	return nil
}

// place moves a whole file to its name, whose folder may have to be made, and
// may go with another object at the same time.
func (s *sftpStore) place(c *sftpConn, temp, name string, place func(c *sftpConn, temp, to string) error) error {
	to := s.path(name)
	err := place(c, temp, to)
	for try := 0; errors.Is(err, fs.ErrNotExist) && try < 10; try++ {
		if err = c.MkdirAll(path.Dir(to)); err == nil {
			err = place(c, temp, to)
		}
	}
	if err == nil || errors.Is(err, ErrExists) || c.broke(err) {
		return err
	}
	if st, serr := c.Lstat(to); serr == nil && st.IsDir() || c.underFile(s.dir, name) {
		return fmt.Errorf("%w: it cannot be beside the objects that are there, where a name is a file or a folder", ErrBadName)
	}
	return err
}

// discard removes a temporary file, if it is still there.
func (s *sftpStore) discard(ctx context.Context, temp string) {
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	if conn == nil || conn.lost() {
		return // a later process sweeps
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	defer cancel()
	//nolint:errcheck // most often it has been renamed
	conn.run(ctx, func() error { return conn.Remove(temp) })
}

// replace renames a file over what is there. Servers without OpenSSH's extension
// cannot do that in one step.
func (c *sftpConn) replace(temp, to string) error {
	if _, can := c.HasExtension("posix-rename@openssh.com"); can {
		err := c.PosixRename(temp, to)
		if errors.Is(err, fs.ErrNotExist) && c.isGone(temp) && !c.isGone(to) {
			return nil // it was renamed before the connection was lost
		}
		return err
	}
	err := c.Rename(temp, to)
	if err != nil && !c.isGone(to) && !c.isGone(temp) {
		if err := c.Remove(to); err != nil {
			return err
		}
		err = c.Rename(temp, to)
	}
	return err
}

func (c *sftpConn) isGone(file string) bool {
	_, err := c.Lstat(file)
	return errors.Is(err, fs.ErrNotExist)
}

// placeNew gives a file a name that must be free. again says that this was begun
// before, on a connection that was lost.
func (c *sftpConn) placeNew(temp, to string, again bool) error {
	var err error
	if _, can := c.HasExtension("hardlink@openssh.com"); can {
		err = c.Link(temp, to)
	} else {
		if !c.isGone(to) {
			return fmt.Errorf("%w: %s", ErrExists, to)
		}
		err = c.Rename(temp, to) // which fails, by the protocol, where to is there
	}
	if err == nil || c.broke(err) || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if st, serr := c.Lstat(to); serr != nil || st.IsDir() {
		return err
	}
	if again && c.isSame(temp, to) {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrExists, to)
}

// isSame says whether two names are of one file, which shows by the time that
// one is given. Later than now, so that nobody takes the file for an old one.
func (c *sftpConn) isSame(a, b string) bool {
	now := time.Now()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<20))
	if err != nil {
		return false
	}
	odd := now.Add(time.Duration(n.Int64()+60) * time.Second).Truncate(time.Second)
	if err := c.Chtimes(a, odd, odd); err != nil {
		return false
	}
	st, err := c.Lstat(b)
	same := err == nil && st.ModTime().Equal(odd)
	if err := c.Chtimes(a, now, now); err != nil {
		return false
	}
	return same
}
