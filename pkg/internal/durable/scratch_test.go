package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

func TestScratch(t *testing.T) {
	tmp := t.TempDir()
	s, err := NewScratch(tmp, "import")
	if err != nil {
		t.Fatalf("got %v, want no error", err)
	}
	if got := filepath.Dir(s.Dir()); got != tmp {
		t.Errorf("it is in %s, want %s", got, tmp)
	}
	name := regexp.MustCompile(fmt.Sprintf(`^import-%d-[0-9a-z]+-[0-9]+\.work$`, os.Getpid()))
	if got := filepath.Base(s.Dir()); !name.MatchString(got) {
		t.Errorf("got the name %q, want its label and process in it", got)
	}
	if got, want := s.Path("disk"), filepath.Join(s.Dir(), "disk"); got != want {
		t.Errorf("got the path %q, want %q", got, want)
	}
	other, err := NewScratch(tmp, "import")
	if err != nil || other.Dir() == s.Dir() {
		t.Fatalf("got %v and %v, want another folder", other, err)
	}
	must(t, os.MkdirAll(s.Path("deep/er"), 0o700))
	must(t, os.WriteFile(s.Path("deep/er/file"), nil, 0o400))
	if err := s.Close(); err != nil {
		t.Errorf("got %v, want no error", err)
	}
	wantNames(t, tmp, filepath.Base(other.Dir()))
	must(t, other.Close())
	wantNames(t, tmp)
}

func TestNewScratchThatFails(t *testing.T) {
	tmp := t.TempDir()
	if _, err := NewScratch(filepath.Join(tmp, "none"), "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a folder: got %v, want fs.ErrNotExist", err)
	}
	if _, err := NewScratch(tmp, "no/such/place"); err == nil {
		t.Error("with a label that is a path: got no error, want one")
	}
	wantNames(t, tmp)
}

func TestSweepScratch(t *testing.T) {
	tmp := t.TempDir()
	at := func(name string) string { return filepath.Join(tmp, name) }
	live, err := NewScratch(tmp, "live")
	must(t, err)
	// What killed processes leave: with a lock that nobody holds, with none,
	// and one that was not named yet.
	for _, dir := range []string{"dead-1-abc-2.work/deep", "bare.work", ".new-123"} {
		must(t, os.MkdirAll(at(dir), 0o700))
	}
	must(t, os.WriteFile(at("dead-1-abc-2.work/"+lockName), nil, 0o600))
	must(t, os.WriteFile(at("dead-1-abc-2.work/deep/file"), nil, 0o400))
	must(t, os.WriteFile(at(".new-123/"+lockName), nil, 0o600))
	// What is none of it.
	must(t, os.Mkdir(at("workshop"), 0o700))
	must(t, os.WriteFile(at("file.work"), nil, 0o600))
	must(t, os.WriteFile(at("vol-1.lock"), nil, 0o600))

	removed, err := SweepScratch(tmp)
	if err != nil {
		t.Errorf("got %v, want no error", err)
	}
	want := []string{at(".new-123"), at("bare.work"), at("dead-1-abc-2.work")}
	if slices.Sort(removed); !slices.Equal(removed, want) {
		t.Errorf("got %q, want %q", removed, want)
	}
	stays := []string{"file.work", filepath.Base(live.Dir()), "vol-1.lock", "workshop"}
	wantNames(t, tmp, stays...)
	if removed, err = SweepScratch(tmp); err != nil || len(removed) > 0 {
		t.Errorf("again: got %q, %v, want nothing to do", removed, err)
	}
	must(t, live.lock.Unlock()) // as its process's end does
	if removed, err = SweepScratch(tmp); err != nil || !slices.Equal(removed, []string{live.Dir()}) {
		t.Errorf("after its process: got %q, %v, want %q", removed, err, live.Dir())
	}
}

func TestSweepScratchWithoutAFolder(t *testing.T) {
	tmp := t.TempDir()
	if removed, err := SweepScratch(filepath.Join(tmp, "none")); err != nil || removed != nil {
		t.Errorf("got %q, %v, want nothing", removed, err)
	}
	file := filepath.Join(tmp, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := SweepScratch(file); err == nil {
		t.Error("a file: got no error, want one")
	}
}

// One folder that cannot be swept does not keep the others.
func TestSweepScratchGoesOn(t *testing.T) {
	tmp := t.TempDir()
	bad, good := filepath.Join(tmp, "a.work"), filepath.Join(tmp, "b.work")
	must(t, os.MkdirAll(filepath.Join(bad, lockName), 0o700)) // a folder where the lock is
	must(t, os.Mkdir(good, 0o700))
	removed, err := SweepScratch(tmp)
	if err == nil {
		t.Error("got no error, want the one of a.work")
	}
	if !slices.Equal(removed, []string{good}) {
		t.Errorf("got %q, want %q", removed, good)
	}
}

// Sweeps run all the time, and side by side; none takes a folder whose process
// is alive, and none stumbles over one that is just being made or closed.
func TestSweepScratchLeavesTheLiving(t *testing.T) {
	tmp := t.TempDir()
	const sweepers, workers = 2, 4
	stop, swept, worked := make(chan struct{}), make(chan error), make(chan error)
	for range sweepers {
		go func() {
			var errs []error
			for {
				select {
				case <-stop:
					swept <- errors.Join(errs...)
					return
				default:
					_, err := SweepScratch(tmp)
					errs = append(errs, err)
				}
			}
		}()
	}
	for range workers {
		go func() {
			var errs []error
			for i := range 50 {
				errs = append(errs, useScratch(tmp, i))
			}
			worked <- errors.Join(errs...)
		}()
	}
	for range workers {
		if err := <-worked; err != nil {
			t.Errorf("working: %v", err)
		}
	}
	close(stop)
	for range sweepers {
		if err := <-swept; err != nil {
			t.Errorf("sweeping: %v", err)
		}
	}
	wantNames(t, tmp)
}

func useScratch(tmp string, i int) error {
	s, err := NewScratch(tmp, "live")
	if err != nil {
		return err
	}
	path := s.Path(fmt.Sprint(i))
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return err
	}
	return s.Close()
}
