package region

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/object/objecttest"
)

// noiseImage is an image of 4 MiB of noise, less what cut says, and one more byte.
func noiseImage(t *testing.T, r *Region, name string, cut int) ami.Image {
	t.Helper()
	data := noiseOf(1, 4<<20)
	data = slices.Concat(data[:cut], []byte("new"), data[cut:])
	path := diskOf(t, data, 16<<20)
	return get(r.ImportImage(t.Context(), ImportInput{Source: path, Name: name, Format: "raw", BootMode: ami.BootLegacyBIOS, NoRelative: true}))(t)
}

func imageContent(t *testing.T, r *Region, name string) string {
	t.Helper()
	return string(described(t, r, rootSnapshot(get(r.ResolveImage(t.Context(), name, false))(t))).ContentDigest)
}

func copyOf(t *testing.T, h *house, from, to, name string, edit ...func(*Options)) (CopiedImage, error) {
	t.Helper()
	return h.copied(t, to, CopyImageInput{SourceRegion: from, SourceImageID: name, Name: name}, edit...)
}

// There and back again through each kind of store: only what is lacking travels.
func testFar(t *testing.T, at string) {
	h := newHouse(t)
	r := h.open(t)
	noiseImage(t, r, "first", 100)
	noiseImage(t, r, "rebuilt", 2<<20)
	base, child := twoLayers(t, r)
	h.region(t, "far-1", at)
	h.region(t, "lab-1", "")
	first := get(copyOf(t, h, DefaultRegion, "far-1", "first"))(t)
	if first.MovedBytes < 4<<20 || first.SavedBytes != 0 {
		t.Errorf("got %+v, want all of it moved", first)
	}
	second := get(copyOf(t, h, DefaultRegion, "far-1", "rebuilt"))(t)
	if second.MovedBytes > 1<<19 || second.SavedBytes < 3<<20 {
		t.Errorf("got %+v, want little of it moved", second)
	}
	get(copyOf(t, h, DefaultRegion, "far-1", base.Name))(t)
	if c := get(copyOf(t, h, DefaultRegion, "far-1", child.Name))(t); c.LayersShared != 1 || c.LayersCopied != 1 {
		t.Errorf("got %+v, want one layer shared", c)
	}
	_, err := copyOf(t, h, DefaultRegion, "far-1", "first")
	wantCode(t, err, ami.CodeInvalidAMINameDuplicate)
	opts := h.options()
	opts.Name = "far-1"
	if all := get(RemoteImages(t.Context(), opts, DescribeInput{}))(t); len(all) != 4 || all[0].Name != "first" || all[0].ImageID != first.ImageID {
		t.Errorf("got %+v, want four images", all)
	}
	opts.Account = stranger
	if all := get(RemoteImages(t.Context(), opts, DescribeInput{}))(t); len(all) != 0 {
		t.Errorf("another account has %+v", all)
	}
	_, err = copyOf(t, h, "far-1", "lab-1", "first", as(stranger))
	wantCode(t, err, ami.CodeInvalidAMIIDNotFound)

	lab := h.open(t, inRegion("lab-1"))
	if c := get(copyOf(t, h, "far-1", "lab-1", "first"))(t); c.MovedBytes < 4<<20 {
		t.Errorf("got %+v, want all of it moved", c)
	}
	if c := get(copyOf(t, h, "far-1", "lab-1", "rebuilt"))(t); c.MovedBytes > 1<<19 {
		t.Errorf("got %+v, want little of it moved", c)
	}
	for _, name := range []string{"first", "rebuilt"} {
		if got, want := imageContent(t, lab, name), imageContent(t, r, name); got != want {
			t.Errorf("%s has the content %s, want %s", name, got, want)
		}
	}
	c := get(copyOf(t, h, "far-1", "lab-1", child.Name))(t)
	wantMarks(t, lab, c.ImageID, marks{0: 9, 1: 5, 7: 0})
	if b := get(copyOf(t, h, "far-1", "lab-1", base.Name))(t); b.MovedBytes != 0 {
		t.Errorf("got %+v, want nothing moved", b)
	}
	// What goes takes what it alone needed.
	opts = h.options()
	opts.Name = "far-1"
	size := func() (n int64) {
		s := get(object.Open(t.Context(), at, object.Options{}))(t)
		defer s.Close()
		must(t, s.List(t.Context(), "data/chunks/", func(o object.Info) error { n += o.Size; return nil }))
		return n
	}
	before := size()
	get(DeregisterRemoteImage(t.Context(), opts, "rebuilt", false))(t)
	if after := size(); after >= before || after < 4<<20 {
		t.Errorf("got %d bytes of chunks after %d", after, before)
	}
	h.region(t, "lab-2", "")
	get(copyOf(t, h, "far-1", "lab-2", "first"))(t)
	if got, want := imageContent(t, h.open(t, inRegion("lab-2")), "first"), imageContent(t, r, "first"); got != want {
		t.Errorf("got the content %s, want %s", got, want)
	}
	for _, name := range []string{"first", base.Name, child.Name} {
		get(DeregisterRemoteImage(t.Context(), opts, name, false))(t)
	}
	if n := size(); n != 0 {
		t.Errorf("%d bytes of chunks are left", n)
	}
	must(t, Delete(t.Context(), h.home, "far-1", false))
	if IsRemote(h.home, "far-1") {
		t.Error("the region is still there")
	}
}

func TestFarInAFolder(t *testing.T) { t.Parallel(); testFar(t, "file://"+t.TempDir()) }

func TestFarInS3(t *testing.T) { testFar(t, objecttest.StartS3(t).URL(t)) }

// A chunk that comes damaged is fetched again, and told of.
func TestFarDamagedInTransit(t *testing.T) {
	s3 := objecttest.StartS3(t)
	proxy := objecttest.StartProxy(t, s3.Endpoint)
	at := strings.Replace(s3.URL(t), s3.Endpoint, proxy.Endpoint, 1)
	h := newHouse(t)
	noiseImage(t, h.open(t), "first", 100)
	h.region(t, "far-1", at)
	h.region(t, "lab-1", "")
	get(copyOf(t, h, DefaultRegion, "far-1", "first"))(t)
	flip := objecttest.Body{Bytes: func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 1; return b }}.Fault(proxy)
	var seen atomic.Int32
	proxy.Always(func(q *http.Request) objecttest.Fault {
		if q.Method == http.MethodGet && strings.HasSuffix(q.URL.Path, ".cacnk") && seen.Add(1) <= 3 {
			return flip
		}
		return nil
	})
	told := &listener{}
	get(copyOf(t, h, "far-1", "lab-1", "first", tellingTo(told)))(t)
	if !told.noted("came damaged and is fetched again") {
		t.Errorf("got the notes %q, want one of a damaged chunk", told.notes)
	}
	if got, want := imageContent(t, h.open(t, inRegion("lab-1")), "first"), imageContent(t, h.open(t), "first"); got != want {
		t.Errorf("got the content %s, want %s", got, want)
	}
}

// What is damaged or missing in the store is no image, and leaves nothing.
func TestFarDamaged(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(t *testing.T, dir string){
		"a chunk is damaged": func(t *testing.T, dir string) { overwriteAll(t, dir, "data/chunks/*/*.cacnk", []byte("xxxx")) },
		"the chunks are gone": func(t *testing.T, dir string) {
			t.Helper()
			must(t, os.RemoveAll(filepath.Join(dir, "data", "chunks")))
		},
		"an index is another":    func(t *testing.T, dir string) { overwriteAll(t, dir, "data/layers/*.caibx", nil) },
		"a manifest is empty":    func(t *testing.T, dir string) { overwriteAll(t, dir, "data/layers/*.manifest", []byte("{}")) },
		"a manifest is not JSON": func(t *testing.T, dir string) { overwriteAll(t, dir, "data/layers/*.manifest", []byte("x")) },
		"the record is not JSON": func(t *testing.T, dir string) { overwriteAll(t, dir, "images/*.json", []byte("x")) },
		"the record is empty":    func(t *testing.T, dir string) { overwriteAll(t, dir, "images/*.json", []byte("{}")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, dir := newHouse(t), t.TempDir()
			noiseImage(t, h.open(t), "first", 100)
			h.region(t, "far-1", "file://"+dir)
			h.region(t, "lab-1", "")
			done := get(copyOf(t, h, DefaultRegion, "far-1", "first"))(t)
			harm(t, dir)
			_, err := h.copied(t, "lab-1", CopyImageInput{SourceRegion: "far-1", SourceImageID: string(done.ImageID), Name: "copy"})
			if code := ami.ErrorCode(err); code != ami.CodeInternalError {
				t.Errorf("got %v, want that it is damaged", err)
			}
			wantNone(t, h.open(t, inRegion("lab-1")))
		})
	}
}

func overwriteAll(t *testing.T, dir, pattern string, with []byte) {
	t.Helper()
	for _, path := range get(filepath.Glob(filepath.Join(dir, pattern)))(t) {
		must(t, os.Remove(path))
		must(t, os.WriteFile(path, with, 0o600))
	}
}

// fullStore is a store whose disk is full after some bytes.
type fullStore struct {
	object.Store
	room atomic.Int64
}

func (f *fullStore) Put(ctx context.Context, name string, r io.ReadSeeker, size int64) error {
	if f.room.Add(-size) < 0 {
		return &os.PathError{Op: "write", Path: name, Err: syscall.ENOSPC}
	}
	return f.Store.Put(ctx, name, r, size)
}

// A store that is full has no image, and what it had taken need not be sent again.
func TestFarFull(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	noiseImage(t, r, "first", 100)
	store := get(object.OpenDir(t.TempDir()))(t)
	push := func(s object.Store) (CopiedImage, error) {
		from := &near{r: r}
		defer from.letGo(t.Context())
		p := get(from.parcel(t.Context(), "first"))(t)
		done, err := (&remote{"far-1", s}).push(t.Context(), h.options(), CopyImageInput{SourceImageID: "first", Name: "first"}, r, p)
		return done, remoteError(copyError(err, p), s.URL())
	}
	little := &fullStore{Store: store}
	little.room.Store(1 << 20)
	_, err := push(little)
	wantCode(t, err, ami.CodeResourceLimitExceeded)
	if all, _, err := (&remote{"far-1", store}).images(t.Context(), ami.NoProgress); err != nil || len(all) != 0 {
		t.Errorf("got the images %v (%v), want none", all, err)
	}
	if done := get(push(store))(t); done.MovedBytes > 7<<19 {
		t.Errorf("got %+v, want less than what had been sent", done)
	}
	wantSound(t, r)
}

// A copy that is broken off goes on where it was.
func TestFarBrokenOff(t *testing.T) {
	t.Parallel()
	h, dir := newHouse(t), t.TempDir()
	noiseImage(t, h.open(t), "first", 100)
	h.region(t, "far-1", "file://"+dir)
	h.region(t, "lab-1", "")
	stopAt := func(step string, after int32, from, to string) error {
		var n atomic.Int32 // told from several goroutines
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		told := &listener{onAdd: func(name string) {
			if strings.HasPrefix(name, step) {
				if n.Add(1) == after {
					stop()
				}
			}
		}}
		opts := h.options()
		opts.Name, opts.Progress = to, told
		_, err := CopyImage(ctx, opts, CopyImageInput{SourceRegion: from, SourceImageID: "first", Name: "first"})
		return err
	}
	if err := stopAt("sending ", 100, DefaultRegion, "far-1"); err == nil {
		t.Error("the copy is not broken off")
	}
	if done := get(copyOf(t, h, DefaultRegion, "far-1", "first"))(t); done.SavedBytes < 1<<20 {
		t.Errorf("got %+v, want that it went on", done)
	}
	if err := stopAt("fetching ", 100, "far-1", "lab-1"); err == nil {
		t.Error("the copy is not broken off")
	}
	lab := h.open(t, inRegion("lab-1"))
	wantNone(t, lab)
	if done := get(copyOf(t, h, "far-1", "lab-1", "first"))(t); done.MovedBytes > 7<<19 {
		t.Errorf("got %+v, want that it went on", done)
	}
	if _, err := os.Stat(lab.chunkCache()); !os.IsNotExist(err) {
		t.Errorf("the chunks are still there: %v", err)
	}
	wantSound(t, lab)
}

func TestFarOverSFTP(t *testing.T) {
	host := objecttest.StartSSH(t)
	dir := t.TempDir()
	script := "#!/bin/sh\nexec '" + strings.Join(host.Client, "' '") + "' \"$@\"\n"
	must(t, os.WriteFile(filepath.Join(dir, "ssh"), []byte(script), 0o700))
	if host.Client[0] == "ssh" {
		host.Client[0] = get(exec.LookPath("ssh"))(t)
		script = "#!/bin/sh\nexec '" + strings.Join(host.Client, "' '") + "' \"$@\"\n"
		must(t, os.WriteFile(filepath.Join(dir, "ssh"), []byte(script), 0o700))
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	testFar(t, host.URL(t))
}
