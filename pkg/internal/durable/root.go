package durable

import (
	"errors"
	"fmt"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"
)

// RenameIn is Rename between two names under root, of which neither leads out
// of it. An older file at to is replaced.
func RenameIn(root *os.Root, from, to string) error {
	if err := syncIn(root, from); err != nil {
		return err
	}
	Step("rename.synced")
	if err := root.Rename(from, to); err != nil {
		return err
	}
	Step("rename.renamed")
	if err := syncDirIn(root, path.Dir(to)); err != nil || path.Dir(from) == path.Dir(to) {
		return err
	}
	return syncDirIn(root, path.Dir(from))
}

// LinkIn is RenameIn for a name that must be free: where to is there, it returns
// an error that is os.ErrExist and changes nothing. What is at from may stay as
// a second name of the same file.
func LinkIn(root *os.Root, from, to string) error {
	if err := syncIn(root, from); err != nil {
		return err
	}
	Step("link.synced")
	err := root.Link(from, to)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, errors.ErrUnsupported) { // by a filesystem without links
		err = moveIn(root, from, to)
	}
	if err != nil {
		return err
	}
	Step("link.linked")
	return syncDirIn(root, path.Dir(to))
}

// moveIn renames a file to a name that must be free.
func moveIn(root *os.Root, from, to string) error {
	a, err := root.Open(path.Dir(from))
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := root.Open(path.Dir(to))
	if err != nil {
		return err
	}
	defer b.Close()
	err = unix.Renameat2(int(a.Fd()), path.Base(from), int(b.Fd()), path.Base(to), unix.RENAME_NOREPLACE)
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// RemoveIn is Remove of a name under root.
func RemoveIn(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	Step("remove.removed")
	return syncDirIn(root, path.Dir(name))
}

// MkdirAllIn makes a folder and those above it under root, so that they stay.
func MkdirAllIn(root *os.Root, name string, perm os.FileMode) error {
	if name == "." {
		return nil
	}
	if err := root.Mkdir(name, perm); errors.Is(err, os.ErrNotExist) {
		if err := MkdirAllIn(root, path.Dir(name), perm); err != nil {
			return err
		}
		if err := root.Mkdir(name, perm); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	} else if err != nil {
		st, serr := root.Stat(name)
		switch {
		case serr == nil && !st.IsDir():
			return &os.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
		case errors.Is(err, os.ErrExist): // or just removed by somebody: os.ErrNotExist
			return serr
		}
		return err
	}
	Step("mkdir.made")
	return syncDirIn(root, path.Dir(name))
}

// syncDirIn makes the names in a folder last. One that is not there any more has
// none: somebody else has removed them, and then it.
func syncDirIn(root *os.Root, name string) error {
	if err := syncIn(root, name); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func syncIn(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("syncing %s: %w", name, err)
	}
	return nil
}
