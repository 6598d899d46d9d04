package region

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// job is work under way on objects that are not finished: each has a pending
// record, a lease in the catalog and a lock on disk that dies with the process.
// Whoever finds a lease whose lock nobody holds undoes the object.
type job struct {
	r     *Region
	ids   []string
	locks []*durable.Lock
	done  bool
}

func (r *Region) lockPath(id string) string { return r.path("tmp", id+".lock") }

// begin locks ids, then writes their pending records and leases in one commit.
func (r *Region) begin(ctx context.Context, records func(*catalog.Tx) error, ids ...string) (*job, error) {
	j := &job{r: r, ids: ids}
	for _, id := range ids {
		lock, ok, err := durable.TryLock(r.lockPath(id))
		if err != nil || !ok {
			j.unlock()
			if err == nil {
				err = fmt.Errorf("%s is locked by another command", id)
			}
			return nil, err
		}
		j.locks = append(j.locks, lock)
	}
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if records != nil {
			if err := records(tx); err != nil {
				return err
			}
		}
		for _, id := range ids {
			lease := catalog.Lease{ID: id, Holder: fmt.Sprint(os.Getpid()), Created: time.Now().UTC()}
			if err := tx.PutLease(lease); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		j.unlock()
		return nil, err
	}
	durable.Step("job.begin")
	return j, nil
}

// commit writes the finished records and drops the leases in one commit.
func (j *job) commit(ctx context.Context, records func(*catalog.Tx) error) error {
	durable.Step("job.commit")
	err := j.r.catalog.Update(context.WithoutCancel(ctx), func(tx *catalog.Tx) error {
		if err := records(tx); err != nil {
			return err
		}
		for _, id := range j.ids {
			if err := tx.DeleteLease(id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	j.done = true
	durable.Step("job.committed")
	j.unlock()
	return nil
}

// close undoes the job unless it was committed. It is meant for defer.
func (j *job) close(ctx context.Context) {
	if j.done {
		return
	}
	j.done = true
	// An interrupted command still tidies up behind itself, within a limit.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	for _, id := range j.ids {
		if err := j.r.undo(ctx, id); err != nil {
			j.r.progress.Note("%s could not be undone and is left for the next command: %v", id, err)
		}
	}
	j.unlock()
}

// abandon ends the job and leaves what it made.
func (j *job) abandon(ctx context.Context) {
	if err := j.commit(ctx, func(*catalog.Tx) error { return nil }); err != nil {
		j.r.progress.Note("the next command will not find that this one is over: %v", err)
	}
}

func (j *job) unlock() {
	for i, lock := range j.locks {
		os.Remove(j.r.lockPath(j.ids[i]))
		lock.Unlock()
	}
	j.locks = nil
}

// sweep undoes the work of processes that died, and removes their scratch.
func (r *Region) sweep(ctx context.Context) error {
	var leases []catalog.Lease
	if err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		leases, err = tx.Leases()
		return r.legible(err)
	}); err != nil {
		return err
	}
	for _, lease := range leases {
		lock, free, err := durable.TryLock(r.lockPath(lease.ID))
		if err != nil {
			return err
		}
		if !free {
			continue // its process is alive
		}
		left, err := r.isLeft(ctx, lease.ID)
		if left {
			err = r.undo(ctx, lease.ID)
		}
		os.Remove(r.lockPath(lease.ID))
		lock.Unlock()
		switch {
		case err != nil:
			r.progress.Note("%s was left half done and cannot be undone yet: %v", lease.ID, err)
		case left && !strings.HasPrefix(lease.ID, catalog.GonePrefix): // whose delete was done
			r.progress.Note("%s was left half done by an interrupted command; it has been undone.", lease.ID)
		}
	}
	if err := r.legible(r.sweepFiles(ctx)); err != nil { // no command fails for that
		r.progress.Note("what an interrupted command left cannot be removed yet: %v", err)
	}
	r.sweepFrozen(ctx)
	r.sweepRebooting(ctx)
	if err := r.sweepBin(ctx); err != nil {
		r.progress.Note("what is past its time in the recycle bin cannot be deleted yet: %v", err)
	}
	if err := r.purge(ctx); err != nil {
		r.progress.Note("what is long past cannot be forgotten yet: %v", err)
	}
	err := r.layers.Sweep()
	if errors.Is(err, fs.ErrPermission) { // an ordinary user's build
		err = r.sweepBuilds(ctx)
	}
	if err != nil { // what it started may still be ending
		r.progress.Note("what an interrupted command left cannot be removed yet: %v", err)
	}
	return nil
}

// isLeft says whether there is still a lease whose lock we hold by now: its
// process may have come to its end before that.
func (r *Region) isLeft(ctx context.Context, id string) (left bool, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		left, err = tx.HasLease(id)
		return err
	})
	return left, err
}

// undo removes a pending object and its lease. An object that is finished, or
// gone already, only loses its lease.
func (r *Region) undo(ctx context.Context, id string) error {
	var err error
	switch prefix, _, _ := strings.Cut(id, "-"); prefix {
	case "ami":
		err = r.undoImage(ctx, ami.ImageID(id))
	case "snap":
		err = r.undoSnapshot(ctx, ami.SnapshotID(id))
	case "vol":
		err = r.undoVolume(ctx, ami.VolumeID(id))
	case "i":
		err = r.undoInstance(ctx, ami.InstanceID(id))
	case "gone":
		err = r.sweepGone(ctx, strings.TrimPrefix(id, catalog.GonePrefix))
	case "build":
		err = r.undoBuilder(ctx, ami.InstanceID(strings.TrimPrefix(id, builderPrefix)))
	}
	if err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return err
	}
	return r.catalog.Update(ctx, func(tx *catalog.Tx) error { return tx.DeleteLease(id) })
}

func (r *Region) undoImage(ctx context.Context, id ami.ImageID) error {
	return r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		image, err := tx.Image(id)
		if err != nil || image.State != ami.ImagePending {
			return err
		}
		return tx.DeleteImage(id)
	})
}

func (r *Region) undoSnapshot(ctx context.Context, id ami.SnapshotID) error {
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		snap, err := tx.Snapshot(id)
		if err != nil || snap.State != ami.SnapshotPending {
			return err
		}
		return tx.DeleteSnapshot(id)
	})
	if err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return err
	}
	return r.layers.RemoveDraft(id) // of one that was just being started
}

func (r *Region) undoVolume(ctx context.Context, id ami.VolumeID) error {
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		vol, err := tx.Volume(id)
		if err != nil || vol.State != ami.VolumeCreating {
			return err
		}
		return tx.DeleteVolume(id)
	})
	if err != nil {
		return err
	}
	return r.sweepHead(ctx, id)
}

func (r *Region) undoInstance(ctx context.Context, id ami.InstanceID) error {
	var (
		inst ami.Instance
		vols []ami.Volume
	)
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		if inst, err = tx.Instance(id); err != nil {
			return err
		}
		vols, err = tx.VolumesOf(id)
		return err
	})
	if err != nil || inst.State.Name != ami.InstancePending {
		return err
	}
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return err
	}
	if err := driver.Destroy(ctx, id); err != nil {
		return err
	}
	r.forgetTPM(ctx, inst)
	return r.forgetInstance(ctx, inst, vols)
}

// unlaunch ends an instance whose launch failed as a whole, with all volumes
// that were made for it: nobody has asked for those alone.
func (r *Region) unlaunch(ctx context.Context, inst ami.Instance) error {
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		vols, err := tx.VolumesOf(inst.InstanceID)
		for _, v := range vols {
			v.Attachments[0].DeleteOnTermination = true
			err = errors.Join(err, tx.PutVolume(v))
		}
		return err
	})
	return errors.Join(err, r.terminate(ctx, inst, true))
}

// forgetInstance removes an instance that never came to be, with its volumes.
func (r *Region) forgetInstance(ctx context.Context, inst ami.Instance, vols []ami.Volume) error {
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		for _, v := range vols {
			if err := tx.DeleteVolume(v.VolumeID); err != nil {
				return err
			}
		}
		return tx.DeleteInstance(inst.InstanceID)
	})
	if err != nil {
		return err
	}
	ids := make([]ami.VolumeID, len(vols))
	for i, v := range vols {
		ids[i] = v.VolumeID
	}
	return r.removeFiles(ctx, inst.InstanceID, ids...)
}
