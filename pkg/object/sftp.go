package object

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"
)

// sftpStore is a store in a directory of another host: each object is a file of
// its name. The user's ssh connects, so that his configuration, agent, jump hosts
// and known hosts are in force.
type sftpStore struct {
	target    sshTarget
	dir, url  string // dir is relative to the user's home if it does not begin with a slash
	opts      Options
	firstTemp sync.Once

	mu   sync.Mutex
	conn *sftpConn // nil for none
}

var _ Store = (*sftpStore)(nil)

func openSFTP(u *url.URL, opts Options) (Store, error) {
	if err := onlyParameters(u); err != nil {
		return nil, err
	}
	s := &sftpStore{target: sshTarget{user: u.User.Username(), host: u.Hostname(), port: u.Port()}, opts: opts, url: u.String()}
	switch {
	case s.target.host == "":
		return nil, badURL(u, "it names no host: sftp://USER@HOST/DIRECTORY")
	case strings.HasPrefix(s.target.host, "-") || strings.HasPrefix(s.target.user, "-"): // an option of ssh
		return nil, badURL(u, "its host and user cannot begin with a dash")
	case strings.Trim(u.Path, "/") == "":
		return nil, badURL(u, "it names no directory: sftp://%s/DIRECTORY", u.Host)
	case strings.ContainsAny(u.Path, "\x00\n"):
		return nil, badURL(u, "its directory has a control character")
	}
	s.dir = path.Clean(u.Path)
	if s.dir == "/~" {
		s.dir = "."
	} else if home, ok := strings.CutPrefix(s.dir, "/~/"); ok {
		s.dir = home
	}
	return s, nil
}

func (s *sftpStore) URL() string { return s.url }

// Close ends the connection.
func (s *sftpStore) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.close()
		s.conn = nil
	}
	return nil
}

// connected returns the connection, a new one if there is none that lives.
func (s *sftpStore) connected(ctx context.Context) (*sftpConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil && s.conn.lost() {
		s.conn.close()
		s.conn = nil
	}
	if s.conn == nil {
		conn, err := dialSFTP(ctx, s.target, s.opts)
		if err != nil {
			return nil, err
		}
		s.conn = conn
	}
	return s.conn, nil
}

// do runs a request, again on a new connection where one breaks. request must
// come to the same when it was begun before.
func (s *sftpStore) do(ctx context.Context, what string, request func(*sftpConn) error) error {
	for try := 1; ; try++ {
		conn, err := s.connected(ctx)
		if err == nil {
			err = conn.run(ctx, func() error { return request(conn) })
			if err == nil || !conn.broke(err) {
				return s.told(ctx, err, what)
			}
			err = fmt.Errorf("%w: %w", ErrUnreachable, conn.whyBroken(err))
		}
		if ctx.Err() != nil || !errors.Is(err, ErrUnreachable) || try >= s.opts.Attempts {
			return s.told(ctx, err, what)
		}
		if err := pause(ctx, try, s.opts.Backoff); err != nil {
			return err
		}
	}
}

// told gives what a server says of an object the sentinels of this package.
func (s *sftpStore) told(ctx context.Context, err error, what string) error {
	if what == "." {
		what = "the directory"
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s in %s: %w", what, s.url, context.Cause(ctx))
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s in %s", ErrNotFound, what, s.url)
	case errors.Is(err, ErrExists), errors.Is(err, ErrBadName), errors.Is(err, ErrDenied), errors.Is(err, ErrUnreachable):
		return fmt.Errorf("%s in %s: %w", what, s.url, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %s in %s", ErrDenied, what, s.url)
	}
	return fmt.Errorf("%s in %s: %w", what, s.url, err)
}

func (s *sftpStore) path(name string) string { return path.Join(s.dir, name) }

// Stat describes an object.
func (s *sftpStore) Stat(ctx context.Context, name string) (Info, error) {
	if err := CheckName(name); err != nil {
		return Info{}, err
	}
	var info Info
	err := s.do(ctx, name, func(c *sftpConn) (err error) {
		info, err = s.stat(c, name)
		return err
	})
	return info, err
}

func (s *sftpStore) stat(c *sftpConn, name string) (Info, error) {
	st, err := c.Lstat(s.path(name))
	if err != nil {
		if !errors.Is(err, fs.ErrPermission) && isFailure(err) && c.underFile(s.dir, name) {
			err = fs.ErrNotExist // some servers have no word for "not a directory"
		}
		return Info{}, err
	}
	if !st.Mode().IsRegular() {
		return Info{}, fs.ErrNotExist
	}
	return dirInfo(name, st), nil
}

// isFailure says whether a server only said that something failed.
func isFailure(err error) bool {
	var status *sftp.StatusError
	return errors.As(err, &status) && status.FxCode() == sftp.ErrSSHFxFailure
}

// Get opens an object.
func (s *sftpStore) Get(ctx context.Context, name string) (io.ReadCloser, Info, error) {
	info, err := s.Stat(ctx, name)
	if err != nil {
		return nil, Info{}, err
	}
	open := func(from int64) (io.ReadCloser, error) {
		body := &sftpBody{ctx: ctx, at: from}
		err := s.do(ctx, name, func(c *sftpConn) error {
			now, err := s.stat(c, name)
			if err == nil && (now.Size != info.Size || !now.Modified.Equal(info.Modified)) {
				err = errors.New("it changed while it was read")
			}
			if err != nil {
				return err
			}
			body.conn = c
			body.f, err = c.Open(s.path(name))
			return err
		})
		if err != nil {
			return nil, err
		}
		return body, nil
	}
	body, err := open(0)
	if err != nil {
		return nil, Info{}, err
	}
	return &resumed{
		ctx: ctx, opts: s.opts, body: body, size: info.Size, open: open,
		told: func(err error) error { return s.told(ctx, err, name) },
	}, info, nil
}

// readAhead is how much of an object is asked for at once, in bytes: many
// requests of the protocol, which are under way together.
const readAhead = 1 << 20

// sftpBody reads a file of one connection.
type sftpBody struct {
	ctx  context.Context //nolint:containedctx // that of the Get which it is the body of
	conn *sftpConn
	f    *sftp.File
	at   int64
	buf  []byte
	left []byte // of buf
	err  error  // after left
}

func (b *sftpBody) Read(p []byte) (int, error) {
	if len(b.left) == 0 && b.err == nil {
		if b.buf == nil {
			b.buf = make([]byte, readAhead)
		}
		var n int
		b.err = b.conn.run(b.ctx, func() (err error) {
			n, err = b.f.ReadAt(b.buf, b.at)
			return err
		})
		if b.err != nil && b.conn.broke(b.err) {
			b.err = fmt.Errorf("%w: %w", ErrUnreachable, b.conn.whyBroken(b.err))
		}
		b.left, b.at = b.buf[:n], b.at+int64(n)
	}
	if len(b.left) == 0 {
		return 0, b.err
	}
	n := copy(p, b.left)
	b.left = b.left[n:]
	return n, nil
}

func (b *sftpBody) Close() error {
	return b.conn.run(context.WithoutCancel(b.ctx), b.f.Close)
}

// List calls fn with the objects whose names begin with prefix.
func (s *sftpStore) List(ctx context.Context, prefix string, fn func(Info) error) error {
	if err := checkPrefix(prefix); err != nil {
		return err
	}
	return listTree(ctx, sftpTree{s}, path.Dir(prefix+"x"), prefix, fn)
}

type sftpTree struct{ *sftpStore }

// ahead: a folder costs three ways to the server and back.
func (t sftpTree) ahead() int { return parallelStats }

func (t sftpTree) entries(ctx context.Context, dir string) (infos []fs.FileInfo, err error) {
	err = t.do(ctx, dir, func(c *sftpConn) (err error) {
		infos, err = c.ReadDirContext(ctx, t.path(dir))
		if err != nil && isFailure(err) && c.underFile(t.dir, dir+"/x") {
			err = fs.ErrNotExist
		}
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return infos, err
}

// Delete deletes an object, and the folders that it was the last in.
func (s *sftpStore) Delete(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	err := s.do(ctx, name, func(c *sftpConn) error {
		_, err := s.stat(c, name)
		if err == nil {
			err = c.Remove(s.path(name))
		}
		if err != nil {
			return err
		}
		for dir := path.Dir(name); dir != "." && c.RemoveDirectory(s.path(dir)) == nil; { // fails for one that has more
			dir = path.Dir(dir)
		}
		return nil
	})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Times of files that nobody writes any more are older than this.
const abandonedTemp = 48 * time.Hour

// sweep removes what killed processes left, by the server's clock, of which now
// is a time.
func (s *sftpStore) sweep(c *sftpConn, now time.Time) {
	entries, err := c.ReadDir(s.path(reserved))
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.Mode().IsRegular() && now.Sub(e.ModTime()) > abandonedTemp {
			if err := c.Remove(path.Join(s.path(reserved), e.Name())); errors.Is(err, os.ErrPermission) {
				return
			}
		}
	}
}
