package catalog

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
)

// What is used is written down where it changes: the commit by which an instance runs
// opens its usage, and the one by which it does not closes it. So no use is lost or
// counted twice, whoever is killed and whenever; nothing ticks. A thing has at most
// one open usage, which the schema holds.

const meterSchema = `
	CREATE TABLE IF NOT EXISTS usages (
		id TEXT PRIMARY KEY, resource TEXT NOT NULL, owner TEXT NOT NULL, ended TEXT NOT NULL,
		created TEXT NOT NULL, doc TEXT NOT NULL
	) STRICT;
	CREATE UNIQUE INDEX IF NOT EXISTS usage_open ON usages (resource) WHERE ended = '';
	CREATE INDEX IF NOT EXISTS usage_ended ON usages (ended);`

// A month in the middle of many is found without a look at what is after it.
const meterIndex = `
	DROP INDEX usage_ended;
	CREATE INDEX usage_times ON usages (ended, created);`

// Instant is a moment by the clock, and by what does not follow when that is set: the
// run of the host, and how long it has lasted. An empty Boot is of an unknown run.
type Instant struct {
	Time time.Time
	Boot string
	Up   time.Duration
}

// Meter says what the catalog does not know of what is used.
type Meter struct {
	Now func() Instant
	// Layers returns what a layer stands on, itself first. What is not known is left
	// out.
	Layers func(digest.Digest) []ami.LayerUse
	// Alive returns when an instance whose guest ended by itself was last known to
	// run.
	Alive func(ami.Instance) time.Time
}

// SettingMetered is the setting of the region that says since when it is metered.
const SettingMetered = "metered-since"

// StartMetering has m say what is used from now on. What is there in a catalog that
// was not metered before is used from now.
func (s *Store) StartMetering(ctx context.Context, m Meter) error {
	s.meter = m
	since, err := s.meteredSince(ctx)
	if err != nil || !since.IsZero() {
		return err
	}
	return s.Update(ctx, func(tx *Tx) error {
		if err := tx.Setting("", SettingMetered, &since); err != nil || !since.IsZero() { // another process was quicker
			return err
		}
		var errs []error
		instances, err := tx.Instances()
		errs = append(errs, legible(err))
		for _, i := range instances {
			errs = append(errs, tx.meterInstance(i))
		}
		volumes, err := tx.Volumes()
		errs = append(errs, legible(err))
		for _, v := range volumes {
			errs = append(errs, tx.meterVolume(v))
		}
		snapshots, err := tx.Snapshots()
		errs = append(errs, legible(err))
		for _, s := range snapshots {
			errs = append(errs, tx.meterSnapshot(s))
		}
		return errors.Join(append(errs, tx.PutSetting("", SettingMetered, tx.instant().Time))...)
	})
}

func (s *Store) meteredSince(ctx context.Context) (since time.Time, err error) {
	err = s.View(ctx, func(tx *Tx) error { return tx.Setting("", SettingMetered, &since) })
	return since, err
}

// legible is err without what says that some records are damaged.
func legible(err error) error {
	if errors.Is(err, ErrDamaged) {
		return nil
	}
	return err
}

func (tx *Tx) instant() Instant {
	if tx.meter.Now == nil {
		return Instant{Time: time.Now().UTC()}
	}
	return tx.meter.Now()
}

// UsageRecord is a usage and the id of its record.
type UsageRecord struct {
	ID string `json:"Id"`
	ami.Usage
}

// Usages reads the usages of a time, oldest first: those that had not ended at its
// beginning, and had begun before its end. It is by the clock; the zero instants are for
// all there are.
func (tx *Tx) Usages(from, to time.Time) ([]UsageRecord, error) {
	if from.IsZero() && to.IsZero() {
		return many[UsageRecord](tx, "usages", "TRUE")
	}
	return many[UsageRecord](tx, "usages", usagesOf, stamp(from), stamp(to))
}

const usagesOf = "(ended = '' OR ended > ?) AND created < ?"

// openUsage reads the open usage of a thing, of which found says whether there is one.
func (tx *Tx) openUsage(resource string) (u UsageRecord, found bool, err error) {
	u, err = one[UsageRecord](tx, "usages", "resource = ? AND ended = ''", resource)
	if errors.Is(err, ErrNotFound) {
		return u, false, nil
	}
	return u, err == nil, err
}

func (tx *Tx) putUsage(u UsageRecord) error {
	ended := ""
	if !u.To.IsZero() {
		ended = stamp(u.To)
	}
	return put(tx, "usages", u, []string{"id", "resource", "owner", "ended", "created"}, u.ID, u.ResourceID, u.OwnerID, ended, stamp(u.From))
}

// beginUsage opens a usage now.
func (tx *Tx) beginUsage(u ami.Usage) error {
	now := tx.instant()
	u.From, u.To, u.Boot, u.Up = now.Time, time.Time{}, now.Boot, now.Up
	return tx.putUsage(UsageRecord{ID: u.ResourceID + "/" + rand.Text(), Usage: u})
}

// endUsage closes a usage now, or at an earlier time by the clock.
func (tx *Tx) endUsage(u UsageRecord, at time.Time) error {
	now := tx.instant()
	u.To = u.EndAt(now.Time, now.Boot, now.Up)
	if early := now.Time.Sub(at); !at.IsZero() && early > 0 {
		if u.To = u.To.Add(-early); u.To.Before(u.From) {
			u.To = u.From
		}
	}
	return tx.putUsage(u)
}

// leaveUsage has the open usage of a thing, which cannot be read, be over: it is on no
// bill, but keeps nobody from stopping a guest.
func (tx *Tx) leaveUsage(resource string) error {
	_, err := tx.conn.ExecContext(tx.ctx, "UPDATE usages SET ended = ? WHERE resource = ? AND ended = ''", stamp(tx.instant().Time), resource)
	return err
}

// meterAs brings the open usage of a thing to what it is now: want, or nothing at all
// with counts false. ended says when that began to be so; nil is for now.
func (tx *Tx) meterAs(resource string, counts bool, want ami.Usage, ended func() time.Time) error {
	have, open, err := tx.openUsage(resource)
	if errors.Is(err, ErrDamaged) {
		err = tx.leaveUsage(resource)
	}
	if err != nil {
		return fmt.Errorf("metering %s: %w", resource, err)
	}
	if open && counts && have.OwnerID == want.OwnerID && have.Type == want.Type && have.Bytes == want.Bytes &&
		layerOf(have.Usage) == layerOf(want) && slices.Equal(have.ProductCodes, want.ProductCodes) {
		return nil
	}
	if open {
		var at time.Time
		if !counts && ended != nil {
			at = ended()
		}
		if err := tx.endUsage(have, at); err != nil {
			return err
		}
	}
	if !counts {
		return nil
	}
	if want.Kind == ami.UsageSnapshot && tx.meter.Layers != nil {
		if all := tx.meter.Layers(layerOf(want)); len(all) > 0 {
			want.Layers = all
		}
	}
	return tx.beginUsage(want)
}

func layerOf(u ami.Usage) digest.Digest {
	if len(u.Layers) == 0 {
		return ""
	}
	return u.Layers[0].Layer
}

// meterInstance is called with each record of an instance before that is written.
func (tx *Tx) meterInstance(i ami.Instance) error {
	runs := i.State.Name == ami.InstanceRunning
	want := ami.Usage{Kind: ami.UsageInstance, ResourceID: string(i.InstanceID), OwnerID: i.OwnerID, Type: i.InstanceType, ImageID: i.ImageID}
	for _, c := range i.ProductCodes {
		want.ProductCodes = append(want.ProductCodes, c.ID)
	}
	return tx.meterAs(want.ResourceID, runs, want, func() time.Time { return tx.aliveUntil(i) })
}

// aliveUntil is when an instance that does not run any more ended: the zero time for
// now, where a command ended it.
func (tx *Tx) aliveUntil(i ami.Instance) time.Time {
	if i.StateReason == nil || i.StateReason.Code == "Client.UserInitiatedShutdown" || tx.meter.Alive == nil {
		return time.Time{}
	}
	was, err := tx.Instance(i.InstanceID) // with the volumes that it had
	if err != nil {
		return time.Time{}
	}
	return tx.meter.Alive(was)
}

func (tx *Tx) meterVolume(v ami.Volume) error {
	want := ami.Usage{Kind: ami.UsageVolume, ResourceID: string(v.VolumeID), OwnerID: v.OwnerID, Type: v.VolumeType, Bytes: v.Size << 30}
	there := v.State == ami.VolumeAvailable || v.State == ami.VolumeInUse
	return tx.meterAs(want.ResourceID, there && !v.Ephemeral, want, nil)
}

// What lies in the recycle bin takes its place, and is paid for as on EC2.
func (tx *Tx) meterSnapshot(s ami.Snapshot) error {
	want := ami.Usage{
		Kind: ami.UsageSnapshot, ResourceID: string(s.SnapshotID), OwnerID: s.OwnerID,
		Layers: []ami.LayerUse{{Layer: s.Layer, Bytes: s.LayerBytes}},
	}
	there := slices.Contains([]ami.SnapshotState{ami.SnapshotCompleted, ami.SnapshotRecoverable}, s.State)
	return tx.meterAs(want.ResourceID, there && s.Layer != "", want, nil)
}

// meterGone closes the usage of a thing whose record is deleted.
func (tx *Tx) meterGone(resource string) error {
	return tx.meterAs(resource, false, ami.Usage{}, nil)
}
