package libvirt

import (
	"context"

	"github.com/digitalocean/go-qemu/qmp"
	"libvirt.org/go/libvirt"

	talk "github.com/kamivm/kami/pkg/hypervisor/qmp"
)

// monitor speaks QMP with the guest's QEMU through libvirt, for the few
// questions that libvirt itself has no call for.
type monitor struct{ dom *libvirt.Domain }

var _ qmp.Monitor = monitor{}

func (monitor) Connect() error    { return nil }
func (monitor) Disconnect() error { return nil }

func (monitor) Events(context.Context) (<-chan qmp.Event, error) {
	return nil, qmp.ErrEventsNotSupported
}

// Run sends one command and returns QEMU's answer.
func (m monitor) Run(command []byte) ([]byte, error) {
	text, err := m.dom.QemuMonitorCommand(string(command), libvirt.DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT)
	if err != nil {
		return nil, err
	}
	return talk.Answer(text)
}
