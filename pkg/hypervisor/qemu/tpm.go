package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/machine"
)

// renderTPM gives the guest a TPM 2.0. QEMU talks to swtpm, which is one.
func (c *command) renderTPM(spec machine.Spec) {
	if c.tpm = spec.TPMState; c.tpm == "" {
		return
	}
	device := "tpm-crb"
	if spec.Arch == ami.ArchARM64 {
		device = "tpm-tis-device"
	}
	c.add("-chardev", "socket", "id=tpm", "fd="+strconv.Itoa(fdFirst+len(c.sockets)+len(c.keys)))
	c.add("-tpmdev", "emulator", "id=tpm0", "chardev=tpm")
	c.add("-device", device, "tpmdev=tpm0")
}

// startTPM runs a TPM whose state is in a folder, and returns the end of its
// connection that QEMU is given. No name leads to it, and it ends when QEMU does,
// however that may end: then the connection is closed. What it says goes to said.
func startTPM(dir string, said *os.File) (*os.File, error) {
	program, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", hypervisor.ErrNoTPM, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a connection to the TPM: %w", err)
	}
	its, ours := os.NewFile(uintptr(ends[0]), "tpm"), os.NewFile(uintptr(ends[1]), "tpm")
	defer its.Close()
	// It runs in the folder, whose path may have a comma: swtpm knows no way to say one.
	cmd := exec.Command(program, "socket", "--tpm2", "--terminate", "--ctrl", "type=unixio,clientfd=3", "--tpmstate", "dir=.,mode=0600") //nolint:noctx // it outlives every context
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.Env = []*os.File{its}, said, said, dir, environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	closeOthersOnExec()
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("running swtpm: %w", err)
	}
	go func() { _ = cmd.Wait() }() // what it has come to QEMU tells
	return ours, nil
}
