package region

import (
	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// EC2's quotas of an account in a region.
const (
	snapshotQuota = 100_000
	draftQuota    = 100 // started by the block API, not completed yet
)

// putSnapshots records new snapshots, if the account may have as many.
func (r *Region) putSnapshots(tx *catalog.Tx, snaps ...ami.Snapshot) error {
	// Counting one owner's reads every record; all of them are counted in an index.
	n, err := tx.CountSnapshots()
	if err == nil && n+len(snaps) > r.maxSnapshots {
		n, _, err = tx.CountOwnSnapshots(r.account, "")
	}
	if err != nil {
		return err
	}
	if n+len(snaps) > r.maxSnapshots {
		return ami.Errorf(ami.CodeSnapshotLimitExceeded, "The account %s has %d snapshots in the region, and at most %d are allowed.", r.account, n, r.maxSnapshots).
			WithHint("Delete some: kami image prune and kami snapshot delete do.")
	}
	for _, s := range snaps {
		if err := tx.PutSnapshot(s); err != nil {
			return err
		}
	}
	return nil
}

// putDraft is putSnapshots for a snapshot that is being written.
func (r *Region) putDraft(tx *catalog.Tx, snap ami.Snapshot) error {
	_, open, err := tx.CountOwnSnapshots(r.account, string(ami.SnapshotPending))
	if err != nil {
		return err
	}
	if open >= r.maxDrafts {
		return ami.Errorf(ami.CodeConcurrentSnapshotLimitExceeded, "The account %s has %d pending snapshots in the region, and at most %d are allowed.", r.account, open, r.maxDrafts).
			WithHint("Complete or delete some of them: kami snapshot list --filter status=pending.")
	}
	return r.putSnapshots(tx, snap)
}
