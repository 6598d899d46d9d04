package region

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/snapshot"
)

// A snapshot that is put together has a pending record without a lease: it is no
// process's work, so none that dies leaves it half done. The record names the
// layer that it stands on, the draft has the blocks that were put. It ends when it
// is completed, when its time is up or when it is deleted, and the draft with it.

// draftPrefix begins the lease of a snapshot that is being completed. Undone, it
// leaves the snapshot and its draft.
const draftPrefix = "draft-"

// draft opens the draft of one of the caller's snapshots, takes it with lock and
// then sees that the snapshot is pending and its time is not up. It returns the
// snapshot also where that fails.
func (r *Region) draft(ctx context.Context, id ami.SnapshotID, lock func(*snapshot.Draft) error) (_ *snapshot.Draft, snap ami.Snapshot, err error) {
	if _, err := ami.ParseSnapshotID(string(id)); err != nil { // which is to be a file's name
		return nil, snap, err
	}
	d, derr := r.layers.OpenDraft(id)
	if derr == nil {
		defer func() {
			if err != nil {
				d.Close()
			}
		}()
		derr = lock(d)
	}
	// What the record says now stays so for as long as the draft is taken.
	snap, err = r.ownSnapshot(ctx, id)
	switch {
	case err != nil:
		return nil, snap, err
	case snap.State == ami.SnapshotError:
		return nil, snap, ami.Errorf(ami.CodeIncorrectState, "The snapshot %s is in the state error, not pending: %s", id, snap.StateReason).
			WithHint("Start another one.")
	case snap.State != ami.SnapshotPending:
		return nil, snap, ami.Errorf(ami.CodeIncorrectState, "The snapshot %s is %s, not pending.", id, snap.State)
	case errors.Is(derr, snapshot.ErrNoDraft):
		return nil, snap, ami.Errorf(ami.CodeIncorrectState, "The snapshot %s is not one that blocks are put to.", id).
			WithHint("StartSnapshot makes such a one.")
	case errors.Is(derr, snapshot.ErrDraftBusy):
		return nil, snap, ami.Errorf(ami.CodeIncorrectState, "The snapshot %s is being completed.", id)
	case derr != nil:
		return nil, snap, storeError(derr, "The draft of %s cannot be opened.", id)
	}
	deadline, err := d.Deadline()
	if err != nil {
		return nil, snap, storeError(err, "The draft of %s cannot be read.", id)
	}
	if time.Now().Before(deadline) {
		return d, snap, nil
	}
	d.Close() // or it could not be taken for good
	if err := r.expireDraft(ctx, id); err != nil {
		return nil, snap, storeError(err, "The snapshot %s, whose time is up, cannot be ended.", id)
	}
	return nil, snap, ami.Errorf(ami.CodeIncorrectState, "The time of the snapshot %s is up: %s", id, timedOut(d.Timeout)).
		WithHint("Start another one, with a longer timeout.")
}

func timedOut(timeout time.Duration) string {
	return fmt.Sprintf("no block was put for %s.", timeout)
}

// takeDraft waits until nobody else has a draft.
func (r *Region) takeDraft(ctx context.Context, id ami.SnapshotID, d *snapshot.Draft) error {
	err := d.TryTake()
	if !errors.Is(err, snapshot.ErrDraftBusy) {
		return err
	}
	step := r.progress.Step(fmt.Sprintf("waiting until others are done with %s", id), 0)
	err = d.Take(ctx)
	step.Done(err)
	return err
}

// expireDraft puts a pending snapshot whose time is up into error and removes what
// was put to it. One that somebody has just put a block to, or that is being
// completed, is left alone.
func (r *Region) expireDraft(ctx context.Context, id ami.SnapshotID) error {
	d, err := r.layers.OpenDraft(id)
	if errors.Is(err, snapshot.ErrNoDraft) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.TryTake(); errors.Is(err, snapshot.ErrDraftBusy) {
		return nil
	} else if err != nil {
		return err
	}
	if deadline, err := d.Deadline(); err != nil || time.Now().Before(deadline) {
		return err
	}
	var parent digest.Digest
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		snap, err := tx.Snapshot(id)
		if err != nil {
			return err
		}
		if parent = snap.Layer; snap.State == ami.SnapshotPending {
			snap.State, snap.StateReason, snap.Layer = ami.SnapshotError, "Timed out: "+timedOut(d.Timeout), ""
		}
		if err := tx.PutSnapshot(snap); err != nil {
			return err
		}
		return putGoneDraft(tx, id)
	})
	if errors.Is(err, catalog.ErrNotFound) {
		return nil // a catalog that was lost takes nothing with it
	}
	if err != nil {
		return err
	}
	durable.Step("snapshot.expired")
	r.removeDraft(ctx, id, parent)
	return nil
}

// putGoneDraft notes that the draft of a snapshot is to be removed.
func putGoneDraft(tx *catalog.Tx, id ami.SnapshotID) error {
	return tx.PutLease(catalog.Lease{ID: catalog.GonePrefix + string(id), Created: time.Now().UTC()})
}

// removeDraft removes a draft of which putGoneDraft has been committed, and the
// layer that it stood on where nothing else needs that. What fails, the next
// command does.
func (r *Region) removeDraft(ctx context.Context, id ami.SnapshotID, parent digest.Digest) {
	ctx = context.WithoutCancel(ctx)
	err := r.layers.RemoveDraft(id)
	if err == nil {
		err = r.catalog.Update(ctx, func(tx *catalog.Tx) error { return tx.DeleteLease(catalog.GonePrefix + string(id)) })
	}
	if err != nil {
		r.progress.Note("what was put to %s cannot be removed yet: %v", id, err)
	}
	if parent == "" {
		return
	}
	if _, err := r.dropLayers(ctx, parent); err != nil {
		r.progress.Note("the layer under %s could not be removed; kami store gc will: %v", id, err)
	}
}

// sweepDrafts ends the snapshots whose time is up, and forgets old client tokens.
func (r *Region) sweepDrafts(ctx context.Context) error {
	ids, err := r.layers.Drafts()
	errs := []error{err}
	for _, id := range ids {
		deadline, err := r.layers.DraftDeadline(id)
		switch {
		case errors.Is(err, snapshot.ErrNoDraft): // removed since
		case errors.Is(err, snapshot.ErrDraftDamaged):
			errs = append(errs, fmt.Errorf("%w; kami snapshot delete %s removes it", err, id))
		case err != nil:
			errs = append(errs, err)
		case time.Now().After(deadline):
			errs = append(errs, r.expireDraft(ctx, id))
		}
	}
	return errors.Join(append(errs, r.sweepTokens(), r.sweepChunks())...)
}
