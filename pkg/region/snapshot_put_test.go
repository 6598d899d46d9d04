package region

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// start starts a snapshot of one GiB.
func start(t *testing.T, r *Region, edit ...func(*StartSnapshotInput)) ami.SnapshotID {
	t.Helper()
	in := StartSnapshotInput{VolumeSize: 1}
	for _, e := range edit {
		e(&in)
	}
	return get(r.StartSnapshot(t.Context(), in))(t).SnapshotID
}

func over(parent ami.SnapshotID) func(*StartSnapshotInput) {
	return func(in *StartSnapshotInput) { in.ParentSnapshotID = parent }
}

func putErr(t *testing.T, r *Region, id ami.SnapshotID, index int64, data []byte) error {
	t.Helper()
	_, err := r.PutSnapshotBlock(t.Context(), PutSnapshotBlockInput{SnapshotID: id, BlockIndex: index, Data: data, Checksum: sumOf(data)})
	return err
}

func completeErr(t *testing.T, r *Region, id ami.SnapshotID, count int64) error {
	t.Helper()
	_, err := r.CompleteSnapshot(t.Context(), CompleteSnapshotInput{SnapshotID: id, ChangedBlocksCount: count})
	return err
}

// completeWith puts blocks and completes the snapshot, with the checksum of all.
func completeWith(t *testing.T, r *Region, id ami.SnapshotID, blocks marks) ami.Snapshot {
	t.Helper()
	h := sha256.New()
	for i := range int64(2048) {
		if mark, ok := blocks[i]; ok {
			must(t, putErr(t, r, id, i, blockOf(mark)))
			sum := sumOf(blockOf(mark))
			h.Write(sum[:])
		}
	}
	snap, err := r.CompleteSnapshot(t.Context(), CompleteSnapshotInput{SnapshotID: id, ChangedBlocksCount: int64(len(blocks)), Checksum: Checksum(h.Sum(nil))})
	must(t, err)
	return snap
}

func described(t *testing.T, r *Region, id ami.SnapshotID) ami.Snapshot {
	t.Helper()
	return get(r.DescribeSnapshots(t.Context(), DescribeInput{IDs: []string{string(id)}}))(t)[0]
}

// wantNoDrafts checks that nothing is left of snapshots that were put together.
func wantNoDrafts(t *testing.T, r *Region) {
	t.Helper()
	if ids, err := r.layers.Drafts(); err != nil || len(ids) > 0 {
		t.Errorf("got the drafts %v (%v), want none", ids, err)
	}
	must(t, r.catalog.View(t.Context(), func(tx *catalog.Tx) error {
		leases, err := tx.Leases()
		if len(leases) > 0 {
			t.Errorf("got the leases %v, want none", leases)
		}
		return err
	}))
	if got := slices.DeleteFunc(files(t, r), func(f string) bool { return !strings.HasPrefix(f, "tmp/") }); len(got) > 0 {
		t.Errorf("got %v, want nothing", got)
	}
}

// What is read block by block from one snapshot and put block by block to another
// one is the same content; over the same parent it is the same layer.
func TestBlockRoundTrip(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	parent := snapshotOf(t, r, 1<<30, marks{0: 1, 1: 1, 2: 1, 700: 9})
	want := marks{1: 2, 2: 0, 5: 3, 2047: 4} // over the parent's
	changed := completeWith(t, r, start(t, r, over(parent)), want)
	if changed.SizeBytes != 1<<30 || changed.VolumeSize != 1 || changed.LayerBytes == 0 || changed.Progress != "100%" || changed.State != ami.SnapshotCompleted {
		t.Errorf("got %+v, want a completed snapshot of a GiB", changed)
	}

	copyAll := func(of, to ami.SnapshotID, list func() []Block) ami.Snapshot {
		h := sha256.New()
		blocks := list()
		for _, b := range blocks {
			data, sum := get2(r.GetSnapshotBlock(t.Context(), of, b.Index, b.Token))(t)
			got, err := r.PutSnapshotBlock(t.Context(), PutSnapshotBlockInput{SnapshotID: to, BlockIndex: b.Index, Data: data, Checksum: sum})
			if must(t, err); got != sum {
				t.Errorf("block %d: got the checksum %s, want %s", b.Index, got, sum)
			}
			h.Write(sum[:])
		}
		return get(r.CompleteSnapshot(t.Context(), CompleteSnapshotInput{SnapshotID: to, ChangedBlocksCount: int64(len(blocks)), Checksum: Checksum(h.Sum(nil))}))(t)
	}
	all := copyAll(changed.SnapshotID, start(t, r), func() []Block {
		return get(r.ListSnapshotBlocks(t.Context(), changed.SnapshotID, BlocksInput{}))(t).Blocks
	})
	if all.ContentDigest != changed.ContentDigest {
		t.Errorf("all of it: got the content %s, want %s", all.ContentDigest, changed.ContentDigest)
	}
	delta := copyAll(changed.SnapshotID, start(t, r, over(parent)), func() (out []Block) {
		for _, c := range get(r.ListChangedBlocks(t.Context(), parent, changed.SnapshotID, BlocksInput{}))(t).Blocks {
			out = append(out, Block{c.Index, c.Second})
		}
		return out
	})
	if delta.ContentDigest != changed.ContentDigest || delta.Layer != changed.Layer || delta.LayerBytes != changed.LayerBytes {
		t.Errorf("what changed: got the layer %s, want %s", delta.Layer, changed.Layer)
	}
	// So it is with what was made in another way.
	disk := marks{0: 1, 1: 2, 5: 3, 700: 9, 2047: 4}
	if twin := described(t, r, snapshotOf(t, r, 1<<30, disk)); twin.ContentDigest != changed.ContentDigest {
		t.Errorf("an import of it has the content %s, want %s", twin.ContentDigest, changed.ContentDigest)
	}
	for i := range int64(8) {
		data, _ := get2(r.GetSnapshotBlock(t.Context(), delta.SnapshotID, i, Checksum{}))(t)
		if sumOf(data) != sumOf(blockOf(disk[i])) {
			t.Errorf("block %d is not what was put", i)
		}
	}
	// Nothing put: the parent's layer, or an empty disk, or the parent on a larger one.
	if same := completeWith(t, r, start(t, r, over(parent)), nil); same.Layer != described(t, r, parent).Layer {
		t.Errorf("nothing put: got the layer %s, want the parent's", same.Layer)
	}
	if empty := completeWith(t, r, start(t, r), nil); len(get(r.ListSnapshotBlocks(t.Context(), empty.SnapshotID, BlocksInput{}))(t).Blocks) != 0 {
		t.Error("nothing put to nothing: got blocks, want none")
	}
	larger := completeWith(t, r, start(t, r, over(parent), func(in *StartSnapshotInput) { in.VolumeSize = 3 }), nil)
	if larger.VolumeSize != 3 || len(get(r.ListChangedBlocks(t.Context(), parent, larger.SnapshotID, BlocksInput{}))(t).Blocks) != 0 {
		t.Errorf("got %+v, want the parent's blocks on 3 GiB", larger)
	}
	wantNoDrafts(t, r)
	launched(t, r, RunInstancesInput{Image: string(registered(t, r, delta.SnapshotID).ImageID)})
}

// registered is an image over a snapshot.
func registered(t *testing.T, r *Region, id ami.SnapshotID) ami.Image {
	t.Helper()
	i, err := r.RegisterImage(t.Context(), RegisterImageInput{Name: "of " + string(id), BlockDeviceMappings: mapping(t, "/dev/sda1="+string(id))})
	must(t, err)
	return i
}

func TestStartSnapshot(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	parent := snapshotOf(t, r, 3<<29, marks{0: 1})
	tag := ami.Tag{Key: "Name", Value: "x"}
	got := get(r.StartSnapshot(t.Context(), StartSnapshotInput{
		VolumeSize: 2, ParentSnapshotID: parent, Description: "all of it", Tags: []ami.Tag{tag}, Timeout: 10 * time.Minute,
	}))(t)
	want := StartedSnapshot{
		Snapshot: ami.Snapshot{
			SnapshotID: got.SnapshotID, OwnerID: ami.DefaultAccount, Description: "all of it", State: ami.SnapshotPending, Progress: "0%",
			StartTime: got.StartTime, VolumeSize: 2, SizeBytes: 2 << 30, Tags: []ami.Tag{tag}, Layer: described(t, r, parent).Layer,
			UsageOperation: "RunInstances",
		},
		BlockSize: 524288, ParentSnapshotID: parent,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("started (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want.Snapshot, described(t, r, got.SnapshotID)); diff != "" {
		t.Errorf("described (-want +got):\n%s", diff)
	}

	pending := start(t, r)
	secret := completeWith(t, r, start(t, r), nil)
	secret.Encrypted = true
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.PutSnapshot(secret) }))
	errs := map[string]struct {
		in   StartSnapshotInput
		want ami.Code
	}{
		"no size":             {StartSnapshotInput{}, ami.CodeInvalidParameterValue},
		"too large":           {StartSnapshotInput{VolumeSize: 65537}, ami.CodeInvalidParameterValue},
		"too impatient":       {StartSnapshotInput{VolumeSize: 1, Timeout: 9 * time.Minute}, ami.CodeInvalidParameterValue},
		"too patient":         {StartSnapshotInput{VolumeSize: 1, Timeout: 4321 * time.Minute}, ami.CodeInvalidParameterValue},
		"long description":    {StartSnapshotInput{VolumeSize: 1, Description: strings.Repeat("x", 256)}, ami.CodeInvalidParameterValue},
		"bad tag":             {StartSnapshotInput{VolumeSize: 1, Tags: []ami.Tag{{Key: "aws:x"}}}, ami.CodeInvalidTagKeyMalformed},
		"long token":          {StartSnapshotInput{VolumeSize: 1, ClientToken: strings.Repeat("x", 256)}, ami.CodeInvalidParameterValue},
		"token with a space":  {StartSnapshotInput{VolumeSize: 1, ClientToken: "a b"}, ami.CodeInvalidParameterValue},
		"parent is no id":     {StartSnapshotInput{VolumeSize: 2, ParentSnapshotID: "../x"}, ami.CodeInvalidSnapshotIDMalformed},
		"parent is not there": {StartSnapshotInput{VolumeSize: 2, ParentSnapshotID: ami.NewSnapshotID()}, ami.CodeInvalidSnapshotNotFound},
		"parent is pending":   {StartSnapshotInput{VolumeSize: 2, ParentSnapshotID: pending}, ami.CodeIncorrectState},
		"parent is encrypted": {StartSnapshotInput{VolumeSize: 2, ParentSnapshotID: secret.SnapshotID}, ami.CodeUnsupportedOperation},
		"parent is larger":    {StartSnapshotInput{VolumeSize: 1, ParentSnapshotID: parent}, ami.CodeInvalidParameterValue},
	}
	before := look(t, r, h.driver)
	for name, tt := range errs {
		t.Run(name, func(t *testing.T) {
			_, err := r.StartSnapshot(t.Context(), tt.in)
			wantCode(t, err, tt.want)
		})
	}
	_, err := h.open(t, as(stranger)).StartSnapshot(t.Context(), StartSnapshotInput{VolumeSize: 2, ParentSnapshotID: parent})
	wantCode(t, err, ami.CodeInvalidSnapshotNotFound)
	if diff := cmp.Diff(before, look(t, r, h.driver)); diff != "" {
		t.Errorf("what was refused changed something (-before +after):\n%s", diff)
	}
}

func TestPutSnapshotBlock(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	id := start(t, r)
	done := completeWith(t, r, start(t, r), nil).SnapshotID
	foreign := r.newSnapshot("", "", gib, nil) // as CreateSnapshot begins one
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.PutSnapshot(foreign) }))
	data := blockOf(1)
	in := func(edit func(*PutSnapshotBlockInput)) error {
		i := PutSnapshotBlockInput{SnapshotID: id, BlockIndex: 3, Data: data, Checksum: sumOf(data)}
		edit(&i)
		_, err := r.PutSnapshotBlock(t.Context(), i)
		return err
	}
	tests := []struct {
		name string
		err  error
		want ami.Code
	}{
		{"no id", in(func(i *PutSnapshotBlockInput) { i.SnapshotID = "../x" }), ami.CodeInvalidSnapshotIDMalformed},
		{"not there", in(func(i *PutSnapshotBlockInput) { i.SnapshotID = ami.NewSnapshotID() }), ami.CodeInvalidSnapshotNotFound},
		{"another's", putErr(t, h.open(t, as(stranger)), id, 0, data), ami.CodeInvalidSnapshotNotFound},
		{"completed", in(func(i *PutSnapshotBlockInput) { i.SnapshotID = done }), ami.CodeIncorrectState},
		{"pending otherwise", in(func(i *PutSnapshotBlockInput) { i.SnapshotID = foreign.SnapshotID }), ami.CodeIncorrectState},
		{"too short", in(func(i *PutSnapshotBlockInput) { i.Data = data[1:] }), ami.CodeInvalidParameterValue},
		{"too long", in(func(i *PutSnapshotBlockInput) { i.Data = append(slices.Clone(data), 0) }), ami.CodeInvalidParameterValue},
		{"another checksum", in(func(i *PutSnapshotBlockInput) { i.Checksum[0]++ }), ami.CodeInvalidParameterValue},
		{"no checksum", in(func(i *PutSnapshotBlockInput) { i.Checksum = Checksum{} }), ami.CodeInvalidParameterValue},
		{"before the start", in(func(i *PutSnapshotBlockInput) { i.BlockIndex = -1 }), ami.CodeInvalidParameterValue},
		{"behind the end", in(func(i *PutSnapshotBlockInput) { i.BlockIndex = 2048 }), ami.CodeInvalidParameterValue},
		{"progress under 0", in(func(i *PutSnapshotBlockInput) { i.Progress = -1 }), ami.CodeInvalidParameterValue},
		{"progress over 100", in(func(i *PutSnapshotBlockInput) { i.Progress = 101 }), ami.CodeInvalidParameterValue},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantCode(t, tt.err, tt.want) })
	}
	for _, step := range []struct {
		say  int
		want string
	}{{0, "0%"}, {40, "40%"}, {0, "40%"}, {39, "40%"}, {100, "100%"}} {
		must(t, in(func(i *PutSnapshotBlockInput) { i.Progress = step.say }))
		if got := described(t, r, id); got.Progress != step.want || got.State != ami.SnapshotPending {
			t.Errorf("when %d is said got %s of what is %s, want %s of what is pending", step.say, got.Progress, got.State, step.want)
		}
	}
	must(t, in(func(i *PutSnapshotBlockInput) { i.BlockIndex = 2047 }))
	must(t, completeErr(t, r, id, 2)) // none of the refused is in it
}

func TestCompleteSnapshot(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	id := start(t, r)
	must(t, putErr(t, r, id, 1, blockOf(1)))
	must(t, putErr(t, r, id, 0, blockOf(2)))
	must(t, putErr(t, r, id, 1, blockOf(3)))
	of := func(marks ...byte) Checksum {
		h := sha256.New()
		for _, m := range marks {
			sum := sumOf(blockOf(m))
			h.Write(sum[:])
		}
		return Checksum(h.Sum(nil))
	}
	in := func(id ami.SnapshotID, n int64, sum Checksum) error {
		_, err := r.CompleteSnapshot(t.Context(), CompleteSnapshotInput{SnapshotID: id, ChangedBlocksCount: n, Checksum: sum})
		return err
	}
	foreign := r.newSnapshot("", "", gib, nil)
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.PutSnapshot(foreign) }))
	tests := []struct {
		name string
		err  error
		want ami.Code
	}{
		{"no id", in("x", 2, Checksum{}), ami.CodeInvalidSnapshotIDMalformed},
		{"not there", in(ami.NewSnapshotID(), 2, Checksum{}), ami.CodeInvalidSnapshotNotFound},
		{"another's", completeErr(t, h.open(t, as(stranger)), id, 2), ami.CodeInvalidSnapshotNotFound},
		{"pending otherwise", in(foreign.SnapshotID, 0, Checksum{}), ami.CodeIncorrectState},
		{"too few", in(id, 1, Checksum{}), ami.CodeInvalidParameterValue},
		{"too many", in(id, 3, Checksum{}), ami.CodeInvalidParameterValue},
		{"what was put before", in(id, 2, of(2, 1)), ami.CodeInvalidParameterValue},
		{"in another order", in(id, 2, of(3, 2)), ami.CodeInvalidParameterValue},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantCode(t, tt.err, tt.want) })
	}
	if got := described(t, r, id); got.State != ami.SnapshotPending {
		t.Fatalf("after what was refused it is %s, want pending", got.State)
	}
	must(t, r.CreateTags(t.Context(), []string{string(id)}, []ami.Tag{{Key: "late", Value: "1"}}, false))
	must(t, in(id, 2, of(2, 3)))
	got := described(t, r, id)
	if got.State != ami.SnapshotCompleted || len(got.Tags) != 1 {
		t.Errorf("got %+v, want it completed, with its late tag", got)
	}
	again := get(r.CompleteSnapshot(t.Context(), CompleteSnapshotInput{SnapshotID: id, ChangedBlocksCount: 77}))(t)
	if diff := cmp.Diff(got, again); diff != "" {
		t.Errorf("completed again (-first +second):\n%s", diff)
	}
	wantCode(t, putErr(t, r, id, 0, blockOf(1)), ami.CodeIncorrectState)
	wantNoDrafts(t, r)
}

// The parent of a snapshot that is being put together may go: its layer stays.
func TestParentGoes(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	image := registered(t, r, snapshotOf(t, r, 1<<30, marks{0: 1, 9: 2}))
	for _, i := range get(r.DescribeImages(t.Context(), DescribeInput{}))(t) {
		if i.ImageID != image.ImageID {
			get(r.DeregisterImage(t.Context(), i.ImageID, false, false))(t)
		}
	}
	parent := described(t, r, rootSnapshot(image))
	id, idle := start(t, r, over(parent.SnapshotID)), start(t, r, over(parent.SnapshotID))
	get(r.DeregisterImage(t.Context(), image.ImageID, true, false))(t)
	_, err := r.CollectGarbage(t.Context(), false)
	must(t, err)
	got := completeWith(t, r, id, marks{9: 3})
	twin := described(t, r, snapshotOf(t, r, 1<<30, marks{0: 1, 9: 3}))
	if got.ContentDigest != twin.ContentDigest {
		t.Errorf("got the content %s, want that of the parent's blocks and the new one", got.ContentDigest)
	}
	for _, i := range get(r.DescribeImages(t.Context(), DescribeInput{}))(t) {
		get(r.DeregisterImage(t.Context(), i.ImageID, true, false))(t)
	}
	must(t, r.DeleteSnapshot(t.Context(), got.SnapshotID, false))
	if _, err := r.layers.Layer(parent.Layer); err != nil {
		t.Errorf("the layer under %s is gone: %v", idle, err)
	}
	must(t, r.DeleteSnapshot(t.Context(), idle, false))
	if layers := get(r.layers.Layers(t.Context()))(t); len(layers) > 0 {
		t.Errorf("got the layers %v, want none", layers)
	}
	wantNoDrafts(t, r)
}

// A block that is damaged in the draft is found, and can be put again.
func TestDamagedDraft(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	id := start(t, r)
	must(t, putErr(t, r, id, 4, blockOf(1)))
	path := r.path("drafts", string(id), "blocks")
	b := get(os.ReadFile(path))(t)
	b[7]++
	must(t, os.WriteFile(path, b, 0o600))
	err := completeErr(t, r, id, 1)
	wantCode(t, err, ami.CodeInternalError)
	wantSays(t, err, "block 4 is not what was put")
	if got := described(t, r, id); got.State != ami.SnapshotPending {
		t.Errorf("it is %s, want pending", got.State)
	}
	must(t, putErr(t, r, id, 4, blockOf(1)))
	must(t, completeErr(t, r, id, 1))
	wantNoDrafts(t, r)
}

func TestStartedSnapshotAsJSON(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	s := get(r.StartSnapshot(t.Context(), StartSnapshotInput{VolumeSize: 8}))(t)
	var got map[string]any
	must(t, json.Unmarshal(get(json.Marshal(s))(t), &got))
	for key, want := range map[string]string{"SnapshotId": string(s.SnapshotID), "State": "pending", "BlockSize": "524288", "VolumeSize": "8"} {
		if fmt.Sprint(got[key]) != want {
			t.Errorf("got %s %v, want %s", key, got[key], want)
		}
	}
}
