package qmp

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/digitalocean/go-qemu/qmp"
	"github.com/digitalocean/go-qemu/qmp/raw"

	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/qcow2"
)

// Bitmap is a dirty bitmap as QEMU has it.
type Bitmap struct {
	Name         string `json:"name"`
	Recording    bool   `json:"recording"`
	Busy         bool   `json:"busy"`
	Inconsistent bool   `json:"inconsistent"`
}

// Disk is a disk of a guest.
type Disk struct {
	Device  string // the id of the guest's device, "" where it has none
	Node    string // QEMU's name for what is in the device
	Size    int64  // in bytes
	Bitmaps []Bitmap
}

// Usable says whether the bitmap of that name has recorded all that it should.
func (d Disk) Usable(name string) bool {
	for _, b := range d.Bitmaps {
		if b.Name == name {
			return b.Recording && !b.Busy && !b.Inconsistent
		}
	}
	return false
}

// Disks returns the disks of a running guest by the paths of their files. The
// typed call for it in go-qemu is of a time before bitmaps moved in QEMU's
// answer, so this one is read here.
func Disks(m qmp.Monitor) (map[string]Disk, error) {
	var answer []struct {
		Qdev     string `json:"qdev"`
		Inserted *struct {
			NodeName string `json:"node-name"`
			Image    struct {
				Filename string `json:"filename"`
				Size     int64  `json:"virtual-size"`
			} `json:"image"`
			Bitmaps []Bitmap `json:"dirty-bitmaps"`
		} `json:"inserted"`
	}
	if err := Ask(m, "query-block", nil, &answer); err != nil {
		return nil, fmt.Errorf("asking for the guest's disks: %w", err)
	}
	out := map[string]Disk{}
	for _, dev := range answer {
		if in := dev.Inserted; in != nil {
			out[ImageFile(in.Image.Filename)] = Disk{deviceID(dev.Qdev), in.NodeName, in.Image.Size, in.Bitmaps}
		}
	}
	return out, nil
}

// deviceID is the id in the path of a device, or of a part of it, in QEMU's tree
// of objects.
func deviceID(path string) string {
	rest, ok := strings.CutPrefix(path, "/machine/peripheral/")
	if !ok {
		return ""
	}
	id, _, _ := strings.Cut(rest, "/")
	return id
}

// ImageFile is the path in QEMU's name of an image, which is either the path or
// JSON that says how the image was opened.
func ImageFile(name string) string {
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

// Node is any of the nodes that QEMU's disks are made of.
type Node struct {
	Name   string `json:"node-name"`
	Driver string `json:"drv"`
	File   string `json:"file"` // as QEMU names it: see ImageFile
}

// Nodes returns all nodes.
func Nodes(m qmp.Monitor) (nodes []Node, err error) {
	return nodes, Ask(m, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes)
}

// AddBitmap begins a bitmap that lasts with the disk's file.
func AddBitmap(m qmp.Monitor, d Disk, name string) error {
	granularity, lasts := uint32(qcow2.ClusterSize), true
	if err := raw.NewMonitor(m).BlockDirtyBitmapAdd(d.Node, name, &granularity, &lasts, nil); err != nil {
		return fmt.Errorf("adding the bitmap %s: %w", name, err)
	}
	return nil
}

// DropBitmaps removes the bitmaps of kami's that nothing needs any more: those
// that an earlier snapshot has replaced, or that a killed one began.
func DropBitmaps(m qmp.Monitor, d Disk, keep string) error {
	qemu := raw.NewMonitor(m)
	var errs []error
	for _, b := range d.Bitmaps {
		if strings.HasPrefix(b.Name, hypervisor.BitmapPrefix) && b.Name != keep {
			if err := qemu.BlockDirtyBitmapRemove(d.Node, b.Name); err != nil {
				errs = append(errs, fmt.Errorf("removing the bitmap %s: %w", b.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}
