// Package durable is the one way in which kami makes a file last. A file is
// written under a temporary name beside its place, synced, renamed, and its
// folder is synced: after a crash it is there whole or not at all. Locks are
// flocks, which die with their process, so that what a killed process left is
// known by a lock that nobody holds.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile makes the file at path with the content that write gives it, in one
// durable step. An older file of that name is replaced. When it fails nothing
// is left of the new one. What a killed process left of such a step in the same
// folder is removed.
func WriteFile(path string, perm os.FileMode, write func(*os.File) error) (err error) {
	sweepTemp(filepath.Dir(path))
	f, err := createTemp(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("making %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := f.Chmod(perm); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	Step("file.written")
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", path, err)
	}
	Step("file.synced")
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("placing %s: %w", path, err)
	}
	Step("file.renamed")
	// Only now: the lock goes with it, and a sweep would take the temporary
	// name for a leftover. It is synced, so that closing has nothing to lose.
	f.Close()
	return SyncDir(filepath.Dir(path))
}

// Rename moves a file or folder to its place in one durable step.
func Rename(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("syncing %s: %w", from, err)
	}
	Step("rename.synced")
	if err := os.Rename(from, to); err != nil {
		return err
	}
	Step("rename.renamed")
	if err := SyncDir(filepath.Dir(to)); err != nil {
		return err
	}
	if filepath.Dir(from) == filepath.Dir(to) {
		return nil
	}
	return SyncDir(filepath.Dir(from))
}

// Remove removes a file so that it stays removed. One that is not there is no
// error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	Step("remove.removed")
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a folder last.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}
