package cdc

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

var sizes = Sizes{16 << 10, 64 << 10, 256 << 10}

func random(n int, seed uint64) []byte {
	var key [32]byte
	key[0] = byte(seed)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// chunks cuts all that r gives.
func chunks(t testing.TB, r io.Reader, s Sizes) (out [][]byte) {
	t.Helper()
	c, err := NewChunker(r, s)
	if err != nil {
		t.Fatal(err)
	}
	for {
		b, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		if len(b) == 0 {
			return out
		}
		out = append(out, bytes.Clone(b))
	}
}

// TestChunks holds that chunks are the stream, and how large they are.
func TestChunks(t *testing.T) {
	t.Parallel()
	b := random(32<<20, 1)
	got := chunks(t, iotest.HalfReader(bytes.NewReader(b)), sizes)
	if !bytes.Equal(bytes.Join(got, nil), b) {
		t.Fatal("the chunks are not what was cut")
	}
	for i, c := range got {
		if len(c) > sizes.Max || len(c) < sizes.Min && i < len(got)-1 {
			t.Errorf("chunk %d has %d bytes", i, len(c))
		}
	}
	if mean := len(b) / len(got); mean < sizes.Avg*3/4 || mean > sizes.Avg*3/2 {
		t.Errorf("%d bytes on average, want about %d", mean, sizes.Avg)
	}
}

// TestTheSameForEver holds the boundaries to those of the first version: a change
// would make all that is stored anew.
func TestTheSameForEver(t *testing.T) {
	t.Parallel()
	h := sha256.New()
	for _, c := range chunks(t, bytes.NewReader(random(8<<20, 2)), sizes) {
		h.Write([]byte{byte(len(c)), byte(len(c) >> 8), byte(len(c) >> 16)})
	}
	const want = "f03f1f9691042a889e2ae6cc694637c3dfd1189ca520ca6f42974b06d7d33cc8"
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestShift holds that what is inserted changes the chunks around it alone.
func TestShift(t *testing.T) {
	t.Parallel()
	b := random(16<<20, 3)
	shifted := bytes.Join([][]byte{b[:5<<20], []byte("inserted"), b[5<<20:]}, nil)
	known := map[string]bool{}
	for _, c := range chunks(t, bytes.NewReader(b), sizes) {
		known[string(c)] = true
	}
	fresh := 0
	for _, c := range chunks(t, bytes.NewReader(shifted), sizes) {
		if !known[string(c)] {
			fresh++
		}
	}
	if fresh > 3 {
		t.Errorf("%d chunks are new after 8 bytes were inserted", fresh)
	}
}

func TestSkip(t *testing.T) {
	t.Parallel()
	b := random(4<<20, 4)
	for _, r := range []io.Reader{bytes.NewReader(b), iotest.OneByteReader(bytes.NewReader(b))} {
		c, err := NewChunker(r, sizes)
		if err != nil {
			t.Fatal(err)
		}
		first, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		at := len(first) + 3<<20
		if err := c.Skip(3 << 20); err != nil {
			t.Fatal(err)
		}
		next, err := c.Next()
		if err != nil || len(next) == 0 || !bytes.HasPrefix(b[at:], next) {
			t.Errorf("after skipping come %d bytes (%v), not what is at %d", len(next), err, at)
		}
	}
}

func TestBadSizes(t *testing.T) {
	t.Parallel()
	for _, s := range []Sizes{{}, {64, 64, 128}, {64, 100, 200}, {63, 128, 256}, {64, 128, 128}, {64, 128, 1 << 30}} {
		if s.Check() == nil {
			t.Errorf("%v can be cut", s)
		}
	}
}

func TestReadFails(t *testing.T) {
	t.Parallel()
	want := errors.New("lost")
	c, err := NewChunker(iotest.ErrReader(want), sizes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Next(); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func BenchmarkCut(b *testing.B) {
	data := random(64<<20, 5)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		for rest := data; len(rest) > 0; rest = rest[sizes.Cut(rest):] {
		}
	}
}
