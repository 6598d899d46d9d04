package qemu

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
)

// The user networking of a guest with a metadata service.
const metadataForward = "tcp:" + hypervisor.MetadataAddress + ":80-cmd:"

var metadataNetwork = [...]string{
	"net=" + hypervisor.MetadataNetwork, "host=" + hypervisor.MetadataHost,
	"dns=" + hypervisor.MetadataDNS, "dhcpstart=" + hypervisor.MetadataGuest,
}

// node is a file as QEMU opens it, or an image in one. It is the value of
// -blockdev and the arguments of blockdev-add alike.
type node struct {
	Driver   string   `json:"driver"`
	Name     string   `json:"node-name,omitempty"`
	ReadOnly bool     `json:"read-only,omitempty"`
	Discard  string   `json:"discard,omitempty"`
	Filename string   `json:"filename,omitempty"`
	Encrypt  *encrypt `json:"encrypt,omitempty"`
	File     *node    `json:"file,omitempty"`
	Backing  any      `json:"backing,omitempty"` // a node, the name of one, or null
}

type encrypt struct {
	Format string `json:"format"`
	Secret string `json:"key-secret"`
}

// noBacking says that an image stands on nothing, whatever its header says.
var noBacking = json.RawMessage("null") //nolint:gochecknoglobals // a constant that Go cannot make

// diskNode renders a disk's file with the whole chain of layers that it stands
// on, so that QEMU probes nothing and follows no name in a file.
func diskNode(disk machine.Disk, name string) node {
	n := imageNode(disk.Path, string(disk.Format), disk.Keys)
	n.Name = name
	n.ReadOnly, n.File.ReadOnly = disk.ReadOnly, disk.ReadOnly
	if !disk.ReadOnly {
		n.Discard, n.File.Discard = "unmap", "unmap"
	}
	if disk.Format == machine.FormatQCOW2 {
		n.Backing = backingNode(disk.Backing, disk.Keys)
	}
	return n
}

func backingNode(layers []string, keys map[string]machine.Key) any {
	if len(layers) == 0 {
		return noBacking
	}
	n := imageNode(layers[0], string(machine.FormatQCOW2), keys)
	n.ReadOnly, n.File.ReadOnly = true, true
	n.Backing = backingNode(layers[1:], keys)
	return n
}

func imageNode(path, format string, keys map[string]machine.Key) node {
	n := node{Driver: format, File: &node{Driver: "file", Filename: path}}
	if key, ok := keys[path]; ok {
		n.Encrypt = &encrypt{"luks", secretID(key)}
	}
	return n
}

// addNode adds a node, as JSON: no path has to be escaped in it.
func (c *command) addNode(n node) {
	text, err := json.Marshal(n)
	if err != nil { // strings always marshal
		panic(err)
	}
	c.flags = append(c.flags, []string{"-blockdev", string(text)})
}

// minPorts is how many disks a guest can have at least, and sparePorts how many
// more than it starts with.
const minPorts, sparePorts = 16, 8

// renderPorts makes a PCI Express port for each disk, and free ones for disks
// plugged in later.
func (c *command) renderPorts(spec machine.Spec) {
	for i := range max(minPorts, len(spec.Disks)+sparePorts) {
		values := []string{"pcie-root-port", "id=" + portID(i), "bus=pcie.0", "chassis=" + strconv.Itoa(i+1), fmt.Sprintf("addr=%#x.%#x", 2+i/8, i%8)}
		if i%8 == 0 {
			values = append(values, "multifunction=on")
		}
		c.add("-device", values...)
	}
}

// The names of the i-th disk: its device, the port that is in and no other, and
// the node of its file.
func diskID(i int) string { return "disk" + strconv.Itoa(i) }
func portID(i int) string { return "port" + strconv.Itoa(i) }
func headID(i int) string { return diskID(i) + headSuffix }

const headSuffix = "-head"

// renderDisks adds the disks. A CD-ROM is one of SCSI: Debian's cloud kernel has
// no driver for SATA. A paravirtual guest has virtio disks alone, the seed too.
func (c *command) renderDisks(spec machine.Spec) {
	next := 0
	for i, disk := range spec.Disks {
		if spec.Kernel.Path != "" {
			disk.CDROM, disk.Boot = false, false
		}
		if disk.CDROM {
			id := "cd" + strconv.Itoa(i)
			c.addNode(diskNode(disk, id+headSuffix))
			c.add("-device", "virtio-scsi-pci,id=scsi"+strconv.Itoa(i))
			c.add("-device", "scsi-cd", "id="+id, "bus=scsi"+strconv.Itoa(i)+".0", "drive="+id+headSuffix)
			continue
		}
		c.addNode(diskNode(disk, headID(next)))
		c.add("-device", deviceFields(disk, next)...)
		next++
	}
}

func deviceFields(disk machine.Disk, i int) []string {
	values := []string{"virtio-blk-pci", "id=" + diskID(i), "bus=" + portID(i), "drive=" + headID(i)}
	if disk.Serial != "" {
		values = append(values, field("serial", disk.Serial))
	}
	if disk.Boot {
		values = append(values, "bootindex=1")
	}
	return values
}

// renderKeys has QEMU read the keys from pipes: they stand neither in its
// arguments nor in a file, and are gone when they are read.
func (c *command) renderKeys(spec machine.Spec) {
	c.keys = keysOf(spec.Disks...)
	for i, key := range c.keys {
		fd := fdFirst + len(c.sockets) + i
		c.add("-object", "secret", "id="+secretID(key), "file=/proc/self/fd/"+strconv.Itoa(fd))
	}
}

// secretID is QEMU's name for a key, which has to begin with a letter.
func secretID(key machine.Key) string { return "key-" + key.ID }

// keysOf are the keys of disks, each once, in an order that is always the same.
func keysOf(disks ...machine.Disk) []machine.Key {
	var keys []machine.Key
	for _, disk := range disks {
		for _, path := range append([]string{disk.Path}, disk.Backing...) {
			key, ok := disk.Keys[path]
			if ok && !slices.ContainsFunc(keys, func(k machine.Key) bool { return k.ID == key.ID }) {
				keys = append(keys, key)
			}
		}
	}
	return keys
}
