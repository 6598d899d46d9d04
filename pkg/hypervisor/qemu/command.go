package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/machine"
)

// command is how a guest's QEMU is run. It is made by pure functions, one device a
// step, and the same spec gives the same command.
type command struct {
	program string
	flags   [][]string    // each with its value, if it has one
	sockets []string      // files of the run folder that QEMU listens on, by its open files from fdFirst on
	keys    []machine.Key // that it reads, by its open files after those
	tpm     string        // folder of the state of its TPM, to which the open file after those leads
}

// The open files that QEMU is given.
const (
	fdAlive = 3 // the lock of the guest's life, of which QEMU knows nothing
	fdFirst = 4
)

// add adds a flag whose value is a list.
func (c *command) add(flag string, values ...string) {
	if len(values) == 0 {
		c.flags = append(c.flags, []string{flag})
		return
	}
	c.flags = append(c.flags, []string{flag, strings.Join(values, ",")})
}

// field is name=value in a list of QEMU's, in which a comma is doubled.
func field(name, value string) string { return name + "=" + strings.ReplaceAll(value, ",", ",,") }

// argv is the command as a process has it.
func (c *command) argv() []string {
	argv := []string{c.program}
	for _, flag := range c.flags {
		argv = append(argv, flag...)
	}
	return argv
}

// String is the command for people and shells, one flag a line.
func (c *command) String() string {
	lines := []string{shellQuote(c.program)}
	for _, flag := range c.flags {
		quoted := make([]string, len(flag))
		for i, word := range flag {
			quoted[i] = shellQuote(word)
		}
		lines = append(lines, strings.Join(quoted, " "))
	}
	return strings.Join(lines, " \\\n\t") + "\n"
}

// shellQuote is a word as a shell reads it, and GLib, which does as one.
func shellQuote(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./=:,@+%", r)
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !plain(r) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// newCommand renders a spec.
func newCommand(spec machine.Spec, h host, r runFolder) (*command, error) {
	if spec.Network.Name != "" {
		return nil, fmt.Errorf("the network %s cannot be used: this driver has user networking alone", spec.Network.Name)
	}
	c := &command{program: h.program}
	c.add("-name", field("guest", spec.Name), "debug-threads=on")
	c.renderConfinement(spec)
	c.renderMachine(spec, h)
	c.renderBoot(spec, h)
	c.renderIdentity(spec)
	c.renderPorts(spec)
	c.renderDisks(spec)
	c.renderNetwork(spec.Network)
	c.renderChannels(spec)
	c.renderKeys(spec)
	c.renderTPM(spec)
	c.add("-object", "rng-builtin,id=rng0")
	c.add("-device", "virtio-rng-pci,rng=rng0")
	c.add("-pidfile", r.path(pidFile))
	return c, nil
}

// renderConfinement leaves out all that QEMU would add by itself, and forbids the
// process what it has no need of. For a metadata service QEMU starts a program, in
// a session of its own, which it counts among the privileges: these it may have
// then. It still gains none by programs, as no process does that has a filter.
func (c *command) renderConfinement(spec machine.Spec) {
	c.add("-nodefaults")
	c.add("-no-user-config")
	c.add("-display", "none")
	programs := "deny"
	if len(spec.Network.Metadata) > 0 {
		programs = "allow"
	}
	c.add("-sandbox", "on", "obsolete=deny", "elevateprivileges="+programs, "spawn="+programs, "resourcecontrol=deny")
}

func (c *command) renderMachine(spec machine.Spec, h host) {
	kind := []string{"q35", "usb=off", "vmport=off"}
	switch {
	case spec.Arch == ami.ArchARM64:
		kind = []string{"virt", "gic-version=max"}
	case spec.Kernel.Path != "":
		kind = []string{"microvm", "acpi=on", "pcie=on", "rtc=on", "isa-serial=on"}
	}
	if h.firmware.code != "" {
		kind = append(kind, "pflash0=firmware", "pflash1=variables")
	}
	// On a PC the flash memory with the variables can only be written to in system
	// management mode then, which the firmware alone has.
	guarded := spec.Firmware.SecureBoot && spec.Arch != ami.ArchARM64
	if guarded {
		kind = append(kind, "smm=on")
		c.add("-global", "driver=cfi.pflash01", "property=secure", "value=on")
	}
	c.add("-machine", append(kind, "dump-guest-core=off")...)
	c.add("-accel", string(spec.Accel))
	cpu := spec.CPU
	switch {
	case cpu != "":
	case spec.Accel == machine.AccelKVM:
		cpu = "host"
	default:
		cpu = "max"
	}
	c.add("-cpu", cpu)
	c.add("-smp", strconv.Itoa(spec.CPUs))
	c.add("-m", strconv.FormatInt(spec.MemoryMiB, 10)+"M")
	c.add("-rtc", "base=utc")
}

// renderBoot says what the guest starts with.
func (c *command) renderBoot(spec machine.Spec, h host) {
	if k := spec.Kernel; k.Path != "" {
		c.add("-kernel", k.Path)
		if k.Initrd != "" {
			c.add("-initrd", k.Initrd)
		}
		if cmdline := kernelCmdline(spec, h); cmdline != "" {
			c.add("-append", cmdline)
		}
		return
	}
	c.add("-boot", "strict=on")
	if h.firmware.code != "" {
		c.addNode(node{Driver: h.firmware.codeFormat, Name: "firmware", ReadOnly: true, File: &node{Driver: "file", Filename: h.firmware.code, ReadOnly: true}})
		c.addNode(node{Driver: h.firmware.varsFormat, Name: "variables", File: &node{Driver: "file", Filename: spec.Firmware.NVRAM}})
	}
}

// kernelCmdline is the kernel's command line, after what it has to be told of the
// microvm machine: that disks are plugged into ports without the firmware's leave,
// and how fast the only clock goes (see tsc.go). What comes later goes first.
func kernelCmdline(spec machine.Spec, h host) string {
	var words []string
	if spec.Arch != ami.ArchARM64 {
		words = append(words, "pcie_ports=native")
	}
	if h.tscKHz > 0 {
		words = append(words, "tsc_early_khz="+strconv.FormatInt(h.tscKHz, 10), "tsc=reliable")
	}
	return strings.TrimSpace(strings.Join(append(words, spec.Kernel.Cmdline), " "))
}

// renderIdentity tells the guest who it is: cloud-init takes a guest for one of
// EC2 when the uuid and the serial number are equal and begin with ec2.
func (c *command) renderIdentity(spec machine.Spec) {
	c.add("-uuid", spec.UUID)
	c.add("-smbios", "type=1", "manufacturer=kami", "product=instance", "serial="+spec.UUID, "uuid="+spec.UUID)
}

// renderNetwork gives the guest its interface on QEMU's user networking. Where it
// has a metadata service its network is the link-local one, for only what is in
// its network does QEMU answer for.
func (c *command) renderNetwork(n machine.Network) {
	user := []string{"user", "id=net0"}
	if n.Hostname != "" {
		user = append(user, field("hostname", n.Hostname))
	}
	if len(n.Metadata) > 0 {
		words := make([]string, len(n.Metadata))
		for i, word := range n.Metadata {
			words[i] = shellQuote(word)
		}
		user = append(user, metadataNetwork[:]...)
		user = append(user, field("guestfwd", metadataForward+strings.Join(words, " ")))
	}
	if n.SSHPort != 0 {
		user = append(user, "hostfwd=tcp:127.0.0.1:"+strconv.Itoa(n.SSHPort)+"-:22")
	}
	c.add("-netdev", user...)
	c.add("-device", "virtio-net-pci", "netdev=net0", field("mac", n.MAC), "bus=pcie.0", "addr=0x10", "romfile=")
}

// renderChannels connects the guest's console, its agent and QEMU's monitors with
// sockets. The console's log has all that the guest writes, whoever listens.
func (c *command) renderChannels(spec machine.Spec) {
	c.addSocket("monitor", monitorSock)
	c.add("-mon", "chardev=monitor", "mode=control")
	c.addSocket("status", statusSock)
	c.add("-mon", "chardev=status", "mode=control")
	c.addSocket("console", consoleSock, field("logfile", spec.Console.Log), "logappend=on")
	if spec.Kernel.VirtioConsole() || spec.Agent {
		c.add("-device", "virtio-serial-pci,id=serial0")
	}
	if spec.Kernel.VirtioConsole() {
		c.add("-device", "virtconsole,bus=serial0.0,chardev=console")
	} else {
		c.add("-serial", "chardev:console")
	}
	if spec.Agent {
		c.addSocket("agent", agentSock)
		c.add("-device", "virtserialport,bus=serial0.0,chardev=agent,name=org.qemu.guest_agent.0")
	}
}

// addSocket adds a character device that listens on a socket of the run folder.
func (c *command) addSocket(id, name string, more ...string) {
	fd := strconv.Itoa(fdFirst + len(c.sockets))
	c.sockets = append(c.sockets, name)
	c.add("-chardev", append([]string{"socket", "id=" + id, "fd=" + fd, "server=on", "wait=off"}, more...)...)
}
