package durable

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Lock is an exclusive lock on a file. It ends with the process at the latest.
type Lock struct{ f *os.File }

// TryLock takes the lock at path if nobody has it, and says whether it did. The
// file is made when it is not there.
func TryLock(path string) (*Lock, bool, error) { return tryLock(path, os.O_CREATE) }

// tryLock is TryLock; without os.O_CREATE the file has to be there.
func tryLock(path string, create int) (*Lock, bool, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|create, 0o600)
		if err != nil {
			return nil, false, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, false, nil
		}
		if err != nil {
			f.Close()
			return nil, false, fmt.Errorf("locking %s: %w", path, err)
		}
		// Whoever held it before may have removed the file: then this is a
		// lock on a name that is no longer there.
		if !sameFile(f, path) {
			f.Close()
			continue
		}
		return &Lock{f}, true, nil
	}
}

func sameFile(f *os.File, path string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(held, named)
}

// AcquireLock takes the lock at path, waiting for it until ctx ends.
func AcquireLock(ctx context.Context, path string) (*Lock, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		lock, ok, err := TryLock(path)
		if err != nil || ok {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the lock %s: %w", path, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// Unlock releases the lock, also where a process that is just being forked still has
// its file open: until that one runs its program, closing alone would leave it taken.
func (l *Lock) Unlock() error {
	return errors.Join(unix.Flock(int(l.f.Fd()), unix.LOCK_UN), l.f.Close())
}
