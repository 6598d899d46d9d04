package catalog

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// host is a clock, and the run of a host, that a test turns.
type host struct{ at Instant }

func newHost() *host {
	return &host{Instant{time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC), "one", time.Hour}}
}

func (h *host) now() Instant { return h.at }

// pass lets time go by, in which the clock is set by some more.
func (h *host) pass(d, set time.Duration) {
	h.at.Time, h.at.Up = h.at.Time.Add(d+set), h.at.Up+d
}

func (h *host) reboot(boot string, away time.Duration) {
	h.at = Instant{h.at.Time.Add(away), boot, time.Minute}
}

func metered(t *testing.T, h *host) *Store {
	t.Helper()
	s := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	if err := s.StartMetering(t.Context(), Meter{Now: h.now}); err != nil {
		t.Fatal(err)
	}
	return s
}

func update(t *testing.T, s *Store, fn func(*Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func usages(t *testing.T, s *Store) (all []UsageRecord) {
	t.Helper()
	if err := s.View(t.Context(), func(tx *Tx) (err error) { all, err = tx.Usages(time.Time{}, time.Time{}); return err }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestInstanceIsMeteredByItsState(t *testing.T) {
	type step struct {
		state ami.InstanceState
		code  string // why it is so
		pass  time.Duration
		set   time.Duration
		boot  string
	}
	hour := time.Hour
	tests := []struct {
		name  string
		steps []step // each state lasts as long as it says
		want  []time.Duration
	}{
		{"never ran", []step{{"pending", "", hour, 0, ""}, {"terminated", "", hour, 0, ""}}, nil},
		{"two runs", []step{{"running", "", hour, 0, ""}, {"stopped", "", hour, 0, ""}, {"running", "", 2 * hour, 0, ""}, {"terminated", "", hour, 0, ""}}, []time.Duration{hour, 2 * hour}},
		{"written twice", []step{{"running", "", hour, 0, ""}, {"running", "", hour, 0, ""}, {"stopped", "", 0, 0, ""}, {"stopped", "", 0, 0, ""}}, []time.Duration{2 * hour}},
		{"clock set back", []step{{"running", "", 2 * hour, -24 * hour, ""}, {"stopped", "", 0, 0, ""}}, []time.Duration{2 * hour}},
		{"clock set forward", []step{{"running", "", 2 * hour, 24 * hour, ""}, {"stopped", "", 0, 0, ""}}, []time.Duration{2 * hour}},
		{"host restarted", []step{{"running", "", hour, 0, "two"}, {"stopped", "", 0, 0, ""}}, []time.Duration{2 * hour}}, // an hour of it away
		{"host restarted with the clock set back", []step{{"running", "", hour, -24 * hour, "two"}, {"stopped", "", 0, 0, ""}}, []time.Duration{0}},
		{"ended by itself", []step{{"running", "", 3 * hour, 0, ""}, {"stopped", "Server.InternalError", 0, 0, ""}}, []time.Duration{hour}},
		{"stopped by a command", []step{{"running", "", 3 * hour, 0, ""}, {"stopped", "Client.UserInitiatedShutdown", 0, 0, ""}}, []time.Duration{3 * hour}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost()
			s := metered(t, h)
			alive := h.at.Time.Add(hour)
			s.meter.Alive = func(ami.Instance) time.Time { return alive }
			i := ami.Instance{InstanceID: ami.NewInstanceID(), OwnerID: ami.DefaultAccount, InstanceType: "t3.micro"}
			for _, st := range tt.steps {
				i.State, i.StateReason = ami.StateRecord(st.state), nil
				if st.code != "" {
					i.StateReason = &ami.StateReason{Code: st.code}
				}
				update(t, s, func(tx *Tx) error { return tx.PutInstance(i) })
				h.pass(st.pass, st.set)
				if st.boot != "" {
					h.reboot(st.boot, hour)
				}
			}
			got := usages(t, s)
			if len(got) != len(tt.want) {
				t.Fatalf("got %d usages, want %d: %+v", len(got), len(tt.want), got)
			}
			for n, u := range got {
				if u.To.IsZero() || u.To.Sub(u.From) != tt.want[n] {
					t.Errorf("usage %d is from %s to %s, want %s of it", n, u.From, u.To, tt.want[n])
				}
			}
		})
	}
}

// What is undone with its commit was not used.
func TestUsageIsOfTheCommit(t *testing.T) {
	h := newHost()
	s := metered(t, h)
	i := ami.Instance{InstanceID: ami.NewInstanceID(), State: ami.StateRecord(ami.InstanceRunning)}
	failed := errors.New("failed")
	err := s.Update(t.Context(), func(tx *Tx) error { return errors.Join(tx.PutInstance(i), failed) })
	if !errors.Is(err, failed) || len(usages(t, s)) != 0 {
		t.Errorf("got %v and the usages %v, want none", err, usages(t, s))
	}
}

func TestStorageIsMeteredAsItChanges(t *testing.T) {
	h := newHost()
	s := metered(t, h)
	v := ami.Volume{VolumeID: ami.NewVolumeID(), VolumeType: "gp3", Size: 1, State: ami.VolumeCreating}
	put := func() { update(t, s, func(tx *Tx) error { return tx.PutVolume(v) }) }
	put()
	h.pass(time.Hour, 0)
	v.State = ami.VolumeAvailable
	put()
	h.pass(time.Hour, 0)
	v.State = ami.VolumeInUse // which costs the same
	put()
	h.pass(time.Hour, 0)
	v.Size = 3
	put()
	h.pass(time.Hour, 0)
	update(t, s, func(tx *Tx) error { return tx.DeleteVolume(v.VolumeID) })
	got := usages(t, s)
	if len(got) != 2 || got[0].Bytes != 1<<30 || got[1].Bytes != 3<<30 || got[0].To.Sub(got[0].From) != 2*time.Hour || got[1].To.Sub(got[1].From) != time.Hour {
		t.Errorf("got %+v, want 1 GiB for two hours and 3 for one", got)
	}
	v = ami.Volume{VolumeID: ami.NewVolumeID(), Size: 1, State: ami.VolumeInUse, Ephemeral: true}
	put()
	if got := usages(t, s); len(got) != 2 {
		t.Errorf("an ephemeral disk is metered: %+v", got[2:])
	}
}

// A usage that cannot be read keeps nobody from stopping what it is of.
func TestDamagedUsage(t *testing.T) {
	h := newHost()
	s := metered(t, h)
	i := ami.Instance{InstanceID: ami.NewInstanceID()}
	for _, state := range []ami.InstanceState{ami.InstanceRunning, ami.InstanceStopped, ami.InstanceRunning} {
		i.State = ami.StateRecord(state)
		update(t, s, func(tx *Tx) error { return tx.PutInstance(i) })
		update(t, s, func(tx *Tx) error {
			_, err := tx.conn.ExecContext(t.Context(), "UPDATE usages SET doc = '{' WHERE ended = '' AND NOT EXISTS (SELECT 1 FROM usages WHERE ended != '')")
			return err
		})
		h.pass(time.Hour, 0)
	}
	i.State = ami.StateRecord(ami.InstanceStopped)
	update(t, s, func(tx *Tx) error { return tx.PutInstance(i) })
	err := s.View(t.Context(), func(tx *Tx) error {
		all, err := tx.Usages(time.Time{}, time.Time{})
		if len(all) != 1 || all[0].To.Sub(all[0].From) != time.Hour || !errors.Is(err, ErrDamaged) {
			t.Errorf("got %+v (%v), want the second hour beside ErrDamaged", all, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A catalog of before is metered from now on, and only once.
func TestMeteringBegins(t *testing.T) {
	h := newHost()
	s := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	snap := ami.Snapshot{SnapshotID: ami.NewSnapshotID(), State: ami.SnapshotCompleted, Layer: "aa", LayerBytes: 7}
	update(t, s, func(tx *Tx) error { return tx.PutSnapshot(snap) })
	update(t, s, func(tx *Tx) error { return remove(tx, "usages", "TRUE") }) // as it was
	for range 2 {
		if err := s.StartMetering(t.Context(), Meter{Now: h.now}); err != nil {
			t.Fatal(err)
		}
		h.pass(time.Hour, 0)
	}
	got := usages(t, s)
	if len(got) != 1 || got[0].ResourceID != string(snap.SnapshotID) || !got[0].From.Equal(newHost().at.Time) || got[0].Layers[0].Bytes != 7 {
		t.Errorf("got %+v, want one usage of the snapshot since metering began", got)
	}
}

// The usages of a month are those that were there in it, also in the middle of many, and
// are found by the index.
func TestUsagesOfAMonth(t *testing.T) {
	s := metered(t, newHost())
	month := func(n time.Month) time.Time { return time.Date(2026, n, 1, 0, 0, 0, 0, time.UTC) }
	day := 24 * time.Hour
	for id, at := range map[string][2]time.Time{
		"before":       {month(3).Add(day), month(4)},
		"from before":  {month(3).Add(day), month(4).Add(1)},
		"in it":        {month(4), month(4).Add(day)},
		"all of it":    {month(3), month(6)},
		"to after":     {month(5).Add(-1), month(5)},
		"after":        {month(5), month(6)},
		"goes on":      {month(4).Add(day)},
		"begins after": {month(5).Add(day)},
	} {
		update(t, s, func(tx *Tx) error {
			return tx.putUsage(UsageRecord{ID: id, Usage: ami.Usage{ResourceID: id, From: at[0], To: at[1]}})
		})
	}
	var got []string
	err := s.View(t.Context(), func(tx *Tx) error {
		all, err := tx.Usages(month(4), month(5))
		for _, u := range all {
			got = append(got, u.ID)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if slices.Sort(got); !slices.Equal(got, []string{"all of it", "from before", "goes on", "in it", "to after"}) {
		t.Errorf("got %q", got)
	}
	plan := texts(t, s.db, "EXPLAIN QUERY PLAN SELECT id, doc FROM usages WHERE "+strings.ReplaceAll(usagesOf, "?", "'2026'")+" ORDER BY created, id")
	for _, step := range plan {
		if strings.Contains(step, "SCAN") || strings.Contains(step, "SEARCH") && !strings.Contains(step, "usage_times") {
			t.Errorf("got the plan %q, want one by usage_times", plan)
		}
	}
}
