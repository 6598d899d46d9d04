package bundle

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/disk/ext4"
	"github.com/kamivm/kami/pkg/qcow2"
)

// filesystem is an ext4 to make.
type filesystem struct {
	size  int64 // bytes
	uuid  string
	label string
	files int // about
}

// sizeFor is the size of a filesystem that has so much in it and room for more.
func sizeFor(content int64) int64 {
	const step = 64 << 20
	return (content + content/4 + 128<<20 + step - 1) / step * step
}

// make lays a filesystem out.
func (fs filesystem) make(root *ext4.File) (*ext4.Image, error) {
	id, err := uuid.Parse(fs.uuid)
	if err != nil {
		return nil, err
	}
	img, err := ext4.New(root, ext4.Options{
		Size: fs.size, UUID: id, HashSeed: id, Label: label(fs.label), Time: epoch,
		BytesPerInode: min(max(fs.size/int64(2*fs.files+1024), ext4.Block), 16384),
	})
	switch {
	case errors.Is(err, ext4.ErrNoRoom):
		return nil, fmt.Errorf("%w: it does not fit into %d bytes; say more with --size", ErrTemplate, fs.size)
	case errors.Is(err, ext4.ErrUnfit):
		return nil, fmt.Errorf("%w: %w", ErrTemplate, err)
	}
	return img, err
}

// label is a name as ext4 takes it: 16 bytes.
func label(name string) string {
	if len(name) > 16 {
		name = strings.ToValidUTF8(name[:16], "")
	}
	return name
}

// mounted gives a root the folders that a guest mounts on, or needs to be there,
// and says how many it had not.
func mounted(root *ext4.File) (more int) {
	for _, name := range emptied() {
		if !slices.ContainsFunc(root.Entries, func(e ext4.Entry) bool { return e.Name == name }) {
			root.Entries = append(root.Entries, ext4.Entry{Name: name, File: &ext4.File{Mode: unix.S_IFDIR | permOf(name), Time: epoch}})
			more++
		}
	}
	slices.SortFunc(root.Entries, func(a, b ext4.Entry) int { return strings.Compare(a.Name, b.Name) })
	return more
}

// image makes the filesystem of a staged tree, which is read from in.
func (s *stage) image(in *folders, fs filesystem) (*ext4.Image, error) {
	links := map[uint64]*ext4.File{}
	// Not in its turn: a name such as +x sorts before it.
	root, err := s.plant(in, s.paths["."], links)
	if err != nil {
		return nil, err
	}
	files := map[string]*ext4.File{".": root}
	for _, name := range slices.Sorted(maps.Keys(s.paths)) {
		if name == "." {
			continue
		}
		f, err := s.plant(in, s.paths[name], links)
		if err != nil {
			return nil, err
		}
		files[name] = f
		above := files[path.Dir(name)]
		above.Entries = append(above.Entries, ext4.Entry{Name: path.Base(name), File: f})
	}
	fs.files = len(files)
	return fs.make(root)
}

// plant makes a file of a filesystem out of an entry and its stand-in.
func (s *stage) plant(in *folders, e *entry, links map[uint64]*ext4.File) (*ext4.File, error) {
	f := &ext4.File{
		Mode: e.perm & 0o7777, UID: e.uid, GID: e.gid, Time: e.mtime, Xattrs: e.xattrs, Major: e.major, Minor: e.minor,
	}
	switch e.kind {
	case tar.TypeDir:
		f.Mode |= unix.S_IFDIR
		return f, nil
	case tar.TypeChar:
		f.Mode |= unix.S_IFCHR
		return f, nil
	case tar.TypeBlock:
		f.Mode |= unix.S_IFBLK
		return f, nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(s.host(e.path), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: e.path, Err: err}
	}
	if st.Nlink > 1 {
		if first := links[st.Ino]; first != nil {
			return first, nil
		}
		links[st.Ino] = f
	}
	var err error
	switch e.kind {
	case tar.TypeSymlink:
		f.Mode = unix.S_IFLNK | 0o777 // a link has no permissions
		f.Target, err = os.Readlink(s.host(e.path))
	case tar.TypeFifo:
		f.Mode |= unix.S_IFIFO
	default:
		f.Mode |= unix.S_IFREG
		c := newContent(in, e.path, &st)
		f.Size, f.Content = st.Size, c
		f.Runs, err = c.runs(&st)
	}
	return f, err
}

// imageFile writes that filesystem to a new file.
func (s *stage) imageFile(ctx context.Context, name string, fs filesystem) error {
	in, err := openFolders(s.root)
	if err != nil {
		return err
	}
	defer in.Close()
	img, err := s.image(in, fs)
	if err != nil {
		return err
	}
	defer img.Close()
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	err = qcow2.WriteRaw(ctx, f, img, func(int64) {})
	return errors.Join(err, f.Close())
}
