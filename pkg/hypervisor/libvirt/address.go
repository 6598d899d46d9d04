package libvirt

import (
	"context"
	"errors"
	"strings"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
)

// Address returns the guest's address by the leases of its network, else by its
// agent. An agent that does not answer soon is as good as none.
func (d *Driver) Address(ctx context.Context, _ machine.Network, id ami.InstanceID) (string, error) {
	addr, err := d.addressFrom(ctx, id, libvirt.DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE)
	if addr == "" && err == nil {
		addr, err = d.addressFrom(ctx, id, libvirt.DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT)
	}
	return addr, gone(err)
}

// addressFrom asks one source, which may know of none.
func (d *Driver) addressFrom(ctx context.Context, id ami.InstanceID, src libvirt.DomainInterfaceAddressesSource) (addr string, err error) {
	// An agent is asked whether it is there, then what it knows.
	limited, cancel := within(ctx, 2*agentLimit)
	defer cancel()
	found := make(chan string, 1)
	err = d.with(limited, id, func(dom *libvirt.Domain) error {
		if src == libvirt.DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT {
			if err := dom.AgentSetResponseTimeout(int(agentLimit/time.Second), 0); err != nil {
				return err
			}
		}
		ifaces, err := dom.ListAllInterfaceAddresses(src)
		if err == nil { // or no lease yet, or no agent
			found <- ipv4(ifaces)
		}
		return nil
	})
	if errors.Is(err, hypervisor.ErrUnreachable) && ctx.Err() == nil && limited.Err() != nil {
		return "", nil // it took too long
	}
	select {
	case addr = <-found:
	default:
	}
	return addr, err
}

func ipv4(ifaces []libvirt.DomainInterface) string {
	for _, i := range ifaces {
		for _, a := range i.Addrs {
			if a.Type == libvirt.IP_ADDR_TYPE_IPV4 && !strings.HasPrefix(a.Addr, "127.") {
				return a.Addr
			}
		}
	}
	return ""
}
