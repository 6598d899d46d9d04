package region

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/snapshot"
)

// VerifyInput says how much of a store is verified.
type VerifyInput struct {
	Sample  int  // percent of the layers' bytes, those that were read longest ago; 0 is all
	Restart bool // do not go on with a verify that was interrupted
}

// VerifyResult is what verifying one layer found, or that something else is not
// as it was.
type VerifyResult struct {
	Layer    digest.Digest `json:"LayerDigest"` // "" for what is no layer
	Resource string        `json:"Resource"`    // a layer's digest, a record's id, or a file of the region
	OK       bool          `json:"Ok"`
	Detail   string        `json:"Detail,omitempty"`
	Advice   string        `json:"Advice,omitempty"` // what to do

	// What stands on it, and is harmed where it is not well.
	Images    []ami.ImageID    `json:"Images"`
	Snapshots []ami.SnapshotID `json:"Snapshots"`
	Volumes   []ami.VolumeID   `json:"Volumes"`
	Instances []ami.InstanceID `json:"Instances"`
	Running   []ami.InstanceID `json:"RunningInstances"` // those of Instances that have it open
}

// Verification is what verifying a store found.
type Verification struct {
	Results []VerifyResult // of each layer that was read, and of all that is not well
	Layers  int            // that there are
	Passed  int            // of these, not read again since an interrupted verify read them
}

// VerifyStore reads layers and compares them with their names, and sees that every
// record is backed by what it names. What is not well is told of and does not stop
// the rest. A verify of all that was interrupted is gone on with by the next one.
// Where ctx ends, what was found until then is returned with its error.
func (r *Region) VerifyStore(ctx context.Context, in VerifyInput) (Verification, error) {
	if in.Sample < 0 || in.Sample > 100 {
		return Verification{}, ami.Errorf(ami.CodeInvalidParameterValue, "A sample of %d %% is not from 1 to 100.", in.Sample)
	}
	lock, err := r.lockVerify(ctx)
	if err != nil {
		return Verification{}, err
	}
	defer lock.Unlock()
	layers, err := r.layers.Layers(ctx)
	if err != nil {
		return Verification{}, storeError(err, "The layers cannot be listed.")
	}
	all, err := r.readRecords(ctx)
	if err != nil {
		return Verification{}, err
	}
	v := Verification{Layers: len(layers)}
	if v.Results, err = r.verifyRecords(ctx, all); err != nil {
		return v, err
	}
	s := r.openScrub()
	todo, done := r.choose(s, layers, in)
	v.Passed = len(done)
	read, err := r.readLayers(ctx, s, todo, all)
	if err == nil && in.Sample == 0 {
		if kerr := s.keep(true); kerr != nil {
			r.progress.Note("that all was verified cannot be kept: %v", kerr)
		}
	}
	found, jerr := r.judge(context.WithoutCancel(ctx), layers, read, all)
	v.Results = append(v.Results, found...)
	return v, cmp.Or(err, jerr)
}

// lockVerify takes the sole right to verify.
func (r *Region) lockVerify(ctx context.Context) (*durable.Lock, error) {
	lock, free, err := lockSoon(ctx, r.path("tmp", "verify.lock"))
	if err == nil && !free {
		err = ami.Errorf(ami.CodeIncorrectState, "Another command is verifying the store.").WithHint("Wait until it has finished.")
	}
	return lock, storeError(err, "The store cannot be locked.")
}

// soon is how long a lock is waited for that nobody should have. A program that is
// just being started has the locks of who starts it, until it runs.
const soon = 2 * time.Second

// lockSoon takes a lock, and says whether it did.
func lockSoon(ctx context.Context, path string) (*durable.Lock, bool, error) {
	waiting, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	lock, err := durable.AcquireLock(waiting, path)
	if err != nil && waiting.Err() != nil {
		return nil, false, ctx.Err()
	}
	return lock, err == nil, err
}

// choose picks the layers to read, and says why where it is not all of them.
func (r *Region) choose(s *scrub, layers []snapshot.Layer, in VerifyInput) (todo, done []snapshot.Layer) {
	if in.Sample > 0 {
		todo = s.sample(layers, in.Sample)
		r.progress.Note("a sample of %d of %d layers is verified, those that were read longest ago", len(todo), len(layers))
		return todo, nil
	}
	todo, done = s.begin(layers, in.Restart)
	if len(done) > 0 {
		r.progress.Note("going on with the verify of %s, which was interrupted: %d of %d layers have been read and were well; --restart reads them again",
			s.Started.Local().Format(time.DateTime), len(done), len(layers))
	}
	if err := s.keep(false); err != nil {
		r.progress.Note("what was verified cannot be kept, for the case that this is interrupted: %v", err)
	}
	return todo, done
}

// fault is what is wrong with a layer, and with the list of its blocks; nil where
// all is well.
type fault struct{ layer, list error }

// readLayers verifies layers and returns how those are that it has read: not all of
// them where ctx ends.
func (r *Region) readLayers(ctx context.Context, s *scrub, layers []snapshot.Layer, all records) (map[digest.Digest]fault, error) {
	var total int64
	contents := map[digest.Digest][]digest.Digest{}
	for _, snap := range all.snapshots {
		if snap.State == ami.SnapshotCompleted && snap.ContentDigest != "" {
			contents[snap.Layer] = append(contents[snap.Layer], snap.ContentDigest)
		}
	}
	for _, l := range layers {
		total += l.FileSize
	}
	// The largest first, so that in the end nobody waits for the last one.
	sorted := slices.SortedStableFunc(slices.Values(layers), func(a, b snapshot.Layer) int { return cmp.Compare(b.FileSize, a.FileSize) })
	order, size := make([]digest.Digest, len(layers)), map[digest.Digest]int64{}
	for i, l := range sorted {
		order[i], size[l.Digest] = l.Digest, l.Size
	}
	step := r.progress.Step(fmt.Sprintf("verifying %d layers", len(layers)), total)
	var mu, lists sync.Mutex
	read, unkept := map[digest.Digest]fault{}, error(nil)
	err := r.layers.VerifyLayers(ctx, order, step, func(d digest.Digest, err error) {
		f, n := fault{layer: err}, size[d]
		if err != nil { // what its header says cannot be relied on
			n = 0
		}
		lists.Lock() // those of large disks are large, and are in memory whole
		f.list = r.layers.VerifyBlocks(d, n, contents[d]...)
		lists.Unlock()
		if f.layer != nil && !errors.Is(f.list, snapshot.ErrBlocks) {
			f.list = nil // that the layer cannot be read is told of already
		}
		err = s.note(d, f == fault{})
		mu.Lock()
		defer mu.Unlock()
		read[d], unkept = f, cmp.Or(unkept, err)
		if f != (fault{}) {
			r.progress.Note("the layer %s is not well; what that harms is told at the end", d.Short())
		}
	})
	step.Done(err)
	if kerr := s.keep(false); kerr != nil || unkept != nil {
		r.progress.Note("what was verified cannot be kept: %v", cmp.Or(kerr, unkept))
	}
	if err != nil {
		r.progress.Note("%d of %d layers have been read; the next kami store verify goes on from there", len(read), len(layers))
	}
	return read, err
}

// judge says of each layer that was read how it is, and of those that records name
// and that are missing, in the order of their digests.
func (r *Region) judge(ctx context.Context, layers []snapshot.Layer, read map[digest.Digest]fault, all records) ([]VerifyResult, error) {
	set := layerSet{}
	for _, l := range layers {
		set[l.Digest] = l
	}
	// As it is now: what was deleted meanwhile is not missed.
	named := map[digest.Digest]int{}
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		named, err = tx.LayerRefs()
		return err
	})
	if err != nil {
		return nil, storeError(err, "The catalog cannot be read.")
	}
	now, err := r.layerSet(ctx)
	if err != nil {
		return nil, err
	}
	needed, _ := now.closure(named)
	faults := map[digest.Digest]fault{}
	for d, f := range read {
		if _, there := now[d]; there || needed[d] {
			faults[d] = f
		}
	}
	for d := range named {
		if _, there := now[d]; !there {
			faults[d] = fault{layer: fmt.Errorf("%w: it is missing", snapshot.ErrNotFound)}
		}
	}
	harm := r.harm(set, all)
	var out []VerifyResult
	for _, d := range slices.Sorted(maps.Keys(faults)) {
		f, res := faults[d], harm[d]
		res.Layer, res.Resource, res.OK = d, d.Hex(), f.layer == nil
		if f.layer != nil {
			res.Detail, res.Advice = f.layer.Error(), r.layerAdvice(d, set, all, res)
		}
		out = append(out, res)
		if f.list != nil {
			out = append(out, VerifyResult{
				Resource: "layers/" + d.Hex() + ".blocks", Detail: f.list.Error(),
				Advice: "Remove " + r.path("layers", d.Hex()+".blocks") + ": kami makes it again of the layer when it needs it.",
			})
		}
	}
	return out, nil
}
