package qcow2

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// usedHead is a head on which QEMU has written something of each kind.
func usedHead(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "head.qcow2")
	if err := CreateHead(path, 2<<30, "", "kami-blank", nil); err != nil {
		t.Fatal(err)
	}
	qemuIO(t, path, "write -P 7 1M 3M", "write -z 8M 1M", "write -P 8 1G 64k", "discard 2M 64k", "write -c -P 9 16M 64k", "write -c -P 6 17M 64k")
	return path
}

func TestTablesThatAreSound(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T) string
	}{
		{"a fresh head", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "head.qcow2")
			if err := CreateHead(path, 3<<40, "", "kami-large", nil); err != nil {
				t.Fatal(err)
			}
			return path
		}},
		{"a head that was written to", usedHead},
		{"one that has grown", func(t *testing.T) string {
			path := usedHead(t)
			qemuImg(t, "resize", "-q", "-f", "qcow2", path, "4T")
			qemuIO(t, path, "write -P 3 3T 1M")
			return path
		}},
		{"QEMU's own", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "own.qcow2")
			qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "64M")
			return path
		}},
		{"an old version", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "old.qcow2")
			qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "compat=0.10,cluster_size=512", path, "64M")
			qemuIO(t, path, "write 1M 1M")
			return path
		}},
		{"a layer", func(t *testing.T) string {
			raw := filepath.Join(t.TempDir(), "raw")
			disk(t, raw, 64<<20, 1)
			dir := t.TempDir()
			return filepath.Join(dir, writeLayer(t, dir, rawFile(t, raw), nil).Layer.Hex()+".qcow2")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := CheckTables(t.Context(), c.make(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTablesThatAreNot changes one number of a head: each change is found.
func TestTablesThatAreNot(t *testing.T) {
	good, err := os.ReadFile(usedHead(t))
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	l1 := be.Uint64(good[40:])
	refTable := be.Uint64(good[48:])
	refBlock := be.Uint64(good[refTable:])
	l2 := be.Uint64(good[l1:]) & offsetMask
	first := l2 + 16*8 // the entry of what was written at 1 MiB
	size := uint64(len(good))
	for _, c := range []struct {
		name  string
		at, v uint64
	}{
		{"the L1 table behind the file", 40, size + ClusterSize},
		{"the L1 table over the header", 40, 0},
		{"the refcount table behind the file", 48, size + ClusterSize},
		{"the refcount table over the L1 table", 48, l1},
		{"a refcount block behind the file", refTable, 1 << 60},
		{"a refcount block off the clusters", refTable, refBlock + 1},
		{"a refcount block over the header's L1 table", refTable, l1},
		{"an L2 table behind the file", l1, size + ClusterSize},
		{"an L2 table that is cut off", l1, size - ClusterSize/2},
		{"an L2 table off the clusters", l1, l2 + 512},
		{"an L2 table twice", l1 + 8, l2 | entryCopied},
		{"an L1 entry with a bit that means nothing", l1, l2 | 1},
		{"a cluster behind the file", first, (size+2*ClusterSize)&offsetMask | entryCopied},
		{"a cluster off the clusters", first, be.Uint64(good[first:]) + 512},
		{"a cluster twice", first, be.Uint64(good[first+8:])},
		{"a cluster in the L2 table", first, l2 | entryCopied},
		{"a cluster in the refcounts", first, refBlock | entryCopied},
		{"an L1 entry of flags alone", l1, 0xff << 56},
		{"a bit that means nothing", first, be.Uint64(good[first:]) | 2},
		{"a compressed cluster behind the file", first, 1<<40 | entryCompressed},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := append([]byte{}, good...)
			be.PutUint64(b[c.at:], c.v)
			if err := CheckTables(t.Context(), write(t, b)); !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v, want ErrCorrupt", err)
			}
		})
	}
	t.Run("cut off", func(t *testing.T) {
		if err := CheckTables(t.Context(), write(t, good[:len(good)/2])); !errors.Is(err, ErrCorrupt) {
			t.Errorf("got %v, want ErrCorrupt", err)
		}
	})
}
