package region

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// draftJob is what a child does to a snapshot that is put together. It says when
// it is done.
func draftJob(home, arg string) error {
	ctx := context.Background()
	r, err := Open(ctx, Options{Home: home})
	if err != nil {
		return err
	}
	do, rest, _ := strings.Cut(arg, " ")
	id := ami.SnapshotID(rest)
	switch do {
	case "start":
		_, err = r.StartSnapshot(ctx, StartSnapshotInput{VolumeSize: 1, ParentSnapshotID: id, ClientToken: "one"})
	case "put":
		_, err = r.PutSnapshotBlock(ctx, PutSnapshotBlockInput{SnapshotID: id, Data: blockOf(2), Checksum: sumOf(blockOf(2)), Progress: 50})
	case "complete":
		_, err = r.CompleteSnapshot(ctx, CompleteSnapshotInput{SnapshotID: id, ChangedBlocksCount: 2})
	case "delete":
		err = r.DeleteSnapshot(ctx, id, false)
	case "open": // sweeps
	}
	if err == nil {
		fmt.Fprintln(os.Stdout, "done")
	}
	return errors.Join(err, r.Close())
}

// draftCrash is a job on a house, which the next command finds as before the job
// or as after it.
type draftCrash struct {
	job string
	// ready makes what the job is done to.
	ready func(t *testing.T, r *Region) ami.SnapshotID
	// state is what there is of it when the next command has been opened, before
	// or after the job; it fails on half of one, and does the job if it is not done.
	state func(t *testing.T, r *Region, id ami.SnapshotID) (after bool)
	steps []string // some that the job must come by
}

func draftCrashes() []draftCrash {
	started := func(t *testing.T, r *Region) ami.SnapshotID {
		t.Helper()
		id := start(t, r, over(completeWith(t, r, start(t, r), marks{0: 9, 7: 9}).SnapshotID))
		must(t, putErr(t, r, id, 0, blockOf(3)))
		must(t, putErr(t, r, id, 1, blockOf(1)))
		return id
	}
	completed := func(t *testing.T, r *Region, id ami.SnapshotID, n int64, first byte) {
		t.Helper()
		must(t, completeErr(t, r, id, n))
		for i, mark := range map[int64]byte{0: first, 1: 1, 2: 0, 7: 9} {
			data, _ := get2(r.GetSnapshotBlock(t.Context(), id, i, Checksum{}))(t)
			if data[0] != mark {
				t.Errorf("block %d has the mark %d, want %d", i, data[0], mark)
			}
		}
	}
	return []draftCrash{
		{
			"start",
			func(t *testing.T, r *Region) ami.SnapshotID {
				return completeWith(t, r, start(t, r), marks{0: 9, 7: 9}).SnapshotID
			},
			func(t *testing.T, r *Region, parent ami.SnapshotID) bool {
				there := get(r.DescribeSnapshots(t.Context(), DescribeInput{}))(t)[1:]
				ids := get(r.layers.Drafts())(t)
				if len(there) > 1 || len(ids) != len(there) {
					t.Errorf("got the snapshots %v with the drafts %v", there, ids)
				}
				// The client tries again, and gets the one that there is.
				again := get(r.StartSnapshot(t.Context(), StartSnapshotInput{VolumeSize: 1, ParentSnapshotID: parent, ClientToken: "one"}))(t)
				if len(there) == 1 && again.SnapshotID != there[0].SnapshotID {
					t.Errorf("got %s again, want %s", again.SnapshotID, there[0].SnapshotID)
				}
				must(t, putErr(t, r, again.SnapshotID, 1, blockOf(1)))
				completed(t, r, again.SnapshotID, 1, 9)
				return len(there) == 1
			},
			[]string{"job.begin#1", "rename.renamed#1", "snapshot.draft#1", "job.committed#1"},
		},
		{
			"put", started,
			func(t *testing.T, r *Region, id ami.SnapshotID) bool {
				blocks := get(get(r.layers.OpenDraft(id))(t).Blocks())(t)
				data := make([]byte, BlockSize)
				must(t, blocks.ReadBlock(data, 0))
				if p := described(t, r, id).Progress; data[0] != 2 && p != "0%" {
					t.Errorf("got the progress %s without the block", p)
				}
				completed(t, r, id, 2, data[0])
				return data[0] == 2
			},
			[]string{"draft.written#1", "draft.recorded#1", "draft.put#1"},
		},
		{
			"complete", started,
			func(t *testing.T, r *Region, id ami.SnapshotID) bool {
				state := described(t, r, id).State
				if state != ami.SnapshotCompleted && state != ami.SnapshotPending {
					t.Errorf("it is %s", state)
				}
				if has := get(r.layers.HasDraft(id))(t); has != (state == ami.SnapshotPending) {
					t.Errorf("it is %s and has a draft: %v", state, has)
				}
				completed(t, r, id, 2, 3)
				return state == ami.SnapshotCompleted
			},
			[]string{"job.begin#1", "layer.written#1", "snapshot.layer#1", "job.committed#1", "draft.removed#1"},
		},
		{
			"delete", started,
			func(t *testing.T, r *Region, id ami.SnapshotID) bool {
				err := r.DeleteSnapshot(t.Context(), id, false)
				if err != nil {
					wantCode(t, err, ami.CodeInvalidSnapshotNotFound)
				}
				return err != nil
			},
			[]string{"draft.remove#1", "draft.removed#1"},
		},
	}
}

// TestDraftKilledAtEveryStep kills a child at each durable step of what it does to
// a snapshot that is put together. The next command finds it as before or as
// after, loses no block that was put, and leaves nothing.
func TestDraftKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	child := func(t *testing.T, h *house, arg, env string) (string, error) {
		return crashChild(t, h, "draft", arg, env)
	}
	for _, tt := range draftCrashes() {
		t.Run(tt.job, func(t *testing.T) {
			list := filepath.Join(t.TempDir(), "steps")
			h := newHouse(t)
			arg := tt.job + " " + string(tt.ready(t, h.open(t)))
			if out, _ := child(t, h, arg, "KAMI_CRASH_LIST="+list); out != "done\n" {
				t.Fatalf("the job fails: %s", out)
			}
			steps := strings.Fields(string(get(os.ReadFile(list))(t)))
			for _, want := range tt.steps {
				if !slices.Contains(steps, want) {
					t.Errorf("got the steps %q, want %s among them", steps, want)
				}
			}
			seen := map[bool]bool{}
			for _, at := range steps {
				h := newHouse(t)
				r := h.open(t)
				id := tt.ready(t, r)
				out, err := child(t, h, tt.job+" "+string(id), "KAMI_CRASH_AT="+at)
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("%s: got %v, want it killed\n%s", at, err, out)
				}
				next := h.open(t)
				seen[tt.state(t, next, id)] = true
				wantNoDrafts(t, next)
				if t.Failed() {
					t.Fatalf("killed at %s", at)
				}
			}
			if len(seen) != 2 && tt.job != "delete" { // whose record goes before its first step
				t.Errorf("killed at %q it is always %v: not every step is there", steps, seen)
			}
		})
	}
	// The client may try again where no command comes in between.
	t.Run("start and an open region", func(t *testing.T) {
		for _, at := range []string{"job.begin", "rename.renamed", "snapshot.draft", "file.synced", "file.renamed", "job.commit", "job.committed"} {
			h := newHouse(t)
			r := h.open(t)
			if out, _ := child(t, h, "start ", "KAMI_CRASH_AT="+at); strings.Contains(out, "done") {
				t.Errorf("%s: it is not killed", at)
			}
			again := start(t, r, func(in *StartSnapshotInput) { in.ClientToken = "one" })
			must(t, putErr(t, r, again, 0, blockOf(1)))
			next := h.open(t)
			must(t, completeErr(t, next, again, 1))
			wantNoDrafts(t, next)
			if t.Failed() {
				t.Fatalf("killed at %s", at)
			}
		}
	})
	// Who ends what has timed out may be killed as well.
	t.Run("time out", func(t *testing.T) {
		for _, at := range []string{"snapshot.expired", "draft.remove", "remove.removed", "remove.removed#2", "draft.removed"} {
			h := newHouse(t)
			r := h.open(t)
			id := start(t, r)
			must(t, putErr(t, r, id, 0, blockOf(1)))
			age(t, r, id, 2*time.Hour)
			if out, _ := child(t, h, "open", "KAMI_CRASH_AT="+at); strings.Contains(out, "done") {
				t.Errorf("%s: it is not killed", at)
			}
			wantTimedOut(t, h.open(t), id)
		}
	})
}
