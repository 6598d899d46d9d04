// Package machine says what a virtual machine is, in no hypervisor's words. A
// Spec is plain data: the launcher fills one from an image and its mapping, and
// each driver renders it in its own language.
package machine

import "github.com/kamivm/kami/pkg/ami"

// Accel is how guest instructions are run.
type Accel string

// The accelerators.
const (
	AccelKVM Accel = "kvm"
	AccelTCG Accel = "tcg"
)

// DiskFormat is the format of a disk's file.
type DiskFormat string

// The formats that a guest is given.
const (
	FormatQCOW2 DiskFormat = "qcow2"
	FormatRaw   DiskFormat = "raw"
)

// Spec is one virtual machine.
type Spec struct {
	ID        ami.InstanceID
	Name      string // the hypervisor's name for it; unique on the host
	UUID      string // SMBIOS type 1 uuid and serial: begins with ec2
	CPUs      int
	MemoryMiB int64
	Arch      ami.Architecture
	Accel     Accel
	CPU       string // a CPU model by QEMU's name; "" is the most that the host offers
	Firmware  Firmware
	Kernel    Kernel // of a paravirtual guest, in the place of firmware
	// TPMState is the folder that keeps the state of the guest's TPM 2.0 from one
	// start to the next, absolute; "" is a guest without one. A hypervisor that has
	// a place of its own for that takes its own.
	TPMState string
	Disks    []Disk
	Network  Network
	Console  Console
	Agent    bool // offer the guest agent's channel
	// AgentSocket is the path of the host's end of that channel; "" is the
	// hypervisor's choice.
	AgentSocket string
	Title       string
}

// Firmware says what the guest boots with.
type Firmware struct {
	UEFI bool
	// SecureBoot takes firmware that starts only what is signed by a key in NVRAM,
	// and that keeps the guest from changing those by itself.
	SecureBoot bool
	// NVRAM is the path of this instance's own UEFI variable store. A file
	// that does not exist is made from the firmware's template.
	NVRAM string
}

// Kernel is what a paravirtual guest starts with: no firmware and no boot loader
// runs before it, and the guest has paravirtual devices alone. The zero value is
// none.
type Kernel struct {
	Path    string // absolute; "" for a guest that boots firmware
	Initrd  string // absolute; "" is none
	Cmdline string
}

// Disk is one block device of the guest.
type Disk struct {
	Device   string // the mapping's device name, /dev/sda1
	Serial   string // shown to the guest: the volume id without its dash
	Path     string // absolute
	Format   DiskFormat
	Backing  []string // absolute paths of the layers underneath, nearest first; all qcow2
	ReadOnly bool
	Boot     bool // the disk that firmware boots from
	CDROM    bool // the NoCloud seed
	// Keys open the encrypted ones among Path and Backing, by path.
	Keys map[string]Key
}

// Key opens an encrypted file. It says nothing of itself when it is printed, and
// is never part of what is written.
type Key struct {
	// ID names the key to the hypervisor, for the time of one operation: a UUID
	// of its own.
	ID string
	// Passphrase is text without line breaks.
	Passphrase []byte `json:"-"`
}

// String hides the passphrase.
func (k Key) String() string { return "key " + k.ID }

// GoString hides the passphrase.
func (k Key) GoString() string { return k.String() }

// Network is the guest's one interface.
type Network struct {
	MAC string
	// Bridge or libvirt network name; "" is user networking.
	Name string
	// SSHPort is the port on 127.0.0.1 forwarded to the guest's port 22 with
	// user networking; 0 is none.
	SSHPort  int
	Hostname string
	// Metadata is a program and its arguments that answers one connection to
	// 169.254.169.254, port 80, which it is given as its standard input and
	// output. With user networking alone, and with drivers that can run a program
	// for a guest; nil is none.
	Metadata []string
}

// Console says where the guest's serial console goes.
type Console struct {
	// Log is the file that keeps everything the guest ever wrote.
	Log string
}
