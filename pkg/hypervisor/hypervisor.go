// Package hypervisor is the contract that runs a machine.Spec as a guest. The
// drivers live underneath (libvirt, fake) and all pass hypervisortest.
package hypervisor

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/machine"
)

// Sentinels that drivers return, wrapped.
var (
	ErrNotFound    = errors.New("no such guest")
	ErrExists      = errors.New("guest exists")
	ErrUnreachable = errors.New("hypervisor cannot be reached")
	ErrNoFirmware  = errors.New("no firmware for this boot mode")
	ErrNotRunning  = errors.New("guest is not running")
	ErrNoAgent     = errors.New("guest has no agent")
	ErrNoTPM       = errors.New("no TPM can be emulated")
	ErrNoEmulator  = errors.New("no QEMU for this architecture")
)

// State is what the hypervisor says of a guest.
type State string

// The states of a guest.
const (
	StateRunning State = "running"
	StatePaused  State = "paused"
	StateIOError State = "io-error" // paused: there was no room for what it wrote
	StateOff     State = "off"      // known, not running
	StateGone    State = "gone"     // not known
	StateCrashed State = "crashed"
)

// On says whether a guest has its power, so that its disks are in use.
func (s State) On() bool { return s == StateRunning || s == StatePaused || s == StateIOError }

// Driver runs guests. All methods take the guest's instance id, are safe for
// use from several processes at once, and return when ctx ends.
type Driver interface {
	// Name says which driver this is, for records and people: "libvirt".
	Name() string
	// URI says where the guests live, for records and people.
	URI() string
	// Start makes the guest of spec and runs it. It returns ErrExists when a
	// guest of that id runs already. When Start fails nothing of the guest is
	// left behind.
	Start(ctx context.Context, spec machine.Spec) error
	// State says what a guest does; StateGone, and no error, when unknown.
	State(ctx context.Context, id ami.InstanceID) (State, error)
	// States says what all guests of the driver do, in one round trip.
	States(ctx context.Context) (map[ami.InstanceID]State, error)
	// Shutdown asks the guest to power off cleanly (agent or ACPI) and does
	// not wait. It returns ErrNotRunning when it is not running.
	Shutdown(ctx context.Context, id ami.InstanceID) error
	// Reboot asks the guest to reboot cleanly and does not wait.
	Reboot(ctx context.Context, id ami.InstanceID) error
	// Destroy pulls the plug and forgets the guest. Idempotent.
	Destroy(ctx context.Context, id ami.InstanceID) error
	// Address returns the guest's IP address, "" while none is known.
	Address(ctx context.Context, spec machine.Network, id ami.InstanceID) (string, error)
	// Close releases the connection; guests live on.
	Close() error
}

// Plugger attaches and detaches disks of a running guest.
type Plugger interface {
	// AttachDisk plugs disk into a running guest. ErrNotRunning otherwise.
	AttachDisk(ctx context.Context, id ami.InstanceID, disk machine.Disk) error
	// DetachDisk unplugs the disk whose path is path and waits until the
	// guest has let go. Idempotent.
	DetachDisk(ctx context.Context, id ami.InstanceID, path string) error
}

// Resizer makes disks of a running guest larger.
type Resizer interface {
	// ResizeDisk gives the disk whose path is path a size in bytes, which the
	// guest sees at once. It returns ErrNotRunning when the guest is not
	// running. Idempotent.
	ResizeDisk(ctx context.Context, id ami.InstanceID, path string, size int64) error
}

// Resumer lets guests go on that stand still.
type Resumer interface {
	// Resume lets a paused guest go on; one that was paused by an I/O error
	// tries again what failed, and is paused again where that fails again. A
	// guest that runs stays as it is. It returns ErrNotRunning when there is no
	// such guest.
	Resume(ctx context.Context, id ami.InstanceID) error
}

// Snapshotter gives point-in-time views of a running guest's disks.
type Snapshotter interface {
	// Backup opens a consistent view of disks, all at one instant, while the
	// guest goes on. What an earlier backup left behind when its process died
	// is ended first, so a guest has one backup at a time. It returns
	// ErrNotRunning when the guest is not running. The caller closes the view
	// soon, and holds whatever keeps others from backing up the same disks.
	Backup(ctx context.Context, id ami.InstanceID, b Backup) (View, error)
}

// Backup says what a point-in-time view is of.
type Backup struct {
	Disks []BackupDisk
	// Next is the dirty bitmap that, in each of the disks, records writes from
	// the instant of the view on; "" for none.
	Next string
	// SocketDir and CopiesDir are folders that the guest's process can make
	// files in. The first has a path that is short enough for a socket; the
	// second has room for copies of what the guest overwrites while the view is
	// open.
	SocketDir, CopiesDir string
	// Quiesce makes the guest quiet for the instant of the view: it is called
	// once, while the backup is prepared, and comes to its end before the
	// instant and before Backup returns, also when that fails. Its error is
	// Backup's. nil where nothing has to be done.
	Quiesce func(context.Context) error
}

// Quiesced calls Quiesce, if there is one.
func (b Backup) Quiesced(ctx context.Context) error {
	if b.Quiesce == nil {
		return nil
	}
	return b.Quiesce(ctx)
}

// BackupDisk names one disk of a backup by the path of its file, which may
// carry a persistent dirty bitmap that has recorded every write since some
// earlier instant; "" means that none is known. Bitmaps of kami's in the file
// that are neither this one nor the backup's next are removed.
type BackupDisk struct {
	Path, Bitmap string
	// Key, if any, encrypts the copies of what the guest overwrites.
	Key *machine.Key
}

// BitmapPrefix begins the names of kami's dirty bitmaps.
const BitmapPrefix = "kami-"

// View is a set of disks at one instant.
type View interface {
	// Disk returns the view of the disk with that path.
	Disk(path string) (DiskView, error)
	// Close ends the backup and removes what it needed; what is being read
	// fails. It says when the guest had run out of room for its copies and had
	// to be resumed. Idempotent.
	Close() error
}

// DiskView reads one disk at the view's instant. ReadAt is safe for use from
// several goroutines.
type DiskView interface {
	io.ReaderAt
	// Size is the virtual size in bytes.
	Size() int64
	// Incremental says whether the dirty bitmap could be used.
	Incremental() bool
	// Whole is the same disk where everything counts as changed.
	Whole() DiskView
	// Extents calls fn with consecutive runs covering [off, off+length).
	// dirty: may differ from the instant of the bitmap (always true when not
	// incremental). zero: reads as zeros; said only of what is dirty.
	Extents(ctx context.Context, off, length int64, fn func(off, length int64, dirty, zero bool) error) error
}

// Freezer quiesces the guest's filesystems through the guest agent.
type Freezer interface {
	// Freeze flushes and freezes all filesystems; it returns how many. It
	// fails soon when no agent answers. After any error but ErrNoAgent, for
	// which nothing was asked of the guest, it may still freeze later.
	Freeze(ctx context.Context, id ami.InstanceID, limit time.Duration) (int, error)
	// Thaw undoes Freeze, and returns nil when the agent has said so.
	// Idempotent.
	Thaw(ctx context.Context, id ami.InstanceID) error
}

// Consoler connects to a running guest's serial console.
type Consoler interface {
	// Console opens the two-way serial console. Closing it leaves the guest.
	Console(ctx context.Context, id ami.InstanceID) (io.ReadWriteCloser, error)
}

// Networker knows the networks that guests can be on, other than each its own
// user networking.
type Networker interface {
	// Networks returns the names of those that are up.
	Networks(ctx context.Context) ([]string, error)
}

// Forgetter keeps something of a guest from one of its runs to the next: the state of
// its TPM.
type Forgetter interface {
	// Forget removes what is kept of the guest of spec, which does not run.
	// Idempotent.
	Forget(ctx context.Context, spec machine.Spec) error
}

// Renderer shows a spec in the driver's own language, for people and for the
// instance's folder.
type Renderer interface {
	// Render returns the text that Start would give to the hypervisor.
	Render(spec machine.Spec) (string, error)
}
