package catalog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// envPath makes this test binary a child that commits to that catalog until it
// is killed, and says so of each commit.
const envPath = "CATALOG_TEST_PATH"

func TestMain(m *testing.M) {
	path := os.Getenv(envPath)
	if path == "" {
		os.Exit(m.Run())
	}
	fmt.Fprintln(os.Stderr, commitForever(path))
	os.Exit(1)
}

// commitForever writes an image with a snapshot of its own in each commit, and
// in every third one deletes an older image with its snapshot as well. It says
// what it is about to commit, and "done" after that.
func commitForever(path string) error {
	ctx := context.Background()
	s, err := Open(ctx, path)
	if err != nil {
		return err
	}
	var live []ami.Image
	for n := 0; ; n++ {
		i := image(string(ami.NewImageID()))
		i.BlockDeviceMappings[0].Ebs.SnapshotID = ami.NewSnapshotID()
		said := "+" + string(i.ImageID)
		if n%3 == 2 {
			said += " -" + string(live[0].ImageID)
		}
		fmt.Fprintln(os.Stdout, said)
		err := s.Update(ctx, func(tx *Tx) error {
			err := errors.Join(
				tx.PutImage(i), tx.PutLease(Lease{ID: string(i.ImageID), Created: time.Now()}),
				tx.PutSnapshot(ami.Snapshot{SnapshotID: i.BlockDeviceMappings[0].Ebs.SnapshotID, StartTime: i.CreationDate}),
			)
			if n%3 == 2 {
				old := live[0]
				err = errors.Join(err, tx.DeleteImage(old.ImageID), tx.DeleteLease(string(old.ImageID)), tx.DeleteSnapshot(old.BlockDeviceMappings[0].Ebs.SnapshotID))
			}
			return err
		})
		if err != nil {
			return err
		}
		if n%3 == 2 {
			live = live[1:]
		}
		live = append(live, i)
		fmt.Fprintln(os.Stdout, "done")
	}
}

// change is what one commit does, and whether it was said to be done.
type change struct {
	added, removed ami.ImageID // removed may be ""
	done           bool
}

// killedAfter runs a child, kills it when it has done so many commits, and
// returns all that it said.
func killedAfter(ctx context.Context, path string, commits int) (said []change, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), envPath+"="+path)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	done := 0
	for sc := bufio.NewScanner(out); sc.Scan(); {
		if sc.Text() != "done" {
			var c change
			for _, word := range strings.Fields(sc.Text()) {
				if id, ok := strings.CutPrefix(word, "+"); ok {
					c.added = ami.ImageID(id)
				} else {
					c.removed = ami.ImageID(word[1:])
				}
			}
			said = append(said, c)
			continue
		}
		said[len(said)-1].done = true
		if done++; done == commits {
			if err := cmd.Process.Kill(); err != nil {
				return nil, err
			}
		}
	}
	if cmd.Wait(); done < commits {
		return nil, fmt.Errorf("the child ended after %d commits: %s", done, &stderr)
	}
	return said, nil
}

// TestKillNine kills two writers at a time, twenty times: whatever they have
// said to be done is there, and what they had no time to say is there whole or
// not at all.
func TestKillNine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	want := map[ami.ImageID]bool{}
	r := rand.New(rand.NewSource(1))
	for round := range 20 {
		said, errs := make([][]change, 2), make([]error, 2)
		var wg sync.WaitGroup
		for i := range said {
			commits := 1 + r.Intn(12)
			wg.Go(func() { said[i], errs[i] = killedAfter(t.Context(), path, commits) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		have := whole(t, path)
		for _, c := range append(said[0], said[1]...) {
			if !c.done && !have[c.added] { // the kill came before the commit
				continue
			}
			want[c.added] = true
			delete(want, c.removed)
		}
		if !maps.Equal(have, want) {
			t.Errorf("round %d: got the images %v, want %v", round, slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(want)))
		}
	}
}

// whole opens a catalog and returns its images, each of which must have its
// snapshot and its lease, which must have no others.
func whole(t *testing.T, path string) map[ami.ImageID]bool {
	t.Helper()
	s := open(t, path)
	defer s.Close()
	have := map[ami.ImageID]bool{}
	err := s.View(t.Context(), func(tx *Tx) error {
		var verdict string
		if err := tx.conn.QueryRowContext(t.Context(), "PRAGMA integrity_check").Scan(&verdict); err != nil || verdict != "ok" {
			t.Errorf("the integrity check says %q (%v), want ok", verdict, err)
		}
		images, err := tx.Images()
		if err != nil {
			return err
		}
		for _, i := range images {
			have[i.ImageID] = true
			snap := i.BlockDeviceMappings[0].Ebs.SnapshotID
			if _, err := tx.Snapshot(snap); err != nil {
				t.Errorf("%s is there without its snapshot: %v", i.ImageID, err)
			}
			if users, err := tx.ImagesUsingSnapshot(snap); err != nil || len(users) != 1 {
				t.Errorf("%s is used by %v (%v), want its image", snap, users, err)
			}
		}
		snaps, err := tx.Snapshots()
		if err != nil {
			return err
		}
		leases, err := tx.Leases()
		for _, l := range leases {
			if !have[ami.ImageID(l.ID)] {
				t.Errorf("the lease of %s is there without its image", l.ID)
			}
		}
		if len(snaps) != len(images) || len(leases) != len(images) {
			t.Errorf("got %d images with %d snapshots and %d leases", len(images), len(snaps), len(leases))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return have
}
