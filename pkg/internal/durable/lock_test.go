package durable

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// lockNow takes a lock that has to be free, or has not.
func lockNow(t *testing.T, path string, want bool) *Lock {
	t.Helper()
	lock, got, err := TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != want || (lock != nil) != want {
		t.Fatalf("got the lock: %v (%v), want %v", got, lock, want)
	}
	return lock
}

func TestTryLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	lock := lockNow(t, path, true)
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file is not made: %v", err)
	}
	lockNow(t, path, false)
	other := lockNow(t, path+"2", true)
	must(t, lock.Unlock())
	again := lockNow(t, path, true)
	lockNow(t, path, false)
	must(t, again.Unlock())
	must(t, other.Unlock())
	if _, _, err := TryLock(filepath.Join(path, "under a file")); err == nil {
		t.Error("got no error for a path that cannot be, want one")
	}
	if _, _, err := TryLock(filepath.Join(filepath.Dir(path), "none", "lock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v without a folder, want fs.ErrNotExist", err)
	}
}

// A process that is being forked has all files of its parent until it runs its
// program: it keeps no lock that the parent has let go.
func TestUnlockWhileForking(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	lock := lockNow(t, path, true)
	forked, err := unix.Dup(int(lock.f.Fd()))
	must(t, err)
	defer unix.Close(forked)
	must(t, lock.Unlock())
	must(t, lockNow(t, path, true).Unlock())
}

func TestAcquireLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held, err := AcquireLock(t.Context(), path)
	if err != nil {
		t.Fatalf("a free lock: got %v, want no error", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := AcquireLock(ended, path); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want context.Canceled and the path", err)
	}
	got := make(chan error)
	go func() {
		lock, err := AcquireLock(t.Context(), path)
		if err == nil {
			err = lock.Unlock()
		}
		got <- err
	}()
	must(t, held.Unlock())
	if err := <-got; err != nil {
		t.Errorf("waiting for the holder: got %v, want no error", err)
	}
	if _, err := AcquireLock(t.Context(), filepath.Join(path, "under a file")); err == nil {
		t.Error("got no error for a path that cannot be, want one")
	}
}

// Holders remove the file before they let go of it, as kami does with the locks
// of its jobs. Still one at a time has the lock.
func TestLockIsExclusive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	const workers, rounds = 4, 25
	inside := make(chan struct{}, 1)
	errs := make(chan error)
	work := func() error {
		lock, err := AcquireLock(t.Context(), path)
		if err != nil {
			return err
		}
		select {
		case inside <- struct{}{}:
		default:
			return errors.New("two have the lock")
		}
		<-inside
		os.Remove(path)
		return lock.Unlock()
	}
	for range workers {
		go func() {
			var err error
			for i := 0; i < rounds && err == nil; i++ {
				err = work()
			}
			errs <- err
		}()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// A file that was removed and made anew is another file: its lock is free, and
// the old one's holder does not stand in the way.
func TestLockIsOfTheNamedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	old := lockNow(t, path, true)
	must(t, os.Remove(path))
	lock := lockNow(t, path, true)
	must(t, old.Unlock())
	lockNow(t, path, false)
	must(t, lock.Unlock())
}
