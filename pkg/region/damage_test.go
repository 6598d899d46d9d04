package region

import (
	"database/sql"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// A record that cannot be read is told of, and everything else goes on.
func TestDamagedRecord(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	good, gone := image(t, r, "good"), image(t, r, "gone")
	inst := launched(t, r, RunInstancesInput{Image: "gone"})
	past := launched(t, r, RunInstancesInput{Image: "good"})
	terminate(t, r, past.InstanceID)
	must(t, r.updateInstance(t.Context(), past.InstanceID, func(i *ami.Instance) { i.Terminated = time.Now().Add(-2 * tombstone) }))
	db, err := sql.Open("sqlite", r.path("catalog.db"))
	must(t, err)
	defer db.Close()
	_, err = db.ExecContext(t.Context(), "UPDATE instances SET doc = '{' WHERE id = ?", string(inst.InstanceID))
	must(t, err)

	l := &listener{}
	r = h.open(t, tellingTo(l))
	if !l.noted(string(inst.InstanceID)) || len(l.notes) != 1 {
		t.Errorf("got the notes %q, want one of %s", l.notes, inst.InstanceID)
	}
	if all := get(r.DescribeInstances(t.Context(), DescribeInput{}))(t); len(all) > 0 || len(l.notes) != 1 {
		t.Errorf("got the instances %v and notes %q, want none and no more", all, l.notes)
	}
	must(t, r.catalog.View(t.Context(), func(tx *catalog.Tx) error {
		if _, err := tx.Instance(past.InstanceID); err == nil {
			t.Error("a past instance is not forgotten")
		}
		return nil
	}))
	// Its image is kept for it, for all that can be known.
	_, err = r.DeregisterImage(t.Context(), gone.ImageID, false, false)
	must(t, err)
	r = h.open(t)
	must(t, r.catalog.View(t.Context(), func(tx *catalog.Tx) error { _, err := tx.Image(gone.ImageID); return err }))
	launched(t, r, RunInstancesInput{Image: string(good.ImageID)})
	all := get(r.VerifyStore(t.Context(), VerifyInput{}))(t).Results
	if !slices.ContainsFunc(all, func(v VerifyResult) bool { return !v.OK && strings.Contains(v.Detail, string(inst.InstanceID)) }) {
		t.Errorf("got %+v, want the damaged record among it", all)
	}
}
