package region

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// sweepFiles removes what killed commands left of instances: the folders of
// those that are terminated, and the locks of power that is nobody's any more.
func (r *Region) sweepFiles(ctx context.Context) error {
	var errs []error
	dirs, err := names(r.path("instances"), "i-", "")
	if err != nil {
		return err
	}
	for _, name := range dirs {
		id := ami.InstanceID("i-" + name)
		state, err := r.lastState(ctx, id)
		if err == nil && state == ami.InstanceTerminated {
			err = removeAll(r.instanceDir(id))
		}
		errs = append(errs, err)
	}
	locks, err := names(r.path("tmp"), "power-", ".lock")
	if err != nil {
		return err
	}
	for _, name := range locks {
		id := ami.InstanceID(name)
		state, err := r.lastState(ctx, id)
		switch {
		case err != nil:
		case state == ami.InstanceStopped: // or was it just being started?
			err = r.noticeOn(ctx, id)
		case state != ami.InstanceRunning: // of which noticeOff is told something
			err = r.removeLock("power-" + name)
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, r.sweepMetadata(ctx), r.sweepDrafts(ctx))...)
}

// sweepGone removes the files of a volume or an instance whose record has been
// deleted, or the draft of a snapshot that has no more need of it.
func (r *Region) sweepGone(ctx context.Context, id string) error {
	if strings.HasPrefix(id, "vol-") {
		return r.sweepHead(ctx, ami.VolumeID(id))
	}
	if strings.HasPrefix(id, "snap-") {
		return r.layers.RemoveDraft(ami.SnapshotID(id))
	}
	if state, err := r.lastState(ctx, ami.InstanceID(id)); err != nil || state != "" {
		return err
	}
	return r.removeFiles(ctx, ami.InstanceID(id))
}

// names lists a folder's names that have a prefix and a suffix, without them. A
// folder that is not there has none.
func names(dir, prefix, suffix string) (out []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		name, ok := strings.CutPrefix(filepath.Base(e.Name()), prefix)
		if name, ok2 := strings.CutSuffix(name, suffix); ok && ok2 {
			out = append(out, name)
		}
	}
	return out, nil
}

// sweepHead removes a volume's head and lock unless a record names the volume.
func (r *Region) sweepHead(ctx context.Context, id ami.VolumeID) error {
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		_, err := tx.Volume(id)
		return err
	})
	if !errors.Is(err, catalog.ErrNotFound) {
		return err
	}
	return r.removeFiles(ctx, "", id)
}

// removeFiles removes the folder of an instance ("" for none) and the heads of
// volumes, whose records are deleted, and then the leases that say so.
func (r *Region) removeFiles(ctx context.Context, id ami.InstanceID, vols ...ami.VolumeID) error {
	var gone []string
	var errs []error
	if id != "" {
		errs = append(errs, removeAll(r.instanceDir(id)))
		gone = append(gone, string(id))
	}
	for _, v := range vols {
		errs = append(errs, r.layers.RemoveHead(v), r.removeLock(string(v)))
		gone = append(gone, string(v))
	}
	if err := errors.Join(errs...); err != nil {
		return err // the leases stay, and the next command tries again
	}
	if len(gone) == 0 {
		return nil
	}
	return r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		var errs []error
		for _, id := range gone {
			errs = append(errs, tx.DeleteLease(catalog.GonePrefix+id))
		}
		return errors.Join(errs...)
	})
}

// removeLock removes the file of a lock that nobody will ask for again. One that
// is held stays for another time.
func (r *Region) removeLock(id string) error {
	if _, err := os.Lstat(r.lockPath(id)); errors.Is(err, os.ErrNotExist) {
		return nil // nor was it asked for before
	}
	lock, free, err := durable.TryLock(r.lockPath(id))
	if err != nil || !free {
		return err
	}
	os.Remove(r.lockPath(id))
	return lock.Unlock()
}

// lastState is the state in an instance's record, "" where there is none.
func (r *Region) lastState(ctx context.Context, id ami.InstanceID) (state ami.InstanceState, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		inst, err := tx.Instance(id)
		state = inst.State.Name
		if errors.Is(err, catalog.ErrNotFound) {
			return nil
		}
		return err
	})
	return state, err
}

// purge forgets the instances that have been terminated long enough, and the
// deregistered images that no instance refers to any more.
func (r *Region) purge(ctx context.Context) error {
	var instances []ami.InstanceID
	var images []ami.ImageID
	old := func(tx *catalog.Tx) error {
		instances, images = nil, nil
		all, err := tx.Instances()
		damaged := errors.Is(err, catalog.ErrDamaged)
		if err = r.legible(err); err != nil {
			return err
		}
		used := map[ami.ImageID]bool{}
		for _, inst := range all {
			if isPast(inst) {
				instances = append(instances, inst.InstanceID)
				continue
			}
			used[inst.ImageID] = true
		}
		every, err := tx.Images()
		for _, image := range every {
			// What cannot be read may use any of them.
			if image.State == ami.ImageDeregistered && image.RecycleBin == nil && !used[image.ImageID] && !damaged {
				images = append(images, image.ImageID)
			}
		}
		return r.legible(err)
	}
	// Most often there is nothing, and then no writer is waited for.
	if err := r.catalog.View(ctx, old); err != nil || len(instances)+len(images) == 0 {
		return err
	}
	return r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		err := old(tx)
		for _, id := range instances {
			err = errors.Join(err, tx.DeleteInstance(id), tx.DeleteLease(catalog.GonePrefix+string(id)))
		}
		for _, id := range images {
			err = errors.Join(err, tx.DeleteImage(id))
		}
		return err
	})
}

// isPast says whether an instance has been terminated for so long that it is
// not shown any more.
func isPast(inst ami.Instance) bool {
	return inst.State.Name == ami.InstanceTerminated && time.Since(inst.Terminated) > tombstone
}
