package region

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/libvirt"
	"github.com/kamivm/kami/pkg/hypervisor/qemu"
)

// Drivers are the names of the drivers that run guests: through libvirt, and as
// QEMU processes of kami's own.
func Drivers() []string { return []string{libvirt.Name, qemu.Name} }

// DriverFits says whether a hypervisor address is one of a driver's. Either may be
// "", which fits all.
func DriverFits(driver, uri string) bool {
	return driver == "" || uri == "" || (driver == qemu.Name) == qemu.IsURI(uri)
}

func (o Options) checkDriver() error {
	if o.Driver != "" && !slices.Contains(Drivers(), o.Driver) {
		return ami.Errorf(ami.CodeInvalidParameterValue, "The driver %q is not one of %s.", o.Driver, strings.Join(Drivers(), " and "))
	}
	if !DriverFits(o.Driver, o.Connect) {
		return ami.Errorf(ami.CodeInvalidParameterCombination, "The driver %s has no guests at %s.", o.Driver, o.Connect).
			WithHint("Leave out --driver, or --connect.")
	}
	return nil
}

// openDriver opens the driver of a hypervisor address, which says by itself whose
// it is. Where there is none the driver is the one asked for, else libvirt's, and
// QEMU's where libvirt cannot be reached.
func (o Options) openDriver(ctx context.Context, uri string) (hypervisor.Driver, error) {
	direct := func() (hypervisor.Driver, error) {
		return qemu.Open(filepath.Join(o.Home, "regions", o.Name, "instances"))
	}
	if qemu.IsURI(uri) || uri == "" && o.Driver == qemu.Name {
		return direct()
	}
	driver, err := libvirt.Open(ctx, uri)
	if err == nil {
		return driver, nil
	}
	if uri != "" || o.Driver != "" || !errors.Is(err, hypervisor.ErrUnreachable) {
		return nil, err
	}
	other, derr := direct()
	if derr != nil {
		return nil, errors.Join(err, derr)
	}
	o.Progress.Note("libvirt cannot be reached: the guest is run without it, by the driver %s", qemu.Name)
	return other, nil
}

// addresses are, for people, where a driver for a hypervisor address is looked for.
func (o Options) addresses(uri string) string {
	switch {
	case uri != "":
		return uri
	case o.Driver == qemu.Name:
		return qemu.URI
	}
	return libvirt.System + " or " + libvirt.Session
}

// renderingName is the file of an instance's folder that keeps what its driver was
// given, in the driver's own language.
func renderingName(driver hypervisor.Driver) string {
	if driver.Name() == qemu.Name {
		return "qemu.argv"
	}
	return "domain.xml"
}

// hasCrashed says whether a guest is off by nobody's will.
func (r *Region) hasCrashed(ctx context.Context, inst ami.Instance) bool {
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return false
	}
	state, err := driver.State(ctx, inst.InstanceID)
	return err == nil && state == hypervisor.StateCrashed
}
