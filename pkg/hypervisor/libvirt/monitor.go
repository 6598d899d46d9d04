package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/digitalocean/go-qemu/qmp"
	"github.com/digitalocean/go-qemu/qmp/raw"
	"libvirt.org/go/libvirt"

	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/qcow2"
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
	var failed struct {
		Error *struct{ Class, Desc string } `json:"error"`
	}
	if err := json.Unmarshal([]byte(text), &failed); err != nil {
		return nil, fmt.Errorf("reading QEMU's answer: %w", err)
	}
	if failed.Error != nil {
		return nil, errors.New(failed.Error.Desc)
	}
	return []byte(text), nil
}

// bitmap is a dirty bitmap as QEMU has it.
type bitmap struct {
	Name         string `json:"name"`
	Recording    bool   `json:"recording"`
	Busy         bool   `json:"busy"`
	Inconsistent bool   `json:"inconsistent"`
}

// node is a disk of the guest: QEMU's name for it, and its bitmaps.
type node struct {
	name    string
	size    int64 // in bytes
	bitmaps []bitmap
}

// usable says whether the bitmap of that name has recorded all that it should.
func (n node) usable(name string) bool {
	for _, b := range n.bitmaps {
		if b.Name == name {
			return b.Recording && !b.Busy && !b.Inconsistent
		}
	}
	return false
}

// nodes returns the disks of a running guest by the paths of their files. The
// typed call for it in go-qemu is of a time before bitmaps moved in QEMU's
// answer, so this one is read here.
func (m monitor) nodes() (map[string]node, error) {
	command, err := json.Marshal(qmp.Command{Execute: "query-block"})
	if err != nil {
		return nil, err
	}
	text, err := m.Run(command)
	if err != nil {
		return nil, fmt.Errorf("asking for the guest's disks: %w", err)
	}
	var answer struct {
		Return []struct {
			Inserted *struct {
				NodeName string `json:"node-name"`
				Image    struct {
					Filename string `json:"filename"`
					Size     int64  `json:"virtual-size"`
				} `json:"image"`
				Bitmaps []bitmap `json:"dirty-bitmaps"`
			} `json:"inserted"`
		} `json:"return"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, fmt.Errorf("reading QEMU's answer: %w", err)
	}
	out := map[string]node{}
	for _, dev := range answer.Return {
		if in := dev.Inserted; in != nil {
			out[imageFile(in.Image.Filename)] = node{in.NodeName, in.Image.Size, in.Bitmaps}
		}
	}
	return out, nil
}

// imageFile is the path in QEMU's name of an image, which is either the path or
// JSON that says how the image was opened.
func imageFile(name string) string {
	text, ok := strings.CutPrefix(name, "json:")
	if !ok {
		return name
	}
	var opened struct {
		File struct {
			Filename string `json:"filename"`
		} `json:"file"`
	}
	if err := json.Unmarshal([]byte(text), &opened); err != nil {
		return name
	}
	return opened.File.Filename
}

// addBitmap begins a bitmap that lasts with the disk's file.
func (m monitor) addBitmap(n node, name string) error {
	granularity, lasts := uint32(qcow2.ClusterSize), true
	if err := raw.NewMonitor(m).BlockDirtyBitmapAdd(n.name, name, &granularity, &lasts, nil); err != nil {
		return fmt.Errorf("adding the bitmap %s: %w", name, err)
	}
	return nil
}

// dropBitmaps removes the bitmaps of kami's that nothing needs any more: those
// that an earlier snapshot has replaced, or that a killed one began.
func (m monitor) dropBitmaps(n node, keep string) error {
	qemu := raw.NewMonitor(m)
	var errs []error
	for _, b := range n.bitmaps {
		if strings.HasPrefix(b.Name, hypervisor.BitmapPrefix) && b.Name != keep {
			if err := qemu.BlockDirtyBitmapRemove(n.name, b.Name); err != nil {
				errs = append(errs, fmt.Errorf("removing the bitmap %s: %w", b.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}
