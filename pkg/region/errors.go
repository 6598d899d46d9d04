package region

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// storeError turns what a store or driver returned into an error for a person,
// keeping one that is so already.
func storeError(err error, format string, args ...any) error {
	var known *ami.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	e := &ami.Error{Code: ami.CodeInternalError, Message: fmt.Sprintf(format, args...), Err: err}
	switch {
	case errors.Is(err, qcow2.ErrNoKey), errors.Is(err, qcow2.ErrWrongKey):
		e.Code = ami.CodeInvalidKMSKeyState
		e.Hint = keyHint
	case errors.Is(err, snapshot.ErrNoSpace), errors.Is(err, syscall.ENOSPC):
		e.Code = ami.CodeResourceLimitExceeded
		e.Hint = "The disk is full: kami store gc frees what nothing uses; kami store du shows what costs what."
	case errors.Is(err, syscall.EROFS):
		e.Hint = "The file system is read-only: remount it, or choose another home with --home."
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		e.Hint = "This user may not write there: choose another home with --home."
	case errors.Is(err, hypervisor.ErrNoFirmware):
		e.Code = ami.CodeUnsupportedOperation
		e.Hint = "Install the UEFI firmware (apt-get install ovmf, for arm64 qemu-efi-aarch64), or on x86 launch with --boot-mode legacy-bios."
	case errors.Is(err, hypervisor.ErrNoTPM):
		e.Code = ami.CodeUnsupportedOperation
		e.Hint = "Install what emulates TPMs: apt-get install swtpm swtpm-tools."
	case errors.Is(err, hypervisor.ErrNoEmulator):
		e.Code = ami.CodeUnsupportedOperation
		e.Hint = "Install QEMU for it: apt-get install qemu-system-x86, for arm64 qemu-system-arm qemu-efi-aarch64."
	case strings.Contains(err.Error(), "cannot set up guest memory"): // QEMU's words
		e.Code = ami.CodeInsufficientInstanceCapacity
		e.Hint = "The host has not that much memory: give less with --memory, or a smaller --instance-type."
	case errors.Is(err, hypervisor.ErrUnreachable):
		e.Code = ami.CodeInsufficientInstanceCapacity
		e.Hint = "kami doctor says what is missing and how to mend it."
	case errors.Is(err, catalog.ErrNewer):
		e.Hint = "This home was written by a newer kami: use that one."
	}
	return e
}

// checkNewFile is about a file that a person has named, to be written: nothing has
// its name, and its folder is there.
func checkNewFile(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return ami.Errorf(ami.CodeInvalidParameterValue, "%s exists.", path).WithHint("Choose another place, or remove that one.")
	}
	dir := filepath.Dir(path)
	if info, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return ami.Errorf(ami.CodeInvalidParameterValue, "There is no folder %s to write %s to.", dir, filepath.Base(path)).
			WithHint("Make the folder, or choose another place.")
	}
	return nil
}

func badRegionName(name string) error {
	return ami.Errorf(ami.CodeInvalidParameterValue, "The region name %q is not valid.", name).
		WithHint("Use up to 63 lower-case letters, digits and hyphens, beginning with a letter or digit.")
}

// dryRun is EC2's answer to a request with DryRun that would have succeeded.
func dryRun(format string, args ...any) error {
	return ami.Errorf(ami.CodeDryRunOperation, "Request would have succeeded, but DryRun flag is set: would "+format+".", args...)
}

func notFoundImage(id ami.ImageID) error {
	return ami.Errorf(ami.CodeInvalidAMIIDNotFound, "The image id '[%s]' does not exist", id).
		WithHint("kami image list shows the images there are.")
}

func notFoundSnapshot(id ami.SnapshotID) error {
	return ami.Errorf(ami.CodeInvalidSnapshotNotFound, "The snapshot '%s' does not exist.", id).
		WithHint("kami snapshot list shows the snapshots there are.")
}

func notFoundVolume(id ami.VolumeID) error {
	return ami.Errorf(ami.CodeInvalidVolumeNotFound, "The volume '%s' does not exist.", id).
		WithHint("kami volume list shows the volumes there are.")
}

func notFoundInstance(id ami.InstanceID) error {
	return ami.Errorf(ami.CodeInvalidInstanceIDNotFound, "The instance ID '%s' does not exist", id).
		WithHint("kami instance list shows the instances there are.")
}

func notFoundKeyPair(name string) error {
	return ami.Errorf(ami.CodeInvalidKeyPairNotFound, "The key pair '%s' does not exist", name).
		WithHint("kami key list shows the key pairs there are; kami key create %s makes it.", name)
}
