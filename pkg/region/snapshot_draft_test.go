package region

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// age has the last block of a snapshot put so long ago.
func age(t *testing.T, r *Region, id ami.SnapshotID, by time.Duration) {
	t.Helper()
	then := time.Now().Add(-by)
	must(t, os.Chtimes(r.path("drafts", string(id), "journal"), then, then))
}

// wantTimedOut checks that a snapshot has ended in error, with nothing left of it.
func wantTimedOut(t *testing.T, r *Region, id ami.SnapshotID) {
	t.Helper()
	got := described(t, r, id)
	if got.State != ami.SnapshotError || got.StateReason != "Timed out: no block was put for 1h0m0s." || got.Layer != "" {
		t.Errorf("got %+v, want it in error for its time being up", got)
	}
	wantNoDrafts(t, r)
}

// A snapshot that is being put together outlives the processes that do so, for as
// long as blocks come.
func TestDraftOutlivesProcesses(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	var id ami.SnapshotID
	for n := range int64(4) {
		l := &listener{}
		r := h.open(t, tellingTo(l))
		if n == 0 {
			id = start(t, r)
		}
		must(t, putErr(t, r, id, n, blockOf(byte(n))))
		age(t, r, id, 59*time.Minute)
		_, err := r.CollectGarbage(t.Context(), false)
		must(t, err)
		must(t, r.Close())
		if len(l.notes) > 0 {
			t.Errorf("got the notes %q, want none", l.notes)
		}
	}
	r := h.open(t)
	must(t, completeErr(t, r, id, 4))
	wantNoDrafts(t, r)
}

// The next command ends a snapshot whose time is up, and only that one.
func TestSweepOfDrafts(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	i := registered(t, r, snapshotOf(t, r, 1<<30, marks{0: 1}))
	active, idle, done := start(t, r), start(t, r, over(rootSnapshot(i))), start(t, r)
	must(t, putErr(t, r, active, 0, blockOf(1)))
	must(t, putErr(t, r, idle, 0, blockOf(1)))
	must(t, completeErr(t, r, done, 0))
	age(t, r, active, 59*time.Minute)
	age(t, r, idle, 61*time.Minute)
	other := h.open(t)
	if got := described(t, other, active); got.State != ami.SnapshotPending {
		t.Errorf("the active one is %s, want pending", got.State)
	}
	must(t, completeErr(t, other, active, 1))
	wantTimedOut(t, other, idle)
	wantCode(t, putErr(t, r, idle, 1, blockOf(1)), ami.CodeIncorrectState)
	wantCode(t, completeErr(t, r, idle, 1), ami.CodeIncorrectState)
	before := look(t, r, h.driver)
	if diff := cmp.Diff(before, look(t, h.open(t), h.driver)); diff != "" {
		t.Errorf("the next command changes something (-before +after):\n%s", diff)
	}
	must(t, r.DeleteSnapshot(t.Context(), idle, false))
}

// Where no command comes in between, who comes too late ends it.
func TestTooLate(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	for name, do := range map[string]func(id ami.SnapshotID) error{
		"put":      func(id ami.SnapshotID) error { return putErr(t, r, id, 1, blockOf(1)) },
		"complete": func(id ami.SnapshotID) error { return completeErr(t, r, id, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			id := start(t, r)
			must(t, putErr(t, r, id, 0, blockOf(1)))
			age(t, r, id, time.Hour+time.Second)
			err := do(id)
			wantCode(t, err, ami.CodeIncorrectState)
			wantSays(t, err, "time")
			wantTimedOut(t, r, id)
		})
	}
}

// The last thing that stood on a layer takes it along.
func TestTimedOutLayerGoes(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	base := completeWith(t, r, start(t, r), marks{0: 1})
	id := start(t, r, over(base.SnapshotID))
	must(t, r.DeleteSnapshot(t.Context(), base.SnapshotID, false))
	age(t, r, id, time.Hour)
	must(t, r.sweepDrafts(t.Context()))
	wantTimedOut(t, r, id)
	if layers := get(r.layers.Layers(t.Context()))(t); len(layers) > 0 {
		t.Errorf("got the layers %v, want none", layers)
	}
}

// Whoever is at a draft keeps it from being ended, and a draft without a record is
// left alone: the catalog may have been lost.
func TestDraftThatIsNotEnded(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	id := start(t, r)
	age(t, r, id, 2*time.Hour)
	d := get(r.layers.OpenDraft(id))(t)
	must(t, d.Share())
	must(t, r.sweepDrafts(t.Context()))
	if got := described(t, r, id); got.State != ami.SnapshotPending {
		t.Errorf("while it is used it is %s, want pending", got.State)
	}
	must(t, d.Close())
	var snap ami.Snapshot
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) (err error) {
		if snap, err = tx.Snapshot(id); err != nil {
			return err
		}
		return tx.DeleteSnapshot(id)
	}))
	h.open(t)
	if has := get(r.layers.HasDraft(id))(t); !has {
		t.Fatal("a draft without a record is gone")
	}
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.PutSnapshot(snap) }))
	wantTimedOut(t, h.open(t), id)
}

// A draft that cannot be read is told of, and is in nobody's way.
func TestUnreadableDraft(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	id := start(t, r)
	must(t, os.WriteFile(r.path("drafts", string(id), "journal"), []byte("x"), 0o600))
	l := &listener{}
	r = h.open(t, tellingTo(l))
	if !l.noted("damaged draft") {
		t.Errorf("got the notes %q, want to be told", l.notes)
	}
	if hint := "kami snapshot delete " + string(id); !l.noted(hint) {
		t.Errorf("got the notes %q, want the hint %q", l.notes, hint)
	}
	wantCode(t, putErr(t, r, id, 0, blockOf(1)), ami.CodeInternalError)
	wantCode(t, completeErr(t, r, id, 0), ami.CodeInternalError)
	wantCode(t, r.DeleteSnapshot(t.Context(), id, true), ami.CodeDryRunOperation)
	must(t, r.DeleteSnapshot(t.Context(), id, false))
	wantNoDrafts(t, r)
}

// A completion that fails costs no block, however long it took.
func TestFailedCompletionWaitsOn(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	l := &listener{}
	r := h.open(t, tellingTo(l))
	id := start(t, r)
	must(t, putErr(t, r, id, 0, blockOf(1)))
	waits := func(when string) {
		t.Helper()
		if d := get(r.layers.DraftDeadline(id))(t); time.Until(d) < 59*time.Minute {
			t.Errorf("%s its deadline is %s, want it in an hour", when, d)
		}
		if got := described(t, h.open(t), id); got.State != ami.SnapshotPending {
			t.Errorf("%s it is %s, want pending", when, got.State)
		}
	}
	age(t, r, id, 59*time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	l.onStep = func(name string) {
		waits("in " + name) // as for one that is killed there
		age(t, r, id, 2*time.Hour)
		cancel()
	}
	_, err := r.CompleteSnapshot(ctx, CompleteSnapshotInput{SnapshotID: id, ChangedBlocksCount: 1})
	if l.onStep = nil; err == nil || ctx.Err() == nil {
		t.Fatalf("got %v, want it interrupted", err)
	}
	waits("when it was interrupted")
	age(t, r, id, 59*time.Minute)
	wantCode(t, completeErr(t, r, id, 2), ami.CodeInvalidParameterValue)
	waits("when the count was wrong")
	must(t, completeErr(t, r, id, 1))
	wantNoDrafts(t, r)
}

// A journal that lies makes no snapshot, and says what is left to do.
func TestDamagedJournal(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	id := start(t, r)
	must(t, putErr(t, r, id, 0, blockOf(1)))
	must(t, putErr(t, r, id, 0, blockOf(2)))
	path := r.path("drafts", string(id), "journal")
	journal := get(os.ReadFile(path))(t)
	journal[len(journal)-1] ^= 1
	must(t, os.WriteFile(path, journal, 0o600))
	err := completeErr(t, r, id, 1)
	wantCode(t, err, ami.CodeInternalError)
	var e *ami.Error
	if !errors.As(err, &e) || !strings.Contains(e.Hint, "kami snapshot delete "+string(id)) {
		t.Errorf("got %+v, want the hint to delete it", err)
	}
	must(t, r.DeleteSnapshot(t.Context(), id, false))
	wantNoDrafts(t, r)
}

// What a killed process had begun to remove is removed.
func TestGoneDraft(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	id := start(t, r)
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		if err := putGoneDraft(tx, id); err != nil {
			return err
		}
		return tx.DeleteSnapshot(id)
	}))
	l := &listener{}
	wantNoDrafts(t, h.open(t, tellingTo(l)))
	if len(l.notes) > 0 {
		t.Errorf("got the notes %q, want none", l.notes)
	}
}

// A start that fails leaves nothing, and a layer that cannot be written leaves the
// snapshot as it was.
func TestFailedWork(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	before := look(t, r, h.driver)
	forgetful := errors.New("the token cannot be remembered")
	if _, err := r.startSnapshot(t.Context(), StartSnapshotInput{VolumeSize: 1, Timeout: time.Hour}, func(ami.SnapshotID) error { return forgetful }); !errors.Is(err, forgetful) {
		t.Errorf("got %v, want what failed", err)
	}
	wantNoDrafts(t, r)
	if diff := cmp.Diff(before, look(t, r, h.driver)); diff != "" {
		t.Errorf("it left something (-before +after):\n%s", diff)
	}

	base := completeWith(t, r, start(t, r), marks{0: 1})
	id := start(t, r, over(base.SnapshotID))
	must(t, putErr(t, r, id, 1, blockOf(1)))
	layer := r.layerFile(base.Layer)
	must(t, os.Rename(layer, layer+".away"))
	wantCode(t, completeErr(t, r, id, 1), ami.CodeInternalError)
	if got := described(t, r, id); got.State != ami.SnapshotPending || got.Layer != base.Layer {
		t.Errorf("got %+v, want it as it was", got)
	}
	must(t, os.Rename(layer+".away", layer))
	must(t, completeErr(t, r, id, 1))
	wantNoDrafts(t, r)
}
