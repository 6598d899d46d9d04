package snapshot

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/qcow2"
)

const relativeDisk = 32 << 20

// rawDisk is a disk whose first half is noise of seed, changed by edit.
func rawDisk(t *testing.T, seed byte, edit func([]byte)) qcow2.Source {
	t.Helper()
	data := make([]byte, relativeDisk/2)
	rng := rand.NewChaCha8([32]byte{seed})
	rng.Read(data)
	if edit != nil {
		edit(data)
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, relativeDisk); err != nil {
		t.Fatal(err)
	}
	return sourceOf(t, path)
}

func TestRelative(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Relative(t.Context(), rawDisk(t, 1, nil)); err != nil || got != "" {
		t.Errorf("in an empty store the relative is %q, %v", got, err)
	}
	other := func(b []byte) {
		rng := rand.NewChaCha8([32]byte{9})
		rng.Read(b[:8<<20])
	}
	one := write(t, s, rawDisk(t, 1, nil), "")
	two := write(t, s, rawDisk(t, 2, nil), "")
	twoChanged := write(t, s, rawDisk(t, 2, other), two.Digest)
	tests := []struct {
		name string
		src  qcow2.Source
		want digest.Digest
	}{
		{"the same", rawDisk(t, 1, nil), one.Digest},
		{"a little changed", rawDisk(t, 2, func(b []byte) { b[5] ^= 1 }), two.Digest},
		{"as the changed one", rawDisk(t, 2, func(b []byte) { other(b); b[9<<20] ^= 1 }), twoChanged.Digest},
		{"nothing shared", rawDisk(t, 3, nil), ""},
		{"hardly anything shared", rawDisk(t, 1, func(b []byte) {
			for i := 1 << 20; i < len(b); i += 4096 {
				b[i] ^= 1
			}
		}), ""},
		{"nothing there", rawDisk(t, 1, func(b []byte) { clear(b) }), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := s.Relative(t.Context(), tt.src)
			if err != nil || got != tt.want {
				t.Errorf("the relative is %q, %v, want %q", got.Short(), err, tt.want.Short())
			}
		})
	}
	// Standing on a relative costs what is different; on the same, nothing.
	again := write(t, s, rawDisk(t, 1, nil), one.Digest)
	if again.Digest != one.Digest {
		t.Errorf("the same disk over itself is the layer %s, want %s", again.Digest.Short(), one.Digest.Short())
	}
	near := write(t, s, rawDisk(t, 1, func(b []byte) { b[5] ^= 1 }), one.Digest)
	if near.FileSize > 1<<20 {
		t.Errorf("one changed byte costs %d bytes", near.FileSize)
	}
}
