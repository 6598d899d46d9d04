package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	lockName     = ".lock"
	hiddenPrefix = ".new-"
	workSuffix   = ".work"
)

// Scratch is a folder for work in progress. Its name carries the process and
// the boot, for people; what counts is that the process holds a lock in it.
type Scratch struct {
	dir  string
	lock *Lock
}

// errSwept is what newScratch returns where a sweep took the folder while it was
// hidden.
var errSwept = errors.New("a sweep took the new folder")

// NewScratch makes a scratch folder in tmpDir.
func NewScratch(tmpDir, label string) (*Scratch, error) {
	for {
		if s, err := newScratch(tmpDir, label); !errors.Is(err, errSwept) {
			return s, err
		}
	}
}

// newScratch makes a folder under a hidden name and locks it before it is seen
// under its own, so that a sweep never finds one there that is not locked yet.
func newScratch(tmpDir, label string) (*Scratch, error) {
	hidden, err := os.MkdirTemp(tmpDir, hiddenPrefix+"*")
	if err != nil {
		return nil, err
	}
	lock, ok, err := TryLock(filepath.Join(hidden, lockName))
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && !ok: // the holder is a sweep
		return nil, errSwept
	case err != nil:
		return nil, errors.Join(err, os.RemoveAll(hidden))
	}
	Step("scratch.made")
	unique := strings.TrimPrefix(filepath.Base(hidden), hiddenPrefix)
	dir := filepath.Join(tmpDir, fmt.Sprintf("%s-%d-%s-%s%s", label, os.Getpid(), bootID(), unique, workSuffix))
	if err := os.Rename(hidden, dir); err != nil {
		defer lock.Unlock()
		if _, gone := os.Lstat(hidden); errors.Is(gone, fs.ErrNotExist) {
			return nil, errSwept
		}
		return nil, errors.Join(err, os.RemoveAll(hidden))
	}
	return &Scratch{dir, lock}, nil
}

// bootID is the start of the kernel's random name for this boot.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(b) < 8 {
		return "noboot"
	}
	return string(b[:8])
}

// Dir is the folder's path.
func (s *Scratch) Dir() string { return s.dir }

// Path is the path of a file in the folder.
func (s *Scratch) Path(name string) string { return filepath.Join(s.dir, name) }

// Close removes the folder and all in it.
func (s *Scratch) Close() error {
	err := os.RemoveAll(s.dir)
	return errors.Join(err, s.lock.Unlock())
}

// SweepScratch removes the scratch folders of processes that are gone, and says
// which.
func SweepScratch(tmpDir string) (removed []string, err error) {
	entries, err := os.ReadDir(tmpDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), hiddenPrefix) && !strings.HasSuffix(e.Name(), workSuffix) {
			continue
		}
		dir := filepath.Join(tmpDir, e.Name())
		ok, err := sweepDir(dir)
		if ok {
			removed = append(removed, dir)
		}
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// sweepDir removes a scratch folder if nobody holds its lock, and says whether
// it did.
func sweepDir(dir string) (bool, error) {
	// A lock must not be made here: a folder that is just being closed would
	// then not be empty when its turn comes.
	lock, free, err := tryLock(filepath.Join(dir, lockName), 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// It is being removed, or was when its process ended: with the lock
		// gone there is nobody who works in it.
	case err != nil || !free:
		return false, err
	default:
		defer lock.Unlock()
	}
	if unique, hidden := strings.CutPrefix(filepath.Base(dir), hiddenPrefix); hidden {
		// Its process may be about to lock it. Under another name it is out of
		// reach, before anything in it goes.
		swept := filepath.Join(filepath.Dir(dir), "swept-"+unique+workSuffix)
		err := os.Rename(dir, swept)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil // it has its name now, or another sweep was faster
		}
		if err != nil {
			return false, err
		}
		dir = swept
	}
	if err := removeLate(dir); err != nil {
		return false, err
	}
	return true, nil
}

// removeLate removes a folder that a sweep may just have renamed. Its process may
// have been on the way into it, and makes its lock while the folder is emptied;
// who comes after the renaming does not find it any more, so that it ends.
func removeLate(dir string) error {
	var err error
	for range 10 {
		if err = os.RemoveAll(dir); !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return err
}
