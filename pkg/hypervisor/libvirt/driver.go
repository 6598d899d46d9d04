// Package libvirt runs guests through libvirt. A guest is a transient domain:
// what libvirt is given at each start comes from kami's own records, and a guest
// that powers itself off is gone from libvirt, which is how it is noticed.
package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
)

// Name is what the driver calls itself.
const Name = "libvirt"

// The libvirts of a host: the system's, and each user's own.
const (
	System  = "qemu:///system"
	Session = "qemu:///session"
)

// Driver is a connection to one libvirt.
type Driver struct {
	uri     string
	mending sync.RWMutex // held for writing while conn is made anew
	conn    *libvirt.Connect
	closed  atomic.Bool
	tidying sync.WaitGroup // what goes on behind views
}

// eventLoop runs libvirt's event loop, without which consoles and broken
// connections are not noticed. libvirt has one for the process, to be registered
// before the first connection.
var eventLoop = sync.OnceValue(func() error { //nolint:gochecknoglobals // libvirt's own is global
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return err
	}
	go func() {
		for {
			if err := libvirt.EventRunDefaultImpl(); err != nil {
				time.Sleep(time.Second)
			}
		}
	}()
	return nil
})

// Open connects to the libvirt at uri. "" is qemu:///system for root where it
// answers, else qemu:///session. It returns ErrUnreachable.
func Open(ctx context.Context, uri string) (*Driver, error) {
	if err := eventLoop(); err != nil {
		return nil, fmt.Errorf("%w: %w", hypervisor.ErrUnreachable, err)
	}
	tries := []string{uri}
	if uri == "" {
		tries = []string{Session}
		// Without its socket there is no system libvirt to wait for.
		if _, err := os.Stat("/run/libvirt/libvirt-sock"); err == nil && os.Getuid() == 0 {
			tries = []string{System, Session}
		}
	}
	var errs []error
	for _, try := range tries {
		conn, err := connect(ctx, try)
		if err == nil {
			return &Driver{uri: try, conn: conn}, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", try, err))
	}
	err := errors.Join(errs...)
	if errors.Is(err, hypervisor.ErrUnreachable) { // libvirt said so itself
		return nil, err
	}
	return nil, fmt.Errorf("%w: %w", hypervisor.ErrUnreachable, err)
}

// The longest waits for answers that nobody should have to wait for.
const (
	connectLimit = 20 * time.Second
	statesLimit  = 10 * time.Second
	agentLimit   = 2 * time.Second
)

func connect(ctx context.Context, uri string) (*libvirt.Connect, error) {
	ctx, cancel := within(ctx, connectLimit)
	defer cancel()
	return call(ctx, func() (*libvirt.Connect, error) { return libvirt.NewConnect(uri) })
}

// within is ctx with a limit, of which the error speaks when it is over.
func within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: no answer within %v", hypervisor.ErrUnreachable, limit))
}

// translate gives libvirt's errors the driver's sentinels.
func translate(err error) error {
	var e libvirt.Error
	if !errors.As(err, &e) {
		return err
	}
	text := errors.New(e.Message)
	switch {
	case e.Code == libvirt.ERR_NO_DOMAIN:
		return fmt.Errorf("%w: %w", hypervisor.ErrNotFound, text)
	case e.Code == libvirt.ERR_DOM_EXIST,
		e.Code == libvirt.ERR_OPERATION_FAILED && strings.Contains(e.Message, "already exists"),
		strings.Contains(e.Message, "is already active"):
		return fmt.Errorf("%w: %w", hypervisor.ErrExists, text)
	case strings.Contains(e.Message, "QEMU guest agent is not "): // connected, configured, available
		return fmt.Errorf("%w: %w", hypervisor.ErrNoAgent, text)
	case strings.Contains(e.Message, "domain is not running"):
		return fmt.Errorf("%w: %w", hypervisor.ErrNotRunning, text)
	case strings.Contains(e.Message, "Unable to find any firmware"), strings.Contains(e.Message, "Unable to find 'efi' firmware"):
		return fmt.Errorf("%w: %w", hypervisor.ErrNoFirmware, text)
	case strings.Contains(e.Message, "could not find capabilities for"), strings.Contains(e.Message, "Cannot check QEMU binary"):
		return fmt.Errorf("%w: %w", hypervisor.ErrNoEmulator, text)
	case e.Code == libvirt.ERR_NO_CONNECT, e.Domain == libvirt.FROM_RPC:
		return fmt.Errorf("%w: %w", hypervisor.ErrUnreachable, text)
	}
	return text
}

// Name is "libvirt".
func (d *Driver) Name() string { return Name }

// URI is libvirt's address.
func (d *Driver) URI() string { return d.uri }

// Close closes the connection; guests live on.
func (d *Driver) Close() error {
	d.closed.Store(true)
	d.mending.RLock()
	defer d.mending.RUnlock()
	_, err := d.conn.Close()
	return err
}

// Caps is what a libvirt can do and which versions it is made of.
type Caps struct {
	LibVersion        string
	HypervisorVersion string
}

// Capabilities asks libvirt about itself.
func (d *Driver) Capabilities(ctx context.Context) (Caps, error) {
	return ask(ctx, d, func() (Caps, error) {
		lib, err := d.conn.GetLibVersion()
		if err != nil {
			return Caps{}, err
		}
		hv, err := d.conn.GetVersion()
		return Caps{version(uint64(lib)), version(uint64(hv))}, err
	})
}

func version(v uint64) string {
	return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1_000%1_000, v%1_000)
}

// Render returns the domain XML that Start would give to libvirt.
func (d *Driver) Render(spec machine.Spec) (string, error) { return DomainXML(spec) }

// Start creates the guest's domain and runs it.
func (d *Driver) Start(ctx context.Context, spec machine.Spec) error {
	xml, err := DomainXML(spec)
	if err != nil {
		return err
	}
	if spec.TPMState != "" {
		if err := hypervisor.ProbeTPM(); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// Waited for to its end also when ctx ends meanwhile: a start that was given
	// up would come to run when nobody looks.
	err = d.run(context.WithoutCancel(ctx), func() error {
		return d.withKeys(keysOf(spec.Disks...), func() error {
			dom, err := d.conn.DomainCreateXML(xml, libvirt.DOMAIN_NONE)
			if err != nil {
				return err
			}
			return dom.Free()
		})
	})
	if err == nil && ctx.Err() != nil {
		return errors.Join(ctx.Err(), d.Destroy(context.WithoutCancel(ctx), spec.ID))
	}
	return err
}

func domainName(id ami.InstanceID) string { return "kami-" + string(id) }

// with calls fn with the guest's domain.
func (d *Driver) with(ctx context.Context, id ami.InstanceID, fn func(*libvirt.Domain) error) error {
	return d.run(ctx, func() error {
		dom, err := d.conn.LookupDomainByName(domainName(id))
		if err != nil {
			return err
		}
		defer dom.Free()
		return fn(dom)
	})
}

// State says what a guest does.
func (d *Driver) State(ctx context.Context, id ami.InstanceID) (hypervisor.State, error) {
	state := hypervisor.StateGone
	err := d.with(ctx, id, func(dom *libvirt.Domain) error {
		s, reason, err := dom.GetState()
		state = stateOf(s, reason)
		return err
	})
	if errors.Is(err, hypervisor.ErrNotFound) {
		return hypervisor.StateGone, nil
	}
	return state, err
}

func stateOf(s libvirt.DomainState, reason int) hypervisor.State {
	switch s {
	case libvirt.DOMAIN_RUNNING, libvirt.DOMAIN_BLOCKED, libvirt.DOMAIN_SHUTDOWN, libvirt.DOMAIN_PMSUSPENDED:
		return hypervisor.StateRunning
	case libvirt.DOMAIN_PAUSED:
		// Of all that can fail only a lack of room pauses a guest: it is told of
		// the rest.
		if libvirt.DomainPausedReason(reason) == libvirt.DOMAIN_PAUSED_IOERROR {
			return hypervisor.StateIOError
		}
		return hypervisor.StatePaused
	case libvirt.DOMAIN_CRASHED:
		return hypervisor.StateCrashed
	}
	return hypervisor.StateOff
}

var ownName = regexp.MustCompile(`^kami-(i-[0-9a-f]{8,17})$`)

// States says what all guests do, in one round trip.
func (d *Driver) States(ctx context.Context) (map[ami.InstanceID]hypervisor.State, error) {
	ctx, cancel := within(ctx, statesLimit)
	defer cancel()
	return ask(ctx, d, func() (map[ami.InstanceID]hypervisor.State, error) {
		doms, err := d.conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE)
		if err != nil {
			return nil, err
		}
		out := map[ami.InstanceID]hypervisor.State{}
		for _, dom := range doms {
			if name, err := dom.GetName(); err == nil {
				if m := ownName.FindStringSubmatch(name); m != nil {
					if s, reason, err := dom.GetState(); err == nil {
						out[ami.InstanceID(m[1])] = stateOf(s, reason)
					}
				}
			}
			dom.Free()
		}
		return out, nil
	})
}

// Shutdown presses the power button: through the agent where one answers, else
// by ACPI.
func (d *Driver) Shutdown(ctx context.Context, id ami.InstanceID) error {
	err := d.with(ctx, id, func(dom *libvirt.Domain) error {
		return dom.ShutdownFlags(libvirt.DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
	})
	return gone(err)
}

// Reboot asks the guest to reboot.
func (d *Driver) Reboot(ctx context.Context, id ami.InstanceID) error {
	return gone(d.with(ctx, id, func(dom *libvirt.Domain) error { return dom.Reboot(libvirt.DOMAIN_REBOOT_DEFAULT) }))
}

// Resume lets a paused guest go on.
func (d *Driver) Resume(ctx context.Context, id ami.InstanceID) error {
	return gone(d.with(ctx, id, func(dom *libvirt.Domain) error {
		state, _, err := dom.GetState()
		if err != nil || state != libvirt.DOMAIN_PAUSED {
			return err
		}
		return dom.Resume()
	}))
}

// gone turns "no such guest" into "not running": a transient guest is both.
func gone(err error) error {
	if errors.Is(err, hypervisor.ErrNotFound) {
		return fmt.Errorf("%w: %w", hypervisor.ErrNotRunning, err)
	}
	return err
}

// Destroy pulls the plug. A guest that is not there is no error.
func (d *Driver) Destroy(ctx context.Context, id ami.InstanceID) error {
	err := d.with(ctx, id, func(dom *libvirt.Domain) error { return dom.Destroy() })
	if errors.Is(err, hypervisor.ErrNotFound) || errors.Is(err, hypervisor.ErrNotRunning) {
		return nil
	}
	return err
}

// Networks returns the names of libvirt's active networks.
func (d *Driver) Networks(ctx context.Context) ([]string, error) {
	return ask(ctx, d, func() ([]string, error) {
		all, err := d.conn.ListAllNetworks(libvirt.CONNECT_LIST_NETWORKS_ACTIVE)
		if err != nil {
			return nil, err
		}
		var names []string
		for _, n := range all {
			if name, err := n.GetName(); err == nil {
				names = append(names, name)
			}
			n.Free()
		}
		slices.Sort(names)
		return names, nil
	})
}

var _ hypervisor.Resumer = (*Driver)(nil)
