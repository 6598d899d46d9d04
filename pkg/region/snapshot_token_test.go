package region

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// One client token starts one snapshot, whatever becomes of it.
func TestClientToken(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	in := StartSnapshotInput{VolumeSize: 1, Description: "x", ClientToken: "token-1"}
	begin := func(r *Region, edit func(*StartSnapshotInput)) (ami.SnapshotID, error) {
		i := in
		edit(&i)
		s, err := r.StartSnapshot(t.Context(), i)
		return s.SnapshotID, err
	}
	same := func(*StartSnapshotInput) {}
	regions := []*Region{r, h.open(t), h.open(t), h.open(t)}
	ids := make([]ami.SnapshotID, len(regions))
	must(t, errors.Join(race(regions, func(n int, r *Region) (err error) {
		ids[n], err = begin(r, same)
		return err
	})...))
	if len(slices.Compact(slices.Clone(ids))) != 1 || len(get(r.layers.Drafts())(t)) != 1 {
		t.Fatalf("got the snapshots %v, want one", ids)
	}
	id := ids[0]
	for name, edit := range map[string]func(*StartSnapshotInput){
		"size":        func(i *StartSnapshotInput) { i.VolumeSize = 2 },
		"description": func(i *StartSnapshotInput) { i.Description = "" },
		"tags":        func(i *StartSnapshotInput) { i.Tags = []ami.Tag{{Key: "a"}} },
		"timeout":     func(i *StartSnapshotInput) { i.Timeout = 2 * time.Hour },
		"parent":      func(i *StartSnapshotInput) { i.ParentSnapshotID = id },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := begin(r, edit)
			wantCode(t, err, ami.CodeIdempotentParameterMismatch)
		})
	}
	wantSame := func(when string, r *Region, edit func(*StartSnapshotInput), is bool) ami.SnapshotID {
		t.Helper()
		got := get(begin(r, edit))(t)
		if (got == id) != is {
			t.Errorf("%s got %s, where the first was %s", when, got, id)
		}
		return got
	}
	wantSame("with the default said", r, func(i *StartSnapshotInput) { i.Timeout = time.Hour }, true)
	wantSame("without a token", r, func(i *StartSnapshotInput) { i.ClientToken = "" }, false)
	wantSame("with another token", r, func(i *StartSnapshotInput) { i.ClientToken = "token-2" }, false)
	wantSame("as another account", h.open(t, as(stranger)), same, false)
	must(t, completeErr(t, r, id, 0))
	wantSame("when it is completed", h.open(t), same, true)
	must(t, r.DeleteSnapshot(t.Context(), id, false))
	id = wantSame("when it is deleted", r, same, false)
	wantSame("after that", r, same, true)
	paths := get(filepath.Glob(r.path("drafts", "*.token")))(t)
	old := time.Now().Add(-tokenLife - time.Hour)
	for _, p := range paths {
		must(t, os.Chtimes(p, old, old))
	}
	wantSame("when it is forgotten", h.open(t), same, false)
}

// A start that was killed when its token was written, and before its snapshot was
// there for good, is begun anew, also by a region that was open all the time: what
// is put to that one stays.
func TestClientTokenOfAKilledStart(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	in := StartSnapshotInput{VolumeSize: 1, ClientToken: "token-1"}
	first := get(r.StartSnapshot(t.Context(), in))(t).SnapshotID
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { // which the commit took away
		return tx.PutLease(catalog.Lease{ID: string(first), Created: time.Now().UTC()})
	}))
	again := get(r.StartSnapshot(t.Context(), in))(t).SnapshotID
	must(t, putErr(t, r, again, 0, blockOf(1)))
	next := h.open(t)
	must(t, completeErr(t, next, again, 1))
	wantNoDrafts(t, next)
	if got := get(next.DescribeSnapshots(t.Context(), DescribeInput{}))(t); len(got) != 1 || again == first {
		t.Errorf("got %v, and %s where the killed one was %s", got, again, first)
	}
}
