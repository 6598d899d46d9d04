package region

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/snapshot"
)

// GCPlan is what collecting garbage removes, or would remove.
type GCPlan struct {
	Layers []digest.Digest `json:"Layers"` // children before their parents
	Files  []Garbage       `json:"Files"`  // those of the layers, and others
	Kept   []Garbage       `json:"Kept"`   // what no record names and stays all the same
	Bytes  int64           `json:"Bytes"`  // of Files

	in GCInput
}

// GCInput says what else counts as garbage.
type GCInput struct {
	// Orphans are the disks and folders that have no record: where a catalog was
	// lost, or brought back from a backup, they are all that is left of volumes and
	// instances.
	Orphans bool
	// Cache is whatever can be made again: the roots of bundles and the empty
	// ephemeral disks that no guest has. Without it those stay that are of use.
	Cache bool
}

// Garbage is a file or folder of a region that no record names.
type Garbage struct {
	Path   string `json:"Path"` // below the region's folder
	Bytes  int64  `json:"Bytes"`
	Reason string `json:"Reason"`

	cached bool          // the layer: a record names it, which goes first
	layer  digest.Digest // one of these says what it is; none of them, a lock
	blocks digest.Digest
	head   ami.VolumeID
	guest  ami.InstanceID
	draft  ami.SnapshotID
	object digest.Digest
}

// gcGrace keeps what is young: its record may be about to be written.
const gcGrace = 10 * time.Minute

// PlanGarbage says what there is in the region's folder that no record and no
// lease names, or only one of what was cached.
func (r *Region) PlanGarbage(ctx context.Context, in GCInput) (GCPlan, error) {
	lock, err := r.lockLayers(ctx)
	if err != nil {
		return GCPlan{}, storeError(err, "The layers cannot be locked.")
	}
	defer lock.Unlock()
	return r.planGarbage(ctx, in)
}

// RemoveGarbage removes of a plan what is garbage still, and returns that.
func (r *Region) RemoveGarbage(ctx context.Context, plan GCPlan) (GCPlan, error) {
	lock, err := r.lockLayers(ctx)
	if err != nil {
		return GCPlan{}, storeError(err, "The layers cannot be locked.")
	}
	defer lock.Unlock()
	return r.removeGarbage(ctx, plan)
}

// CollectGarbage removes what no record needs, but no orphans. A dry run only
// plans.
func (r *Region) CollectGarbage(ctx context.Context, dry bool) (GCPlan, error) {
	plan, err := r.PlanGarbage(ctx, GCInput{})
	if err != nil || dry {
		return plan, err
	}
	return r.RemoveGarbage(ctx, plan)
}

// planGarbage plans while the caller has the layers locked.
func (r *Region) planGarbage(ctx context.Context, in GCInput) (GCPlan, error) {
	plan, orphans := GCPlan{in: in}, in.Orphans
	leased, err := r.leased(ctx)
	if err != nil {
		return plan, err
	}
	heads, err := r.layers.Heads()
	if err != nil {
		return plan, storeError(err, "The heads of volumes cannot be listed.")
	}
	goes := map[ami.VolumeID]bool{}
	var others []Garbage
	keep := func(g Garbage, why string) { g.Reason = why; plan.Kept = append(plan.Kept, g) }
	for _, h := range heads {
		g, why, err := r.orphanHead(ctx, h.VolumeID, leased, orphans)
		switch {
		case err != nil:
			return plan, err
		case why != "":
			keep(g, why)
		case g.Path != "":
			goes[h.VolumeID] = true
			others = append(others, g)
		}
	}
	needed, err := r.planLayers(ctx, &plan, len(leased) > 0, heads, goes)
	if err != nil {
		return plan, err
	}
	dirs, err := r.orphanDirs(ctx, leased, orphans)
	if err != nil {
		return plan, err
	}
	drafts, err := r.orphanDrafts(ctx, leased, orphans)
	if err != nil {
		return plan, err
	}
	objects, err := r.orphanObjects(ctx, len(leased) > 0)
	if err != nil {
		return plan, err
	}
	for _, d := range slices.Concat(dirs, drafts, objects) {
		if d.why != "" {
			keep(d.Garbage, d.why)
		} else {
			others = append(others, d.Garbage)
		}
	}
	stray, err := r.layers.StrayBlocks()
	if err != nil {
		return plan, storeError(err, "The layers cannot be listed.")
	}
	for _, d := range stray {
		if needed[d] { // it may come back
			continue
		}
		path := filepath.Join("layers", d.Hex()+".blocks")
		others = append(others, Garbage{Path: path, Bytes: r.sizeOf(path), Reason: "its layer is gone", blocks: d})
	}
	locks, err := r.leftLocks(ctx, leased)
	if err != nil {
		return plan, err
	}
	plan.Files = slices.Concat(plan.Files, others, locks)
	for _, g := range plan.Files {
		plan.Bytes += g.Bytes
	}
	return plan, nil
}

// unreadable stands for a lease that cannot be read: it may be any.
const unreadable = ""

// leased returns the ids of all leases.
func (r *Region) leased(ctx context.Context) (map[string]bool, error) {
	ids := map[string]bool{}
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		leases, err := tx.Leases()
		for _, l := range leases {
			ids[l.ID] = true
		}
		if errors.Is(err, catalog.ErrDamaged) {
			ids[unreadable] = true
		}
		return r.legible(err)
	})
	return ids, storeError(err, "The catalog cannot be read.")
}

// planLayers plans for the layers that nothing needs when the heads that go are
// gone, and returns those that stay.
func (r *Region) planLayers(ctx context.Context, plan *GCPlan, busy bool, heads []snapshot.Head, goes map[ami.VolumeID]bool) (needed map[digest.Digest]bool, err error) {
	set, err := r.layerSet(ctx)
	if err != nil {
		return nil, err
	}
	named, idle, err := r.namedAndIdle(ctx, plan.in.Cache)
	if err != nil {
		return nil, err
	}
	for _, h := range heads {
		if h.Layer != "" && !goes[h.VolumeID] {
			named[h.Layer]++
		}
	}
	// What stands on a layer that stays keeps that one too, so children are looked
	// at before their parents.
	order := make([]snapshot.Layer, 0, len(set))
	for _, l := range set {
		order = append(order, l)
	}
	slices.SortFunc(order, func(a, b snapshot.Layer) int {
		if a.Depth != b.Depth {
			return b.Depth - a.Depth
		}
		return slices.Compare([]byte(a.Digest), []byte(b.Digest))
	})
	needed, broken := set.closure(named)
	for _, l := range order {
		if needed[l.Digest] {
			continue
		}
		path := filepath.Join("layers", l.Digest.Hex()+".qcow2")
		g := Garbage{Path: path, Bytes: l.FileSize, Reason: "no record needs the layer", layer: l.Digest}
		if why := idle[l.Digest]; why != "" {
			g.Reason, g.cached = why, true
		}
		open, err := snapshot.FileBusy(r.path(path))
		if err != nil {
			return nil, storeError(err, "The layer %s cannot be looked at.", l.Digest.Short())
		}
		switch {
		case len(broken) > 0:
			g.Reason = cannotTell(broken).Error()
		case open:
			g.Reason = "a process has it open"
		case busy && time.Since(l.Created) < gcGrace:
			g.Reason = "it is young, and a command is at work"
		default:
			plan.Layers, plan.Files = append(plan.Layers, l.Digest), append(plan.Files, g)
			continue
		}
		plan.Kept = append(plan.Kept, g)
		chain, _ := set.chain(l.Digest)
		for _, d := range chain {
			needed[d] = true
		}
	}
	return needed, nil
}

// removeGarbage removes while the caller has the layers locked.
func (r *Region) removeGarbage(ctx context.Context, plan GCPlan) (GCPlan, error) {
	done := GCPlan{Kept: plan.Kept}
	now, err := r.planGarbage(ctx, plan.in)
	if err != nil {
		return done, err
	}
	planned := map[string]bool{}
	for _, g := range plan.Files {
		planned[g.Path] = true
	}
	did := func(g Garbage) { done.Files, done.Bytes = append(done.Files, g), done.Bytes+g.Bytes }
	// The heads first, which stand on the layers.
	var layers []digest.Digest
	size := map[digest.Digest]Garbage{}
	for _, g := range now.Files {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		if !planned[g.Path] {
			continue
		}
		if g.layer != "" {
			layers, size[g.layer] = append(layers, g.layer), g
			continue
		}
		gone, err := r.removeLeft(ctx, g)
		if err != nil {
			return done, storeError(err, "%s cannot be removed.", g.Path)
		}
		if gone {
			did(g)
		}
	}
	if layers, err = r.forgetCached(ctx, layers, size, plan.in.Cache); err != nil {
		return done, err
	}
	done.Layers, err = r.layers.RemoveLayers(layers)
	for _, d := range done.Layers {
		did(size[d])
	}
	return done, storeError(err, "The layers cannot be removed.")
}

// removeLeft removes what is no layer, and says whether it did: somebody may have
// taken it at the last moment.
func (r *Region) removeLeft(ctx context.Context, g Garbage) (gone bool, err error) {
	switch {
	case g.head != "":
		if busy, err := r.held([]ami.VolumeID{g.head}); err != nil || busy {
			return false, err
		}
		return true, errors.Join(r.layers.RemoveHead(g.head), r.removeLock(string(g.head)))
	case g.guest != "":
		return true, removeAll(r.instanceDir(g.guest))
	case g.draft != "":
		return true, r.layers.RemoveDraft(g.draft)
	case g.blocks != "":
		return true, r.layers.RemoveBlocks(g.blocks)
	case g.object != "":
		return true, durable.Remove(r.path(g.Path))
	}
	lock, free, err := lockSoon(ctx, r.path(g.Path))
	if err != nil || !free {
		return false, err
	}
	defer lock.Unlock()
	return true, durable.Remove(r.path(g.Path))
}

// sizeOf is what a file of the region takes, in bytes; 0 where it is gone.
func (r *Region) sizeOf(path string) (sum int64) {
	_ = filepath.WalkDir(r.path(path), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			sum += allocated(path)
		}
		return nil
	})
	return sum
}

// young says whether a file was written to a short while ago.
func (r *Region) young(path string) bool {
	info, err := os.Stat(r.path(path))
	return err == nil && time.Since(info.ModTime()) < gcGrace
}
