package object

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"sync"

	"golang.org/x/sys/unix"
)

// shelf is an open folder of a Dir with folders in it that objects lie in, such as
// a bucket's chunks. It knows which of those there are, so that what is not there
// is not looked for. Others may make and delete folders meanwhile: what it knows is
// a guess, on which nothing but speed rests.
type shelf struct {
	dir *os.File

	mu    sync.Mutex
	known map[string]bool
}

// openShelf opens a folder of the store; no link leads out of that. It returns
// fs.ErrNotExist.
func openShelf(root *os.Root, name string) (*shelf, error) {
	dir, err := root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		dir.Close()
		return nil, err
	}
	s := &shelf{dir: dir, known: make(map[string]bool, len(names))}
	for _, n := range names {
		s.known[n] = true
	}
	return s, nil
}

func (s *shelf) has(folder string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[folder]
}

func (s *shelf) learn(folder string, there bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[folder] = there
}

// open opens a folder on the shelf, and makes it. No link is followed.
func (s *shelf) open(folder string) (fd int, err error) {
	if !s.has(folder) {
		if err := unix.Mkdirat(int(s.dir.Fd()), folder, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return -1, err
		}
		s.learn(folder, true)
	}
	fd, err = unix.Openat(int(s.dir.Fd()), folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		s.learn(folder, false)
	}
	return fd, err
}

// place moves a file, temp in from, to a folder on the shelf. It returns
// fs.ErrNotExist where that has gone meanwhile.
func (s *shelf) place(from *os.File, temp, folder, base string) error {
	to, err := s.open(folder)
	if err != nil {
		return err
	}
	err = unix.Renameat(int(from.Fd()), temp, to, base)
	unix.Close(to)
	if err != nil {
		s.learn(folder, false)
	}
	return err
}

// onShelf splits an object's name: the shelf, the folder on it and the file.
func onShelf(name string) (shelf, folder, base string) {
	shelf, folder = path.Split(path.Dir(name))
	return path.Clean(shelf), folder, path.Base(name)
}
