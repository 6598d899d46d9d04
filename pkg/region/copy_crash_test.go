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

	"github.com/kamivm/kami/pkg/ami"
)

// copyJob is what a child does: a copy, or a file of an image and back.
func copyJob(home, arg string) error {
	ctx := context.Background()
	do, name, _ := strings.Cut(arg, " ")
	var err error
	in := CopyImageInput{SourceImageID: name, Name: "copy", ClientToken: "one"}
	switch do {
	case "near":
		in.SourceRegion = DefaultRegion
		_, err = CopyImage(ctx, Options{Home: home, Name: "lab-1"}, in)
	case "push":
		in.SourceRegion = DefaultRegion
		_, err = CopyImage(ctx, Options{Home: home, Name: "far-1"}, in)
	case "pull":
		in.SourceRegion = "far-1"
		_, err = CopyImage(ctx, Options{Home: home, Name: "lab-1"}, in)
	case "restore":
		var r *Region
		if r, err = Open(ctx, Options{Home: home, Name: "lab-1"}); err == nil {
			_, err = r.RestoreStoredImage(ctx, RestoreImageInput{From: name, Name: "copy"})
			err = errors.Join(err, r.Close())
		}
	}
	if err == nil {
		fmt.Fprintln(os.Stdout, "done")
	}
	return err
}

// TestCopyKilledAtEveryStep kills a copy at each durable step. There is all of an
// image then or nothing, and the same request again ends with one image.
func TestCopyKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	child := func(h *house, arg, env string) (string, error) {
		return crashChild(t, h, "copy", arg, env)
	}
	// made are the houses as the jobs find them, to be copied for each try.
	made := map[string]string{}
	var ready func(job string) (h *house, arg string)
	ready = func(job string) (h *house, arg string) {
		h = newHouse(t)
		far := filepath.Join(h.home, "far")
		if from := made[job]; from != "" {
			must(t, os.CopyFS(h.home, os.DirFS(from)))
			must(t, os.Remove(remotePath(h.home, "far-1")))
			h.region(t, "far-1", "file://"+far)
			return h, job + " " + strings.ReplaceAll(string(get(os.ReadFile(filepath.Join(h.home, "arg")))(t)), from, h.home)
		}
		made[job] = h.home
		r := h.open(t)
		_, img := twoLayers(t, r)
		h.region(t, "lab-1", "")
		h.region(t, "far-1", "file://"+far)
		h.open(t, inRegion("lab-1"))
		arg = img.Name
		switch job {
		case "pull":
			get(copyOf(t, h, DefaultRegion, "far-1", img.Name))(t)
		case "restore":
			arg = get(r.StoreImage(t.Context(), StoreImageInput{Image: img.Name, To: h.home}))(t).At
		}
		must(t, os.WriteFile(filepath.Join(h.home, "arg"), []byte(arg), 0o600))
		return ready(job)
	}
	images := func(h *house, job string) []ami.Image {
		opts := h.options()
		if opts.Name = "lab-1"; job == "push" {
			opts.Name = "far-1"
			return get(RemoteImages(t.Context(), opts, DescribeInput{}))(t)
		}
		r := h.open(t, inRegion("lab-1"))
		snaps := get(r.DescribeSnapshots(t.Context(), DescribeInput{}))(t)
		all := get(r.DescribeImages(t.Context(), DescribeInput{}))(t)
		if len(snaps) != len(all) {
			t.Errorf("got the snapshots %v with the images %v", snaps, all)
		}
		wantSound(t, r)
		return all
	}
	for job, wants := range map[string][]string{
		"near":    {"job.begin#1", "layer.adopted#1", "copy.layer#2", "copy.snapshot#1", "job.committed#1"},
		"push":    {"copy.sent#1", "copy.index#1", "copy.manifest#2", "copy.pushed#1"},
		"pull":    {"job.begin#1", "layer.written#2", "copy.layer#2", "job.committed#1"},
		"restore": {"layer.adopted#2", "job.committed#1"},
	} {
		t.Run(job, func(t *testing.T) {
			list := filepath.Join(t.TempDir(), "steps")
			h, arg := ready(job)
			if out, _ := child(h, arg, "KAMI_CRASH_LIST="+list); out != "done\n" {
				t.Fatalf("the job fails: %s", out)
			}
			steps := strings.Fields(string(get(os.ReadFile(list))(t)))
			for _, want := range wants {
				if !slices.Contains(steps, want) {
					t.Errorf("got the steps %q, want %s among them", steps, want)
				}
			}
			seen := map[int]bool{}
			for i, at := range steps {
				// Of what is done many times, the first and the last.
				name, _, _ := strings.Cut(at, "#")
				same := func(s string) bool { return strings.HasPrefix(s, name+"#") }
				if slices.ContainsFunc(steps[:i], same) && slices.ContainsFunc(steps[i+1:], same) {
					continue
				}
				h, arg := ready(job)
				out, err := child(h, arg, "KAMI_CRASH_AT="+at)
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("%s: got %v, want it killed\n%s", at, err, out)
				}
				there := images(h, job)
				seen[len(there)] = true
				if out, _ := child(h, arg, "KAMI_CRASH_AT="); out != "done\n" && len(there) == 0 {
					t.Errorf("%s: it cannot be done again: %s", at, out)
				}
				if again := images(h, job); len(again) != 1 || again[0].Name != "copy" || len(there) == 1 && again[0].ImageID != there[0].ImageID {
					t.Errorf("%s: got the images %v, then %v", at, there, again)
				}
				wantSound(t, h.open(t))
				if t.Failed() {
					t.Fatalf("killed at %s", at)
				}
			}
			if len(seen) != 2 {
				t.Errorf("killed at %q there are always %v images: not every step is there", steps, seen)
			}
		})
	}
}
