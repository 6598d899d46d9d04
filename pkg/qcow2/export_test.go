package qcow2

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestWriteSparse(t *testing.T) {
	data := bytes.Repeat([]byte{0, 1}, 4096)
	for _, want := range [][]byte{
		nil,
		make([]byte, 1),
		make([]byte, 3*4096),
		append(make([]byte, 2*4096), 1),
		append([]byte{1}, make([]byte, 3*4096)...),
		append(bytes.Clone(data), make([]byte, 100)...),
		bytes.Join([][]byte{make([]byte, 5000), data, make([]byte, 9000), {1}, make([]byte, 4096)}, nil),
	} {
		for _, off := range []int64{0, 1, 4095, 4096, 10_000} {
			f, err := os.Create(filepath.Join(t.TempDir(), "file"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := WriteSparse(f, want, off); err != nil {
				t.Fatal(err)
			}
			if err := f.Truncate(off + int64(len(want))); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, append(make([]byte, off), want...)) {
				t.Errorf("of %d bytes at %d %d were read back otherwise (%v)", len(want), off, len(got), err)
			}
		}
	}
}

// TestWriteSparseLeavesHoles: zeros take no room, wherever pages begin in what is
// written.
func TestWriteSparseLeavesHoles(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	b[0], b[500_000] = 1, 1
	if err := WriteSparse(f, b, 4096+100); err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if got := st.Sys().(*syscall.Stat_t).Blocks * 512; got > 64<<10 {
		t.Errorf("%d bytes are taken up, for two that are not zeros", got)
	}
}
