package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const lockName = ".lock"

// Scratch is a folder for work in progress. Its name carries the process and
// the boot, for people; what counts is that the process holds a lock in it.
type Scratch struct {
	dir  string
	lock *Lock
}

// NewScratch makes a scratch folder in tmpDir.
func NewScratch(tmpDir, label string) (*Scratch, error) {
	// Made under a hidden name and locked before it can be seen, so that a
	// sweep never finds one that is not locked yet.
	hidden, err := os.MkdirTemp(tmpDir, ".new-*")
	if err != nil {
		return nil, err
	}
	lock, _, err := TryLock(filepath.Join(hidden, lockName))
	if err != nil {
		os.RemoveAll(hidden)
		return nil, err
	}
	unique := strings.TrimPrefix(filepath.Base(hidden), ".new-")
	dir := filepath.Join(tmpDir, fmt.Sprintf("%s-%d-%s-%s.work", label, os.Getpid(), bootID(), unique))
	if err := os.Rename(hidden, dir); err != nil {
		lock.Unlock()
		os.RemoveAll(hidden)
		return nil, err
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
		if !e.IsDir() || !strings.HasSuffix(e.Name(), ".work") {
			continue
		}
		dir := filepath.Join(tmpDir, e.Name())
		lock, free, err := TryLock(filepath.Join(dir, lockName))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
			continue
		}
		if err == nil && !free {
			continue
		}
		errs = append(errs, os.RemoveAll(dir))
		if lock != nil {
			lock.Unlock()
		}
		removed = append(removed, dir)
	}
	return removed, errors.Join(errs...)
}
