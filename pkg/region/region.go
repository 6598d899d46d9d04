// Package region is the house: it opens one region's root, wires the stores and
// the driver, and holds every operation, one file a verb. The doors (command
// line, endpoints) call it and nothing else, so they cannot drift apart.
//
// The rules of the house: the catalog's commit is the truth; a layer is durable
// before a record names it; work that is under way holds a lease in the catalog
// and a lock on disk, so that whatever a killed process left behind is known by
// name and is undone by the next command. What a guest does now is asked of the
// hypervisor, never stored as if it were a fact.
package region

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/kms"
	"github.com/kamivm/kami/pkg/snapshot"
)

// DefaultRegion exists in every home without being made.
const DefaultRegion = "local-1"

// Options say which region to open and on whose behalf.
type Options struct {
	Home    string // absolute path of KAMI_HOME
	Name    string // region; "" is DefaultRegion
	Connect string // hypervisor address; "" is chosen
	Driver  string // one of Drivers; "" is chosen
	Account string // who asks; "" is ami.DefaultAccount
	// The accounts of organisations and of their units, by ARN.
	Organizations map[string][]string
	// Clock is asked for the time when dates decide: deprecation, retention,
	// cooldown and locks. nil is time.Now.
	Clock func() time.Time
	// Uptime is asked for the run of the host and how long it has lasted, by which
	// use is measured. nil asks the kernel, unless there is a Clock.
	Uptime      func() (boot string, up time.Duration)
	RecipesDirs []string     // where recipes are looked up by name
	ObjectStore string       // address of where bundles lie; "" is the region's own folder
	Progress    ami.Progress // nil draws nothing
	// Program is the absolute path of kami itself, which a hypervisor runs when a
	// guest asks for its metadata; "" leaves guests without that service.
	Program string

	// NewDriver opens a driver for a hypervisor address, "" for one of its choice;
	// nil opens libvirt's and QEMU's.
	NewDriver func(ctx context.Context, uri string) (hypervisor.Driver, error)
}

// Region is one open region. Its methods are safe for concurrent use, also by
// several processes on one home.
type Region struct {
	opts     Options
	dir      string // absolute path of the region's root
	account  string
	progress ami.Progress
	stall    time.Duration // how long a server may send nothing
	// Quotas of an account: all snapshots, and those that are being written.
	maxSnapshots, maxDrafts int
	catalog                 *catalog.Store
	layers                  *snapshot.Store
	keys                    kms.Store // that encrypt

	mu      sync.Mutex
	drivers map[string]hypervisor.Driver // by address as asked for
	damage  map[string]bool              // what has been said of damaged records
	paused  sync.Map                     // guests that have been said to be paused, by id
	lists   blockLists
}

var regionName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// Open opens a region and undoes what killed processes left half done. The
// default region is made when it is not there; another one must exist.
func Open(ctx context.Context, opts Options) (*Region, error) {
	if opts.Name == "" {
		opts.Name = DefaultRegion
	}
	if opts.Account == "" {
		opts.Account = ami.DefaultAccount
	}
	if !ami.IsAccount(opts.Account) {
		return nil, badUser(opts.Account)
	}
	if opts.Progress == nil {
		opts.Progress = ami.NoProgress
	}
	if err := opts.checkDriver(); err != nil {
		return nil, err
	}
	if opts.NewDriver == nil {
		opts.NewDriver = opts.openDriver
	}
	if !regionName.MatchString(opts.Name) {
		return nil, badRegionName(opts.Name)
	}
	if IsRemote(opts.Home, opts.Name) {
		return nil, remoteOnly(opts.Name)
	}
	dir := filepath.Join(opts.Home, "regions", opts.Name)
	if to, err := filepath.EvalSymlinks(dir); err == nil { // one root, whatever homes it has a name in
		if st, err := os.Lstat(dir); err == nil && st.Mode()&fs.ModeSymlink != 0 {
			dir = to
		}
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if opts.Name != DefaultRegion {
			return nil, ami.Errorf(ami.CodeInvalidParameterValue, "The region %q does not exist.", opts.Name).
				WithHint("kami region create %s makes it; kami region list shows those there are.", opts.Name)
		}
		if err := makeRoot(dir); err != nil {
			return nil, storeError(err, "The region's folder %s cannot be made.", dir)
		}
	}
	r := &Region{
		opts: opts, dir: dir, account: opts.Account, progress: opts.Progress, stall: stallLimit,
		maxSnapshots: snapshotQuota, maxDrafts: draftQuota,
		keys:    kms.OpenDir(filepath.Join(dir, "kms")),
		drivers: map[string]hypervisor.Driver{}, damage: map[string]bool{},
	}
	var err error
	if r.layers, err = snapshot.OpenKeyed(dir, r.passphrase); err != nil {
		return nil, storeError(err, "The layers of region %q cannot be opened.", opts.Name)
	}
	if r.catalog, err = catalog.Open(ctx, filepath.Join(dir, "catalog.db")); err != nil {
		return nil, storeError(err, "The catalog of region %q cannot be opened.", opts.Name)
	}
	if err := r.catalog.StartMetering(ctx, r.meter()); err != nil {
		r.Close()
		return nil, storeError(err, "The use of region %q cannot be metered.", opts.Name)
	}
	if err := r.sweep(ctx); err != nil {
		r.Close()
		return nil, storeError(err, "What an interrupted command left in region %q cannot be swept.", opts.Name)
	}
	return r, nil
}

// Close releases what the region holds. Guests live on.
func (r *Region) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	closed := map[hypervisor.Driver]bool{} // one may be known by two addresses
	for _, d := range r.drivers {
		if !closed[d] {
			closed[d] = true
			errs = append(errs, d.Close())
		}
	}
	r.drivers = map[string]hypervisor.Driver{}
	return errors.Join(append(errs, r.catalog.Close())...)
}

// makeRoot makes a region's folders. A guest of the system's libvirt runs as
// another user, which must be able to pass through them to its own files.
func makeRoot(dir string) error {
	for _, d := range []string{dir, "layers", "volumes", "objects", "instances", "tmp"} {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		if err := os.MkdirAll(d, 0o711); err != nil {
			return err
		}
	}
	return nil
}

func (r *Region) path(elem ...string) string {
	return filepath.Join(append([]string{r.dir}, elem...)...)
}

func (r *Region) instanceDir(id ami.InstanceID) string { return r.path("instances", string(id)) }

// driver returns the driver for a hypervisor address, opening it once. An empty
// address is the region's own choice.
func (r *Region) driver(ctx context.Context, uri string) (hypervisor.Driver, error) {
	if uri == "" {
		uri = r.opts.Connect
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if d, ok := r.drivers[uri]; ok {
		return d, nil
	}
	d, err := r.opts.NewDriver(ctx, uri)
	if err != nil {
		return nil, &ami.Error{
			Code:    ami.CodeInsufficientInstanceCapacity,
			Message: fmt.Sprintf("The hypervisor at %s cannot be reached.", r.opts.addresses(uri)),
			Hint:    "kami doctor says what is missing and how to mend it.",
			Err:     err,
		}
	}
	r.drivers[uri] = d
	r.drivers[d.URI()] = d
	return d, nil
}
