package libvirt

import (
	"context"
	"errors"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kamivm/kami/pkg/hypervisor"
)

func TestTranslate(t *testing.T) {
	tests := []struct {
		err  libvirt.Error
		want error
	}{
		{libvirt.Error{Code: libvirt.ERR_NO_DOMAIN, Message: "Domain not found"}, hypervisor.ErrNotFound},
		{libvirt.Error{Code: libvirt.ERR_DOM_EXIST, Message: "domain 'x' exists"}, hypervisor.ErrExists},
		{libvirt.Error{Code: libvirt.ERR_OPERATION_FAILED, Message: "domain 'x' already exists with uuid y"}, hypervisor.ErrExists},
		{libvirt.Error{Code: libvirt.ERR_OPERATION_INVALID, Message: "domain 'x' is already active"}, hypervisor.ErrExists},
		{libvirt.Error{Code: libvirt.ERR_OPERATION_INVALID, Message: "Requested operation is not valid: domain is not running"}, hypervisor.ErrNotRunning},
		{libvirt.Error{Code: libvirt.ERR_OPERATION_FAILED, Message: "operation failed: Unable to find any firmware to satisfy 'efi'"}, hypervisor.ErrNoFirmware},
		{libvirt.Error{Code: libvirt.ERR_OPERATION_FAILED, Message: "Unable to find 'efi' firmware that is compatible with the current configuration"}, hypervisor.ErrNoFirmware},
		{libvirt.Error{Code: libvirt.ERR_NO_CONNECT, Message: "no connection driver"}, hypervisor.ErrUnreachable},
		{libvirt.Error{Code: libvirt.ERR_SYSTEM_ERROR, Domain: libvirt.FROM_RPC, Message: "Failed to connect socket"}, hypervisor.ErrUnreachable},
		{libvirt.Error{Code: libvirt.ERR_AGENT_UNRESPONSIVE, Message: "Guest agent is not responding: QEMU guest agent is not connected"}, hypervisor.ErrNoAgent},
		{libvirt.Error{Code: libvirt.ERR_ARGUMENT_UNSUPPORTED, Message: "argument unsupported: QEMU guest agent is not configured"}, hypervisor.ErrNoAgent},
		{libvirt.Error{Code: libvirt.ERR_AGENT_UNRESPONSIVE, Message: "Guest agent is not responding: Guest agent not available for now"}, nil},
	}
	sentinels := []error{
		hypervisor.ErrNotFound, hypervisor.ErrExists, hypervisor.ErrNotRunning, hypervisor.ErrNoFirmware, hypervisor.ErrUnreachable,
		hypervisor.ErrNoAgent,
	}
	for _, tt := range tests {
		got := translate(tt.err)
		for _, s := range sentinels {
			if is, want := errors.Is(got, s), errors.Is(tt.want, s); is != want {
				t.Errorf("translate(%q): %v, is %q: %v, want %v", tt.err.Message, got, s, is, want)
			}
		}
	}
	other := errors.New("something else")
	if got := translate(other); !errors.Is(got, other) {
		t.Errorf("translate of another error: %v", got)
	}
	if got := translate(libvirt.Error{Code: libvirt.ERR_INTERNAL_ERROR, Message: "internal error: x"}); got == nil || got.Error() != "internal error: x" {
		t.Errorf("translate of an internal error: %v, want its message alone", got)
	}
}

// TestWithin holds that a wait which has a limit of ours ends by it, and is told
// from one that was given up.
func TestWithin(t *testing.T) {
	stuck := func() (struct{}, error) {
		<-t.Context().Done()
		return struct{}{}, nil
	}
	ctx, cancel := within(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := call(ctx, stuck); !errors.Is(err, hypervisor.ErrUnreachable) {
		t.Errorf("past the limit: %v, want ErrUnreachable", err)
	}
	parent, giveUp := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, giveUp)
	ctx, cancel = within(parent, time.Minute)
	defer cancel()
	if _, err := call(ctx, stuck); !errors.Is(err, context.Canceled) || errors.Is(err, hypervisor.ErrUnreachable) {
		t.Errorf("given up: %v, want Canceled", err)
	}
}
