package qcow2

import (
	"crypto/sha256"
	"encoding/binary"
	"testing"
)

func TestBlocksOfAList(t *testing.T) {
	b := NewBlocks(300*BlockSize + 1)
	b.set(0, [32]byte{1})
	b.set(200, [32]byte{2})
	b.set(250, [32]byte{}) // zeros, which are not held
	if got, want := b.Len(), int64(301); got != want {
		t.Errorf("Len is %d, want %d", got, want)
	}
	for i, want := range map[int64][32]byte{0: {1}, 200: {2}, 1: zeroSum(), 250: zeroSum(), 300: zeroSum(), 301: zeroSum()} {
		if got := b.Get(i); got != want {
			t.Errorf("Get(%d) is %x, want %x", i, got, want)
		}
		if got := b.Zero(i); got != (want == zeroSum()) {
			t.Errorf("Zero(%d) is %v", i, got)
		}
	}
	if got := len(b.pages); got != 2 {
		t.Errorf("%d pages are held, want 2", got)
	}
	grown := b.resized(400 * BlockSize)
	grown.set(0, [32]byte{3})
	if b.Get(0) != [32]byte{1} || grown.Get(200) != [32]byte{2} || grown.Len() != 400 {
		t.Error("a resized copy shares with, or loses, what it was made of")
	}
}

func TestZeroSum(t *testing.T) {
	if got, want := zeroSum(), sha256.Sum256(make([]byte, BlockSize)); got != want {
		t.Errorf("got %x, want %x", got, want)
	}
}

// TestEmptyDiskHasAContent: zeros are not held and are hashed all the same.
func TestEmptyDiskHasAContent(t *testing.T) {
	for _, size := range []int64{1, BlockSize, 129 * BlockSize, 300*BlockSize + 512} {
		if got, want := NewBlocks(size).Content(), contentOf(make([]byte, size)); got != want {
			t.Errorf("%d bytes of zeros have the content %s, want %s", size, got, want)
		}
	}
}

func TestDamagedListsAreRefused(t *testing.T) {
	whole := NewBlocks(300 * BlockSize)
	whole.set(5, [32]byte{1})
	sound, err := whole.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	// seal gives an edited list the digest that it should have.
	seal := func(edit func([]byte) []byte) []byte {
		b := edit(append([]byte{}, sound[:len(sound)-sha256.Size]...))
		sum := sha256.Sum256(b)
		return append(b, sum[:]...)
	}
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"nothing", nil},
		{"a byte less", sound[:len(sound)-1]},
		{"a bit turned", func() []byte { b := append([]byte{}, sound...); b[100] ^= 1; return b }()},
		{"another magic", seal(func(b []byte) []byte { b[7] = '2'; return b })},
		{"half a page", seal(func(b []byte) []byte { return b[:len(b)-2048] })},
		{"more blocks than a disk has", seal(func(b []byte) []byte { binary.BigEndian.PutUint64(b[8:], 1<<40); return b })},
		{"a page behind the end", seal(func(b []byte) []byte { binary.BigEndian.PutUint64(b[16:], 3); return b })},
		{"a page whose place wraps round", seal(func(b []byte) []byte { binary.BigEndian.PutUint64(b[16:], 1<<57); return b })},
	} {
		wantError(t, c.name, new(Blocks).UnmarshalBinary(c.data), ErrCorrupt)
	}
	if err := new(Blocks).UnmarshalBinary(seal(func(b []byte) []byte { return b })); err != nil {
		t.Errorf("a sound list: %v", err)
	}
}
