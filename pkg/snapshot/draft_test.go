package snapshot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/qcow2"
)

const (
	theDraft  = ami.SnapshotID("snap-0123456789abcdef0")
	draftSize = 64 << 20 // 128 blocks
)

// block is noise of its own for each mark but 0, which is zeros.
func block(mark int64) []byte {
	b := make([]byte, qcow2.BlockSize)
	if mark != 0 {
		rand.New(rand.NewSource(mark)).Read(b)
	}
	return b
}

// newDraft makes a draft.
func newDraft(t *testing.T, s *Store) {
	t.Helper()
	if err := s.CreateDraft(theDraft, draftSize, time.Hour); err != nil {
		t.Fatal(err)
	}
}

// openDraft opens a draft until the test ends.
func openDraft(t *testing.T, s *Store) *Draft {
	t.Helper()
	d, err := s.OpenDraft(theDraft)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// put puts a block as each goroutine and process does.
func put(s *Store, index, mark int64) error {
	d, err := s.OpenDraft(theDraft)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Share(); err != nil {
		return err
	}
	b := block(mark)
	return d.Put(index, b, sha256.Sum256(b))
}

// wantBlocks checks which blocks are in a draft, and what is in them.
func wantBlocks(t *testing.T, s *Store, want map[int64]int64) {
	t.Helper()
	blocks, err := openDraft(t, s).Blocks()
	if err != nil {
		t.Fatal(err)
	}
	got, last, h := map[int64]bool{}, int64(-1), sha256.New()
	for n := range blocks.Len() {
		index, zero := blocks.Block(n)
		if index <= last {
			t.Fatalf("block %d comes after block %d", index, last)
		}
		last, got[index] = index, true
		mark, ok := want[index]
		if !ok || zero != (mark == 0) {
			t.Errorf("got block %d, zeros: %v, want the mark %d there (%v)", index, zero, mark, ok)
			continue
		}
		sum := sha256.Sum256(block(mark))
		h.Write(sum[:])
		b := make([]byte, qcow2.BlockSize)
		if err := blocks.ReadBlock(b, n); err != nil || !bytes.Equal(b, block(mark)) {
			t.Errorf("block %d: got %v, or not what was put", index, err)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got the blocks %v, want those of %v", got, want)
	}
	if got := blocks.Checksum(); !bytes.Equal(got[:], h.Sum(nil)) {
		t.Errorf("got the checksum %x, want %x", got, h.Sum(nil))
	}
}

func TestDraft(t *testing.T) {
	s := open(t)
	newDraft(t, s)
	if ids, err := s.Drafts(); err != nil || !slices.Equal(ids, []ami.SnapshotID{theDraft}) {
		t.Errorf("got the drafts %v (%v), want %s", ids, err, theDraft)
	}
	if d := openDraft(t, s); d.Size != draftSize || d.Timeout != time.Hour {
		t.Errorf("got a draft of %d bytes that waits for %s", d.Size, d.Timeout)
	}
	wantBlocks(t, s, map[int64]int64{})
	want := map[int64]int64{}
	for _, p := range [][2]int64{{5, 1}, {3, 2}, {127, 3}, {0, 0}, {5, 4}, {3, 0}, {0, 5}, {7, 1}} {
		if err := put(s, p[0], p[1]); err != nil {
			t.Fatal(err)
		}
		want[p[0]] = p[1]
	}
	wantBlocks(t, s, want)
	again, err := Open(s.root) // another process sees the same
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Sweep(); err != nil {
		t.Error(err)
	}
	wantBlocks(t, again, want)
	for range 2 {
		if err := s.RemoveDraft(theDraft); err != nil {
			t.Error(err)
		}
		if has, err := s.HasDraft(theDraft); has || err != nil {
			t.Errorf("it is there when it is removed: %v, %v", has, err)
		}
	}
	if got := tree(t, s); len(got) > 0 {
		t.Errorf("%q is left", got)
	}
}

func TestNoDraft(t *testing.T) {
	s := open(t)
	if ids, err := s.Drafts(); err != nil || len(ids) > 0 {
		t.Errorf("got the drafts %v (%v), want none", ids, err)
	}
	_, oerr := s.OpenDraft(theDraft)
	_, derr := s.DraftDeadline(theDraft)
	for _, err := range []error{oerr, derr} {
		if !errors.Is(err, ErrNoDraft) {
			t.Errorf("got %v, want ErrNoDraft", err)
		}
	}
	newDraft(t, s)
	if err := s.CreateDraft(theDraft, draftSize, time.Hour); err == nil {
		t.Error("a second draft of one snapshot: got no error, want one")
	}
	for _, path := range []string{s.journal(theDraft), s.blockFile(theDraft)} { // half removed
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, err := s.OpenDraft(theDraft); !errors.Is(err, ErrNoDraft) {
			t.Errorf("without %s got %v, want ErrNoDraft", path, err)
		}
	}
	if err := s.RemoveDraft(theDraft); err != nil {
		t.Error(err)
	}
}

// The time that a draft waits for its next block begins with each block.
func TestDraftDeadline(t *testing.T) {
	s := open(t)
	newDraft(t, s)
	past := time.Now().Add(-2 * time.Hour).Truncate(time.Second)
	if err := os.Chtimes(s.journal(theDraft), past, past); err != nil {
		t.Fatal(err)
	}
	d, err := openDraft(t, s).Deadline()
	closed, cerr := s.DraftDeadline(theDraft)
	if err := errors.Join(err, cerr); err != nil || !d.Equal(past.Add(time.Hour)) || !d.Equal(closed) {
		t.Errorf("got the deadlines %s and %s (%v), want %s", d, closed, err, past.Add(time.Hour))
	}
	for name, do := range map[string]func() error{
		"a block": func() error { return put(s, 0, 0) },
		"a touch": openDraft(t, s).Touch,
	} {
		if err := errors.Join(os.Chtimes(s.journal(theDraft), past, past), do()); err != nil {
			t.Fatal(err)
		}
		if d, err := s.DraftDeadline(theDraft); err != nil || time.Until(d) < 59*time.Minute {
			t.Errorf("after %s got the deadline %s (%v), want it in an hour", name, d, err)
		}
	}
}

// What a killed process left half written is stepped over, and takes nothing of
// what comes after it.
func TestDraftLeftovers(t *testing.T) {
	s := open(t)
	newDraft(t, s)
	if err := put(s, 1, 1); err != nil {
		t.Fatal(err)
	}
	for path, left := range map[string][]byte{
		s.journal(theDraft):   make([]byte, entrySize*3/2), // it is made longer before it is written
		s.blockFile(theDraft): block(9)[:1000],
	} {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(left); err != nil {
			t.Fatal(err)
		}
	}
	wantBlocks(t, s, map[int64]int64{1: 1})
	if err := put(s, 2, 2); err != nil {
		t.Fatal(err)
	}
	wantBlocks(t, s, map[int64]int64{1: 1, 2: 2})
}

func TestDamagedDraft(t *testing.T) {
	edit := func(t *testing.T, path string, do func([]byte)) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		do(b)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]func(t *testing.T, s *Store) error{
		"header": func(t *testing.T, s *Store) error {
			edit(t, s.journal(theDraft), func(b []byte) { b[9] ^= 1 })
			_, derr := s.DraftDeadline(theDraft)
			if !errors.Is(derr, ErrDraftDamaged) {
				t.Errorf("its deadline: got %v, want ErrDraftDamaged", derr)
			}
			_, err := s.OpenDraft(theDraft)
			return err
		},
		"block": func(t *testing.T, s *Store) error {
			edit(t, s.blockFile(theDraft), func(b []byte) { b[len(b)-1] ^= 1 })
			return readFirst(t, s)
		},
		"cut off": func(t *testing.T, s *Store) error {
			if err := os.Truncate(s.blockFile(theDraft), 1000); err != nil {
				t.Fatal(err)
			}
			return readFirst(t, s)
		},
		"later record": func(t *testing.T, s *Store) error { // the earlier one must not stand for it
			if err := put(s, 1, 2); err != nil {
				t.Fatal(err)
			}
			edit(t, s.journal(theDraft), func(b []byte) { b[2*entrySize+20] ^= 1 })
			_, err := openDraft(t, s).Blocks()
			return err
		},
		"record of no block": func(t *testing.T, s *Store) error {
			d := openDraft(t, s)
			if err := d.Put(draftSize/qcow2.BlockSize, block(1), sha256.Sum256(block(1))); err != nil {
				t.Fatal(err)
			}
			_, err := d.Blocks()
			return err
		},
	}
	for name, do := range tests {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			newDraft(t, s)
			if err := put(s, 1, 1); err != nil {
				t.Fatal(err)
			}
			if err := do(t, s); !errors.Is(err, ErrDraftDamaged) {
				t.Errorf("got %v, want ErrDraftDamaged", err)
			}
		})
	}
}

func readFirst(t *testing.T, s *Store) error {
	t.Helper()
	blocks, err := openDraft(t, s).Blocks()
	if err != nil {
		t.Fatal(err)
	}
	return blocks.ReadBlock(make([]byte, qcow2.BlockSize), 0)
}

// Many goroutines put at once, some to the same places: what is there in the end
// is what one of them put, whole.
func TestConcurrentPuts(t *testing.T) {
	s := open(t)
	newDraft(t, s)
	const putters, each = 8, 12
	errs := make([]error, putters)
	var wg sync.WaitGroup
	for p := range putters {
		wg.Go(func() {
			for i := range each {
				own := put(s, int64(1+p*each+i), int64(p*each+i)) // its own block; the first is zeros
				errs[p] = errors.Join(errs[p], own, put(s, 0, int64(1000+p)))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	want := map[int64]int64{}
	for n := range int64(putters * each) {
		want[1+n] = n
	}
	b, first := openDraft(t, s), make([]byte, qcow2.BlockSize)
	blocks, err := b.Blocks()
	if err == nil {
		err = blocks.ReadBlock(first, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	for p := range int64(putters) {
		if bytes.Equal(first, block(1000+p)) {
			want[0] = 1000 + p
		}
	}
	wantBlocks(t, s, want)
}

// A layer of a draft is that of a disk with the same blocks.
func TestLayerOfADraft(t *testing.T) {
	s := open(t)
	newDraft(t, s)
	disk := make([]byte, draftSize)
	base := write(t, s, memoryDisk(t, disk), "")
	for _, p := range [][2]int64{{3, 2}, {127, 3}, {5, 0}} {
		if err := put(s, p[0], p[1]); err != nil {
			t.Fatal(err)
		}
		copy(disk[p[0]*qcow2.BlockSize:], block(p[1]))
	}
	blocks, err := openDraft(t, s).Blocks()
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.OpenLayer(base.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	for name, want := range map[string]Layer{"": write(t, s, memoryDisk(t, disk), ""), "over the base": write(t, s, memoryDisk(t, disk), base.Digest)} {
		under := img
		if want.Parent == "" {
			under = nil
		}
		if got := write(t, s, qcow2.Patch(under, draftSize, blocks), want.Parent); got.Digest != want.Digest || got.Content != want.Content {
			t.Errorf("%s: got the layer %s, want %s", name, got.Digest, want.Digest)
		}
	}
}

// memoryDisk is a raw disk with these bytes.
func memoryDisk(t *testing.T, b []byte) qcow2.Source {
	t.Helper()
	path := t.TempDir() + "/disk"
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return sourceOf(t, path)
}
