package region

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/fake"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
)

// house is a home whose guests live in one fake hypervisor, however many
// commands are opened on it.
type house struct {
	home   string
	driver *fake.Driver
}

func newHouse(t *testing.T) *house {
	t.Helper()
	return &house{t.TempDir(), fake.New()}
}

func (h *house) options() Options {
	return Options{
		Home:      h.home,
		NewDriver: func(context.Context, string) (hypervisor.Driver, error) { return h.driver, nil },
	}
}

// open opens the default region, as a command does.
func (h *house) open(t *testing.T, edit ...func(*Options)) *Region {
	t.Helper()
	opts := h.options()
	for _, e := range edit {
		e(&opts)
	}
	r, err := Open(t.Context(), opts)
	must(t, err)
	t.Cleanup(func() { r.Close() })
	return r
}

// open is a region of its own.
func open(t *testing.T, edit ...func(*Options)) (*Region, *fake.Driver) {
	t.Helper()
	h := newHouse(t)
	return h.open(t, edit...), h.driver
}

func as(account string) func(*Options)          { return func(o *Options) { o.Account = account } }
func tellingTo(p ami.Progress) func(o *Options) { return func(o *Options) { o.Progress = p } }

const stranger = "111122223333"

// listener is a progress that a test listens to. onStep and onAdd run in the
// middle of the work.
type listener struct {
	mu     sync.Mutex
	notes  []string
	steps  []string
	onStep func(name string)
	onAdd  func(name string)
	onDone func(name string)
}

func (l *listener) Note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notes = append(l.notes, fmt.Sprintf(format, args...))
}

func (l *listener) Step(name string, _ int64) ami.Step {
	l.mu.Lock()
	l.steps = append(l.steps, name)
	l.mu.Unlock()
	if l.onStep != nil {
		l.onStep(name)
	}
	return step{l, name}
}

func (l *listener) noted(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.notes, func(n string) bool { return strings.Contains(n, part) })
}

type step struct {
	l    *listener
	name string
}

func (s step) Add(int64) {
	if s.l.onAdd != nil {
		s.l.onAdd(s.name)
	}
}

func (s step) Done(error) {
	if s.l.onDone != nil {
		s.l.onDone(s.name)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// get is must for what returns a value.
func get[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// wantCode checks that an operation failed with one of EC2's codes.
func wantCode(t *testing.T, err error, want ami.Code) {
	t.Helper()
	if got := ami.ErrorCode(err); got != want {
		t.Errorf("got the code %q (%v), want %q", got, err, want)
	}
}

// wantSays checks that an error tells a person of something.
func wantSays(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("got the error %v, want one that says %q", err, part)
	}
}

func wantState(t *testing.T, r *Region, id ami.InstanceID, want ami.InstanceState) ami.Instance {
	t.Helper()
	all, err := r.DescribeInstances(t.Context(), DescribeInput{IDs: []string{string(id)}})
	must(t, err)
	if got := all[0].State.Name; got != want {
		t.Errorf("got the state %s (%v), want %s", got, all[0].StateReason, want)
	}
	return all[0]
}

// rawDisk is a raw disk of 2 MiB that boots and says text.
func rawDisk(t *testing.T, text string) string {
	t.Helper()
	return diskOf(t, hypervisortest.BootSector(text), 2<<20)
}

func diskOf(t *testing.T, head []byte, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	must(t, os.WriteFile(path, head, 0o600))
	must(t, os.Truncate(path, size))
	return path
}

// image imports a disk that says its image's name.
func image(t *testing.T, r *Region, name string) ami.Image {
	t.Helper()
	i, err := r.ImportImage(t.Context(), ImportInput{Source: rawDisk(t, name), Name: name})
	must(t, err)
	return i
}

func rootSnapshot(i ami.Image) ami.SnapshotID { return i.BlockDeviceMappings[0].Ebs.SnapshotID }

// launched runs one instance of an image.
func launched(t *testing.T, r *Region, in RunInstancesInput) ami.Instance {
	t.Helper()
	res, err := r.RunInstances(t.Context(), in)
	must(t, err)
	if len(res.Instances) != 1 {
		t.Fatalf("got %d instances, want 1", len(res.Instances))
	}
	return res.Instances[0]
}

// running is an instance of an image of its own.
func running(t *testing.T, r *Region) ami.Instance {
	t.Helper()
	return launched(t, r, RunInstancesInput{Image: string(image(t, r, "base-"+string(ami.NewImageID())).ImageID)})
}

func stopped(t *testing.T, r *Region) ami.Instance {
	t.Helper()
	return stop(t, r, running(t, r).InstanceID)
}

func stop(t *testing.T, r *Region, id ami.InstanceID) ami.Instance {
	t.Helper()
	all, err := r.StopInstances(t.Context(), StopInput{InstanceIDs: []ami.InstanceID{id}})
	must(t, err)
	return all[0]
}

func terminate(t *testing.T, r *Region, ids ...ami.InstanceID) {
	t.Helper()
	_, err := r.TerminateInstances(t.Context(), ids, false)
	must(t, err)
}

func volumeOf(t *testing.T, r *Region, inst ami.Instance, device string) ami.Volume {
	t.Helper()
	for _, bd := range inst.BlockDeviceMappings {
		if bd.DeviceName == device {
			v, err := r.volumeRecord(t.Context(), bd.Ebs.VolumeID)
			must(t, err)
			return v
		}
	}
	t.Fatalf("%s has no device %s", inst.InstanceID, device)
	return ami.Volume{}
}

// everything is all that a region holds, to compare with later.
type everything struct {
	Images    []ami.Image
	Snapshots []ami.Snapshot
	Volumes   []ami.Volume
	Instances []ami.Instance
	Keys      []ami.KeyPair
	Leases    []string
	Layers    []digest.Digest
	Files     []string
	Guests    map[ami.InstanceID]hypervisor.State
}

func look(t *testing.T, r *Region, d *fake.Driver) everything {
	t.Helper()
	var e everything
	must(t, r.catalog.View(t.Context(), func(tx *catalog.Tx) (err error) {
		if e.Images, err = tx.Images(); err != nil {
			return err
		}
		if e.Snapshots, err = tx.Snapshots(); err != nil {
			return err
		}
		if e.Volumes, err = tx.Volumes(); err != nil {
			return err
		}
		if e.Instances, err = tx.Instances(); err != nil {
			return err
		}
		if e.Keys, err = tx.KeyPairs(); err != nil {
			return err
		}
		leases, err := tx.Leases()
		for _, l := range leases {
			e.Leases = append(e.Leases, l.ID)
		}
		return err
	}))
	layers, err := r.layers.Layers(t.Context())
	must(t, err)
	all, err := r.readRecords(t.Context())
	must(t, err)
	for _, l := range layers {
		if !all.isCached(l.Digest) { // what is kept for the next launch is no leftover
			e.Layers = append(e.Layers, l.Digest)
		}
	}
	e.Files = files(t, r)
	e.Guests, err = d.States(t.Context())
	must(t, err)
	return e
}

// files lists what lies in a region besides its catalog, the layers and locks,
// which are files that hold nothing.
func files(t *testing.T, r *Region) (out []string) {
	t.Helper()
	for _, dir := range []string{"volumes", "objects", "instances", "keys", "tmp"} {
		entries, err := os.ReadDir(r.path(dir))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".lock") {
				out = append(out, dir+"/"+e.Name())
			}
		}
	}
	return out
}
