package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// The full and the read-only disk are file systems in memory, which a child
// mounts for itself alone: where this is not root, in a user namespace.
func (do task) onOwnDisk(t *testing.T) outcome {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	do.Root = t.TempDir()
	cmd := do.command(t, self)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", do.Job, err, out)
	}
	var o outcome
	if err := json.Unmarshal(out, &o); err != nil {
		t.Fatalf("%s says %q: %v", do.Job, out, err)
	}
	return o
}

// outcome is what a child says of what it did on its disk.
type outcome struct {
	Errors  map[string]string // by what was tried; "" where it succeeded
	NoSpace map[string]bool   // whether ErrNoSpace is what it failed with
	Files   []string
	Head    string
}

func (o *outcome) note(what string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	o.Errors[what], o.NoSpace[what] = text, errors.Is(err, ErrNoSpace)
}

func (o outcome) print(s *Store) error {
	err := filepath.WalkDir(s.root, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(s.root, path)
			o.Files = append(o.Files, rel)
		}
		return err
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(o)
}

// mounted opens a store on a file system of so many MiB.
func (do task) mounted(mib int) (*Store, outcome, error) {
	o := outcome{Errors: map[string]string{}, NoSpace: map[string]bool{}}
	if err := syscall.Mount("tmpfs", do.Root, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		return nil, o, fmt.Errorf("mounting a file system for the test: %w", err)
	}
	s, err := Open(do.Root)
	return s, o, err
}

var diskJobs = map[string]func(task) error{
	// There is hardly any space before the layer is begun.
	"small disk": func(do task) error {
		s, o, err := do.mounted(32)
		if err != nil {
			return err
		}
		_, err = do.write(s)
		o.note("write", err)
		return o.print(s)
	},
	// The layer does not fit.
	"full disk": func(do task) error {
		s, o, err := do.mounted(80)
		if err != nil {
			return err
		}
		_, err = do.write(s)
		o.note("write", err)
		return o.print(s)
	},
	"no room for a head": func(do task) error {
		s, o, err := do.mounted(1)
		if err != nil {
			return err
		}
		if _, err := s.CreateHead(theHead, oldSize, "", ""); err != nil {
			return err
		}
		ballast, err := os.Create(filepath.Join(do.Root, "ballast"))
		if err != nil {
			return err
		}
		for err == nil {
			_, err = ballast.Write(make([]byte, 4096))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		_, err = s.CreateHead("vol-1", newSize, "", "")
		o.note("create", err)
		o.note("replace", s.ReplaceHead(theHead, newSize, "", ""))
		img, err := s.OpenHead(theHead, "")
		if err != nil {
			return err
		}
		defer img.Close()
		o.Head = fmt.Sprint(img.Size())
		return o.print(s)
	},
	"read-only": func(do task) error {
		s, o, err := do.mounted(80)
		if err != nil {
			return err
		}
		l, err := task{Disk: do.Disk}.write(s)
		if err != nil {
			return err
		}
		if _, err := s.CreateHead(theHead, oldSize, l.Digest, ""); err != nil {
			return err
		}
		if err := syscall.Mount("", do.Root, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			return err
		}
		ctx, step := context.Background(), ami.NoProgress.Step("", 0)
		_, err = Open(do.Root)
		o.note("open", err)
		_, err = s.Layer(l.Digest)
		o.note("layer", err)
		_, err = s.Blocks(ctx, l.Digest)
		o.note("blocks", err)
		o.note("verify", s.VerifyLayer(ctx, l.Digest, step))
		img, err := s.OpenHead(theHead, l.Digest)
		if err == nil {
			err = img.Close()
		}
		o.note("open head", err)
		o.note("sweep", s.Sweep())
		_, err = do.write(s)
		o.note("write", err)
		_, err = s.CreateHead("vol-1", newSize, "", "")
		o.note("create", err)
		o.note("replace", s.ReplaceHead(theHead, newSize, "", ""))
		o.note("remove head", s.RemoveHead(theHead))
		_, err = s.LockVolume(ctx, theHead)
		o.note("lock", err)
		return o.print(s)
	},
}

// A disk that is full is said to be, and nothing is left of what did not fit.
func TestFullDisk(t *testing.T) {
	tests := []struct {
		job   string
		disk  string
		tried []string
		files []string
		head  string
	}{
		{"small disk", noise(t, 1, 1), []string{"write"}, nil, ""},
		{"full disk", noise(t, 96, 1), []string{"write"}, nil, ""},
		{"no room for a head", "", []string{"create", "replace"}, []string{"ballast", "volumes/" + string(theHead) + ".qcow2"}, fmt.Sprint(oldSize)},
	}
	for _, tt := range tests {
		t.Run(tt.job, func(t *testing.T) {
			got := task{Job: tt.job, Disk: tt.disk}.onOwnDisk(t)
			for _, what := range tt.tried {
				if !got.NoSpace[what] {
					t.Errorf("%s: got the error %q, want ErrNoSpace", what, got.Errors[what])
				}
			}
			if !slices.Equal(got.Files, tt.files) || got.Head != tt.head {
				t.Errorf("got the files %q and a head of %q bytes, want %q and %q", got.Files, got.Head, tt.files, tt.head)
			}
		})
	}
}

// What is on a read-only disk can be read; what writes says why it cannot.
func TestReadOnlyDisk(t *testing.T) {
	got := task{Job: "read-only", Disk: noise(t, 1, 1)}.onOwnDisk(t)
	tests := map[string]string{
		"open": "", "layer": "", "blocks": "", "verify": "", "open head": "", "sweep": "",
		"write": "read-only file system", "create": "read-only file system", "replace": "read-only file system",
		"remove head": "read-only file system", "lock": "read-only file system",
	}
	for what, want := range tests {
		if err, tried := got.Errors[what]; !tried || want == "" && err != "" || want != "" && !strings.Contains(err, want) {
			t.Errorf("%s: got the error %q, want %q in it", what, err, want)
		}
	}
	if len(got.Files) != 3 { // a layer, its list and a head
		t.Errorf("got the files %q, want three", got.Files)
	}
}
