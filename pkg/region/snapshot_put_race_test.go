package region

import (
	"errors"
	"sync"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// Many put at once, in one process and in several that are open on one home.
func TestConcurrentPutBlocks(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	regions := []*Region{h.open(t), h.open(t), h.open(t)}
	id := start(t, regions[0])
	const each = 6
	errs := make(chan error)
	for p, r := range regions {
		for g := range 3 {
			go func() {
				var err error
				for n := range each {
					index := int64(1 + (p*3+g)*each + n)
					in := PutSnapshotBlockInput{SnapshotID: id, BlockIndex: index, Data: blockOf(byte(index)), Progress: int(index)}
					in.Checksum = sumOf(in.Data)
					_, perr := r.PutSnapshotBlock(t.Context(), in)
					err = errors.Join(err, perr, putErr(t, r, id, 0, blockOf(200)))
				}
				errs <- err
			}()
		}
	}
	for range 9 {
		must(t, <-errs)
	}
	want := marks{0: 200}
	for i := int64(1); i <= 9*each; i++ {
		want[i] = byte(i)
	}
	if got := described(t, regions[2], id).Progress; got != "54%" {
		t.Errorf("got the progress %s, want the most that was said", got)
	}
	twin := described(t, regions[0], snapshotOf(t, regions[0], 1<<30, want))
	// Several complete it at once: one does, the others wait and see.
	for _, err := range race(regions, func(_ int, r *Region) error { return completeErr(t, r, id, 1+9*each) }) {
		must(t, err)
	}
	if got := described(t, regions[1], id); got.ContentDigest != twin.ContentDigest {
		t.Errorf("got the content %s, want %s", got.ContentDigest, twin.ContentDigest)
	}
	wantNoDrafts(t, regions[0])
}

// While a snapshot is being completed no block is put to it: what is answered for
// is in it.
func TestPutWhileCompleting(t *testing.T) {
	t.Parallel()
	r, other, arrange := meanwhile(t)
	id := start(t, other)
	must(t, putErr(t, other, id, 0, blockOf(1)))
	var late error
	arrange(func() { late = putErr(t, other, id, 1, blockOf(1)) })
	must(t, completeErr(t, r, id, 1))
	wantCode(t, late, ami.CodeIncorrectState)

	// One that is deleted meanwhile does not come back.
	id = start(t, other)
	arrange(func() { must(t, other.DeleteSnapshot(t.Context(), id, false)) })
	wantCode(t, completeErr(t, r, id, 0), ami.CodeIncorrectState)
	wantCode(t, completeErr(t, r, id, 0), ami.CodeInvalidSnapshotNotFound)
	wantNoDrafts(t, r)
}

// Puts and a completion that race: a put that is answered for is in the snapshot.
func TestRacePutComplete(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	a, b := h.open(t), h.open(t)
	for round := range int64(10) {
		id := start(t, a)
		must(t, putErr(t, a, id, 0, blockOf(1)))
		var put, done error
		var wg sync.WaitGroup
		wg.Go(func() { put = putErr(t, a, id, 1, blockOf(2)) })
		wg.Go(func() { done = completeErr(t, b, id, 1+round%2) })
		wg.Wait()
		if done != nil { // it was asked for as many as there were not then
			wantCode(t, done, ami.CodeInvalidParameterValue)
			count := int64(2)
			if put != nil {
				count = 1
			}
			must(t, completeErr(t, b, id, count))
		}
		want := 2
		if put != nil {
			wantCode(t, put, ami.CodeIncorrectState)
			want = 1
		}
		if got := get(a.ListSnapshotBlocks(t.Context(), id, BlocksInput{}))(t).Blocks; len(got) != want {
			t.Errorf("round %d: got %d blocks where the put came to %v", round, len(got), put)
		}
	}
	wantNoDrafts(t, a)
}
