package bundle

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// place is where a file of a folder's tree is: under a name in a folder that is
// open, so that no link on the way is ever followed, whoever moves folders meanwhile.
type place struct {
	name string   // from the root, "." for the root
	dir  *os.File // what it is in, or is itself where base is "."
	base string
	st   unix.Stat_t // of itself and not of what it links to
}

func (p *place) kind() uint32 { return p.st.Mode & unix.S_IFMT }

func (p *place) fault(op string, err error) error {
	return &os.PathError{Op: op, Path: path.Join(p.dir.Name(), p.base), Err: err}
}

// open opens a regular file, or a folder with the flag for one.
func (p *place) open(flag int) (*os.File, error) {
	fd, err := openIn(int(p.dir.Fd()), p.base, flag)
	if err != nil {
		return nil, p.fault("open", err)
	}
	return os.NewFile(uintptr(fd), path.Join(p.dir.Name(), p.base)), nil
}

func openIn(dir int, base string, flags int) (fd int, err error) {
	for {
		fd, err = unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|flags, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// head returns its first bytes, at most peeked.
func (p *place) head() ([]byte, error) {
	f, err := p.open(unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, peeked))
}

// target is where a symbolic link points.
func (p *place) target() (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(p.dir.Fd()), p.base, b)
	if err != nil {
		return "", p.fault("readlink", err)
	}
	return string(b[:n]), nil
}

// xattrs reads its extended attributes.
func (p *place) xattrs() (map[string]string, error) {
	at := "/proc/self/fd/" + strconv.Itoa(int(p.dir.Fd())) + "/" + p.base
	var few [1024]byte
	names := few[:]
	n, err := unix.Llistxattr(at, names)
	if errors.Is(err, unix.ERANGE) {
		names = make([]byte, 64<<10) // all that Linux gives
		n, err = unix.Llistxattr(at, names)
	}
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, p.fault("listxattr", err)
	}
	all := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(at, name, value)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			continue
		}
		if err != nil {
			return nil, p.fault("getxattr", err)
		}
		all[name] = string(value[:n])
	}
	return all, nil
}

// errSkipped is what a walker's fn returns for a folder not to be gone into.
var errSkipped = errors.New("skipped")

// walk calls fn with all that is under a folder, each folder before what is in it,
// in the order of names.
func walk(root string, fn func(*place) error) error {
	dir, err := os.OpenFile(root, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	p := &place{name: ".", dir: dir, base: "."}
	if err := unix.Fstat(int(dir.Fd()), &p.st); err != nil {
		return p.fault("stat", err)
	}
	if err := fn(p); err != nil {
		return err
	}
	return walkIn(dir, ".", fn)
}

func walkIn(dir *os.File, name string, fn func(*place) error) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, base := range names {
		p := &place{name: path.Join(name, base), dir: dir, base: base}
		err := unix.Fstatat(int(dir.Fd()), base, &p.st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue // it went meanwhile
		}
		if err != nil {
			return p.fault("stat", err)
		}
		if err := fn(p); errors.Is(err, errSkipped) {
			continue
		} else if err != nil {
			return err
		}
		if p.kind() == unix.S_IFDIR {
			if err := p.into(fn); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *place) into(fn func(*place) error) error {
	sub, err := p.open(unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer sub.Close()
	return walkIn(sub, p.name, fn)
}

// folders are those of a tree that lead to the file that was opened last: the next
// one is near.
type folders struct {
	root string
	way  []string
	fds  []int // the root's, and one for each of way
}

func openFolders(root string) (*folders, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	return &folders{root: root, fds: []int{fd}}, nil
}

// open opens a file for reading, by its clean path from the root. No link is
// followed on the way.
func (d *folders) open(name string) (int, error) {
	dir, base := path.Split(name)
	var way []string
	if dir != "" {
		way = strings.Split(strings.TrimSuffix(dir, "/"), "/")
	}
	same := 0
	for same < len(way) && same < len(d.way) && way[same] == d.way[same] {
		same++
	}
	d.keep(same)
	for _, part := range way[same:] {
		fd, err := openIn(d.fds[len(d.fds)-1], part, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return 0, err
		}
		d.way, d.fds = append(d.way, part), append(d.fds, fd)
	}
	return openIn(d.fds[len(d.fds)-1], base, unix.O_NONBLOCK)
}

// keep closes all but the first n folders under the root.
func (d *folders) keep(n int) {
	for _, fd := range d.fds[n+1:] {
		unix.Close(fd) // nothing was written
	}
	d.way, d.fds = d.way[:n], d.fds[:n+1]
}

// Close closes all.
func (d *folders) Close() error {
	d.keep(0)
	if err := unix.Close(d.fds[0]); err != nil {
		return fmt.Errorf("closing %s: %w", d.root, err)
	}
	return nil
}
