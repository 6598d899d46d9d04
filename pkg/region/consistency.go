package region

import (
	"slices"

	"github.com/kamivm/kami/pkg/ami"
)

// checkRequire refuses a consistency that is not one.
func checkRequire(want ami.Consistency) error {
	if want == "" || slices.Contains(ami.Consistencies(), want) {
		return nil
	}
	return ami.Errorf(ami.CodeInvalidParameterValue, "%q is not a consistency that can be required.", want).
		WithHint("Require one of %v.", ami.Consistencies())
}

// checkReached fails a snapshot that promises less than was required.
func checkReached(got, want ami.Consistency, id ami.InstanceID) error {
	if got.AtLeast(want) {
		return nil
	}
	e := ami.Errorf(ami.CodeIncorrectInstanceState, "The disks of %s can only be taken %s now, and %s is required.", id, got, want)
	if want == ami.ConsistencyFrozen {
		return e.WithHint("The guest's agent (qemu-guest-agent) does not answer: install and start it in the guest, or leave out --no-reboot.")
	}
	return e.WithHint("Stop the instance first, or leave out --no-reboot.")
}
