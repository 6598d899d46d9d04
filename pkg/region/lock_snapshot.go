package region

import (
	"context"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// EC2's limits on locks.
const (
	maxLockDays     = 36500
	maxCoolOffHours = 72
)

// LockSnapshotInput asks for a snapshot to be kept from being deleted, for a number of
// days or until an instant.
type LockSnapshotInput struct {
	SnapshotID    ami.SnapshotID
	Mode          ami.LockMode
	Days          int       // 1 to 36500; 0 where Until is given
	Until         time.Time // at least a day away
	CoolOffPeriod int       // hours in which a compliance lock can still be changed, up to 72; 0 is none
	DryRun        bool
}

func (in LockSnapshotInput) check(now time.Time) error {
	bad := func(code ami.Code, format string, args ...any) error { return ami.Errorf(code, format, args...) }
	switch {
	case in.Mode != ami.LockGovernance && in.Mode != ami.LockCompliance:
		return bad(ami.CodeInvalidParameterValue, "The lock mode %q is not one of governance and compliance.", in.Mode)
	case (in.Days != 0) == !in.Until.IsZero():
		return bad(ami.CodeInvalidParameterCombination, "Give the days that the lock lasts or the time when it ends, one of the two.")
	case in.Days < 0 || in.Days > maxLockDays:
		return bad(ami.CodeInvalidParameterValue, "The duration of %d days is not from 1 to %d.", in.Days, maxLockDays)
	case !in.Until.IsZero() && (in.Until.Before(now.AddDate(0, 0, 1)) || in.Until.After(now.AddDate(0, 0, maxLockDays))):
		return bad(ami.CodeInvalidParameterValue, "The end %s is not from 1 to %d days away.", in.Until.UTC().Format(time.RFC3339), maxLockDays)
	case in.CoolOffPeriod < 0 || in.CoolOffPeriod > maxCoolOffHours:
		return bad(ami.CodeInvalidParameterValue, "The cooling-off period of %d hours is not from 1 to %d.", in.CoolOffPeriod, maxCoolOffHours)
	case in.CoolOffPeriod > 0 && in.Mode != ami.LockCompliance:
		return bad(ami.CodeInvalidParameterCombination, "A cooling-off period goes with the mode compliance.")
	}
	return nil
}

// LockSnapshot locks one of the caller's snapshots, or changes its lock. A compliance
// lock whose cooling-off period is over can only be made longer.
func (r *Region) LockSnapshot(ctx context.Context, in LockSnapshotInput) (ami.Snapshot, error) {
	return r.editSnapshot(ctx, in.SnapshotID, in.DryRun, "lock", func(snap *ami.Snapshot, now time.Time) error {
		if err := in.check(now); err != nil {
			return err
		}
		if err := checkCompleted(*snap); err != nil {
			return err
		}
		lock := ami.SnapshotLock{Mode: in.Mode, CreatedOn: now, DurationStartTime: now, Duration: in.Days, ExpiresOn: in.Until.UTC()}
		if in.Days > 0 {
			lock.ExpiresOn = now.AddDate(0, 0, in.Days)
		} else {
			lock.Duration = int((in.Until.Sub(now) + 24*time.Hour - 1) / (24 * time.Hour))
		}
		if in.CoolOffPeriod > 0 {
			lock.CoolOffPeriod, lock.CoolOffExpiresOn = in.CoolOffPeriod, now.Add(time.Duration(in.CoolOffPeriod)*time.Hour)
		}
		if old := snap.Lock; old != nil && old.State(now) == string(ami.LockCompliance) {
			if in.Mode != ami.LockCompliance || in.CoolOffPeriod > 0 || !lock.ExpiresOn.After(old.ExpiresOn) {
				return ami.Errorf(ami.CodeOperationNotPermitted, "The snapshot %s is locked in compliance mode until %s, which can only be made later.",
					in.SnapshotID, old.ExpiresOn.Format(time.RFC3339))
			}
			lock.CreatedOn, lock.DurationStartTime = old.CreatedOn, old.DurationStartTime
			lock.CoolOffPeriod, lock.CoolOffExpiresOn = old.CoolOffPeriod, old.CoolOffExpiresOn
		}
		snap.Lock = &lock
		return nil
	})
}

// UnlockSnapshot takes a lock off that is of governance mode, or still cooling off.
func (r *Region) UnlockSnapshot(ctx context.Context, id ami.SnapshotID, dry bool) (ami.Snapshot, error) {
	return r.editSnapshot(ctx, id, dry, "unlock", func(snap *ami.Snapshot, now time.Time) error {
		if snap.Lock == nil || snap.Lock.State(now) == "expired" {
			return ami.Errorf(ami.CodeIncorrectState, "The snapshot %s is not locked.", id)
		}
		if snap.Lock.State(now) == string(ami.LockCompliance) {
			return ami.Errorf(ami.CodeOperationNotPermitted, "The snapshot %s is locked in compliance mode until %s; nobody can unlock it before.",
				id, snap.Lock.ExpiresOn.Format(time.RFC3339))
		}
		snap.Lock = nil
		return nil
	})
}

// editSnapshot changes one of the caller's snapshots as it is now, told the latest
// time that is known.
func (r *Region) editSnapshot(ctx context.Context, id ami.SnapshotID, dry bool, would string, edit func(*ami.Snapshot, time.Time) error) (snap ami.Snapshot, err error) {
	if _, err := ami.ParseSnapshotID(string(id)); err != nil {
		return snap, err
	}
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if snap, err = tx.Snapshot(id); err != nil || snap.OwnerID != r.account || snap.State == ami.SnapshotRecoverable {
			return notFoundOr(err, notFoundSnapshot(id))
		}
		now, err := r.tick(tx)
		if err != nil {
			return err
		}
		if err := edit(&snap, now.Truncate(time.Second)); err != nil {
			return err
		}
		if dry {
			return dryRun("%s %s", would, id)
		}
		return tx.PutSnapshot(snap)
	})
	return snap, storeError(err, "The snapshot %s cannot be changed.", id)
}
