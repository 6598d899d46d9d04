package region

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/snapshot"
)

// An orphan is a disk or a folder without a record. No command leaves one: a
// delete writes a lease that names what is still to go. It is there because the
// catalog was lost or brought back from a backup, and may be all that is left of
// what a person made; so it goes only by itself, when that is asked for.

const byItself = "; --orphans removes it"

// orphanHead looks at a head. Garbage without a path is none; why says for what
// reason it stays.
func (r *Region) orphanHead(ctx context.Context, id ami.VolumeID, leased map[string]bool, orphans bool) (g Garbage, why string, err error) {
	if !r.lacks(ctx, func(tx *catalog.Tx) error { _, err := tx.Volume(id); return err }) {
		return g, "", nil
	}
	path := filepath.Join("volumes", string(id)+".qcow2")
	g = Garbage{Path: path, Bytes: r.sizeOf(path), Reason: "no record names the volume", head: id}
	held, err := lockHeld(ctx, r.lockPath(string(id)))
	if err != nil {
		return g, "", storeError(err, "The lock of %s cannot be looked at.", id)
	}
	busy, err := r.held([]ami.VolumeID{id})
	if err != nil {
		return g, "", err
	}
	switch {
	case held || leased[string(id)] || leased[catalog.GonePrefix+string(id)] || leased[unreadable]:
		why = "a command is at work on it"
	case busy:
		why = "a process has it open"
	case r.young(path):
		why = g.Reason + ", and it is young"
	case !orphans:
		why = g.Reason + byItself
	}
	return g, why, nil
}

// orphan is a folder without a record.
type orphan struct {
	Garbage
	why string // it stays
}

// orphanDrafts looks at what was put to snapshots block by block.
func (r *Region) orphanDrafts(ctx context.Context, leased map[string]bool, orphans bool) (out []orphan, err error) {
	ids, err := r.layers.Drafts()
	if err != nil {
		return nil, storeError(err, "The drafts of snapshots cannot be listed.")
	}
	for _, id := range ids {
		if !r.lacks(ctx, func(tx *catalog.Tx) error { _, err := tx.Snapshot(id); return err }) {
			continue
		}
		path := filepath.Join("drafts", string(id))
		o := orphan{Garbage: Garbage{Path: path, Bytes: r.sizeOf(path), Reason: "no record names the snapshot", draft: id}}
		_, young, err := r.inUse(ctx, path)
		if err != nil {
			return nil, storeError(err, "The draft of %s cannot be looked at.", id)
		}
		switch {
		case leased[string(id)] || leased[catalog.GonePrefix+string(id)] || leased[draftPrefix+string(id)] || leased[unreadable] || r.isShared(ctx, id):
			o.why = "a command is at work on it"
		case young:
			o.why = o.Reason + ", and it is young"
		case !orphans:
			o.why = o.Reason + byItself
		}
		out = append(out, o)
	}
	return out, nil
}

// isShared says whether somebody has a draft. One that cannot be opened nobody has.
func (r *Region) isShared(ctx context.Context, id ami.SnapshotID) bool {
	d, err := r.layers.OpenDraft(id)
	if err != nil {
		return false
	}
	defer d.Close()
	waiting, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	return d.Take(waiting) != nil
}

// orphanDirs looks at the folders of instances.
func (r *Region) orphanDirs(ctx context.Context, leased map[string]bool, orphans bool) (out []orphan, err error) {
	dirs, err := names(r.path("instances"), "i-", "")
	if err != nil {
		return nil, storeError(err, "The folders of instances cannot be listed.")
	}
	var guests map[ami.InstanceID]hypervisor.State
	var unknown error
	for _, name := range dirs {
		id := ami.InstanceID("i-" + name)
		if !r.lacks(ctx, func(tx *catalog.Tx) error { _, err := tx.Instance(id); return err }) {
			continue
		}
		if orphans && guests == nil && unknown == nil { // asked once, and only where it matters
			guests, unknown = r.guests(ctx)
		}
		path := filepath.Join("instances", string(id))
		d := orphan{Garbage: Garbage{Path: path, Bytes: r.sizeOf(path), Reason: "no record names the instance", guest: id}}
		busy, young, err := r.inUse(ctx, path)
		if err != nil {
			return nil, storeError(err, "The folder of %s cannot be looked at.", id)
		}
		_, known := guests[id]
		switch {
		case leased[string(id)] || leased[catalog.GonePrefix+string(id)] || leased[builderPrefix+string(id)] || leased[unreadable]:
			d.why = "a command is at work on it"
		case busy || known:
			d.why = "its guest is there"
		case young:
			d.why = d.Reason + ", and it is young"
		case !orphans:
			d.why = d.Reason + byItself
		case unknown != nil:
			d.why = "whether its guest is there cannot be asked: " + unknown.Error()
		}
		out = append(out, d)
	}
	return out, nil
}

// guests asks the region's hypervisor which guests there are.
func (r *Region) guests(ctx context.Context) (map[ami.InstanceID]hypervisor.State, error) {
	driver, err := r.driver(ctx, "")
	if err != nil {
		return nil, err
	}
	return driver.States(ctx)
}

// inUse says of an instance's folder whether somebody holds a file in it, as QEMU
// does with its disks and kami with its marks, and whether one was written to a
// short while ago.
func (r *Region) inUse(ctx context.Context, dir string) (busy, young bool, err error) {
	young = r.young(dir)
	err = filepath.WalkDir(r.path(dir), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		open, err := snapshot.FileBusy(path)
		if err != nil {
			return err
		}
		held := false
		if e.Name() == frozenName {
			held, err = lockHeld(ctx, path)
		}
		rel, _ := filepath.Rel(r.dir, path)
		busy, young = busy || open || held, young || r.young(rel)
		return err
	})
	return busy, young, err
}

// lockHeld says whether somebody holds a lock. One that is not there nobody does.
func lockHeld(ctx context.Context, path string) (bool, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	lock, free, err := lockSoon(ctx, path)
	if err != nil || !free {
		return !free, err
	}
	return false, lock.Unlock()
}

// leftLocks finds the files of locks of what is neither there nor being made: of a
// command that was killed before it wrote what it was about to do.
func (r *Region) leftLocks(ctx context.Context, leased map[string]bool) (out []Garbage, err error) {
	ids, err := names(r.path("tmp"), "", ".lock")
	if err != nil {
		return nil, storeError(err, "The locks cannot be listed.")
	}
	for _, id := range ids {
		path := filepath.Join("tmp", id+".lock")
		if leased[id] || leased[unreadable] || r.young(path) || !r.isGone(ctx, id) {
			continue
		}
		held, err := lockHeld(ctx, r.path(path))
		if err != nil {
			return nil, storeError(err, "The lock of %s cannot be looked at.", id)
		}
		if !held {
			out = append(out, Garbage{Path: path, Bytes: r.sizeOf(path), Reason: "the lock of what is gone"})
		}
	}
	return out, nil
}

// isGone says whether id is that of an object without a record, or of a piece of
// work, which is over when nobody has its lock or lease. What is neither is not
// gone: the places to wait for a merge, say, are there for good.
func (r *Region) isGone(ctx context.Context, id string) bool {
	kind, of, _ := strings.Cut(id, "-")
	var err error
	switch kind {
	case "merge", "token": // of a layer, of what a client token names
		_, err = hex.DecodeString(of)
		return err == nil && of != ""
	case "draft": // of one that is being completed
		_, err = ami.ParseSnapshotID(of)
		return err == nil
	case "build":
		_, err = ami.ParseInstanceID(of)
		return err == nil
	case "cached": // of a key, and to wait for one's turn
		_, err = hex.DecodeString(strings.TrimSuffix(of, "-turn"))
		return err == nil && of != ""
	}
	return r.lacks(ctx, func(tx *catalog.Tx) (err error) {
		switch kind {
		case "ami":
			_, err = tx.Image(ami.ImageID(id))
		case "snap":
			_, err = tx.Snapshot(ami.SnapshotID(id))
		case "vol":
			_, err = tx.Volume(ami.VolumeID(id))
		case "i":
			_, err = tx.Instance(ami.InstanceID(id))
		}
		return err
	})
}
