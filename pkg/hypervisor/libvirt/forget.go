package libvirt

import (
	"context"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
)

// Forget removes the state of a guest's TPM. libvirt removes it with a domain that it
// knows by more than its run, so the guest becomes such a one for a moment.
func (d *Driver) Forget(ctx context.Context, spec machine.Spec) error {
	if spec.TPMState == "" {
		return nil
	}
	xml, err := forgottenXML(spec)
	if err != nil {
		return err
	}
	return d.run(ctx, func() error {
		dom, err := d.conn.DomainDefineXML(xml)
		if err != nil {
			return err
		}
		defer dom.Free()
		return dom.UndefineFlags(libvirt.DOMAIN_UNDEFINE_TPM)
	})
}

// forgottenXML is as much of a guest as libvirt finds its TPM by.
func forgottenXML(spec machine.Spec) (string, error) {
	d := &libvirtxml.Domain{
		Type: domainType(spec.Accel), Name: spec.Name, UUID: spec.UUID,
		Memory:  &libvirtxml.DomainMemory{Value: uint(spec.MemoryMiB), Unit: "MiB"},
		Devices: &libvirtxml.DomainDeviceList{TPMs: []libvirtxml.DomainTPM{tpm(spec.Arch)}},
	}
	if err := renderMachine(d, spec); err != nil {
		return "", err
	}
	d.OS.SMBios = nil
	return d.Marshal()
}

var _ hypervisor.Forgetter = (*Driver)(nil)
