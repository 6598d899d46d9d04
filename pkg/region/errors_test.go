package region

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/snapshot"
)

// What the stores return becomes an error for a person: with a code, with what
// to do about it, and with its cause still there.
func TestStoreError(t *testing.T) {
	tests := []struct {
		cause error
		code  ami.Code
		hint  string
	}{
		{snapshot.ErrNoSpace, ami.CodeResourceLimitExceeded, "kami store gc"},
		{syscall.ENOSPC, ami.CodeResourceLimitExceeded, "kami store gc"},
		{syscall.EROFS, ami.CodeInternalError, "read-only"},
		{syscall.EACCES, ami.CodeInternalError, "--home"},
		{syscall.EPERM, ami.CodeInternalError, "--home"},
		{hypervisor.ErrNoFirmware, ami.CodeUnsupportedOperation, "ovmf"},
		{hypervisor.ErrUnreachable, ami.CodeInsufficientInstanceCapacity, "kami doctor"},
		{catalog.ErrNewer, ami.CodeInternalError, "newer kami"},
		{errors.New("qemu: cannot set up guest memory 'pc.ram': Cannot allocate memory"), ami.CodeInsufficientInstanceCapacity, "--memory"},
		{errors.New("anything"), ami.CodeInternalError, ""},
	}
	for _, tt := range tests {
		err := storeError(fmt.Errorf("doing it: %w", tt.cause), "It cannot be done to %s.", "vol-1")
		var e *ami.Error
		if !errors.As(err, &e) || e.Code != tt.code || !errors.Is(err, tt.cause) || tt.hint != "" && !strings.Contains(e.Hint, tt.hint) || (tt.hint == "") != (e.Hint == "") {
			t.Errorf("%v: got %#v, want the code %s and a hint of %q", tt.cause, e, tt.code, tt.hint)
		}
		if want := "It cannot be done to vol-1: doing it: " + tt.cause.Error(); !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want %q in it", err, want)
		}
	}
	if err := storeError(nil, "Nothing."); err != nil {
		t.Errorf("got %v for no error", err)
	}
	known := ami.Errorf(ami.CodeVolumeInUse, "It is in use.")
	if err := storeError(fmt.Errorf("detaching: %w", known), "No."); ami.ErrorCode(err) != ami.CodeVolumeInUse {
		t.Errorf("got %v, want what is an error for a person already as it is", err)
	}
}
