package region

import (
	"context"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/libvirt"
	"github.com/kamivm/kami/pkg/machine"
)

const (
	// userNetwork asks for QEMU's user networking, which needs no network of
	// the host's and no root: the guest gets out, and ssh gets in by a port.
	userNetwork = "user"
	// defaultNetwork is the network that libvirt comes with, which is used
	// where the system's libvirt has it up: guests see each other there.
	defaultNetwork = "default"
)

// network resolves which network a launch is on; "" is user networking.
func (r *Region) network(ctx context.Context, driver hypervisor.Driver, asked string) (string, error) {
	if asked == userNetwork {
		return "", nil
	}
	var have []string
	if n, ok := driver.(hypervisor.Networker); ok {
		var err error
		if have, err = n.Networks(ctx); err != nil {
			return "", storeError(err, "The networks of %s cannot be listed.", driver.URI())
		}
	}
	switch {
	case asked == "" && driver.URI() == libvirt.System && slices.Contains(have, defaultNetwork):
		return defaultNetwork, nil
	case asked == "" || slices.Contains(have, asked):
		return asked, nil
	}
	return "", ami.Errorf(ami.CodeInvalidParameterValue, "There is no network %q that is up at %s.", asked, driver.URI()).
		WithHint("Up are: %s.", strings.Join(append(have, userNetwork), ", "))
}

// address is what is known of a running guest's address, "" for nothing.
func (r *Region) address(ctx context.Context, inst ami.Instance) string {
	if inst.Network == "" {
		return "" // its own, which nobody else can reach
	}
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return ""
	}
	addr, err := driver.Address(ctx, machine.Network{MAC: inst.MAC, Name: inst.Network}, inst.InstanceID)
	if err != nil {
		return "" // a listing goes on without it
	}
	return addr
}
