package region

import (
	"errors"
	"regexp"
)

// What UEFI firmware says when it has come to its end: it has tried all there is to
// boot, and waits for a key. Before that it says of each thing why it was not started.
var (
	firmwareStuck   = regexp.MustCompile(`BdsDxe: No bootable option or device was found`)
	firmwareRefused = regexp.MustCompile(`BdsDxe: failed to (load|start) Boot[0-9A-F]{4} .*: (Access Denied|Security Violation)`)
)

var (
	errRefused  = errors.New("its firmware refuses to start its boot loader: Secure Boot is on, and no key in its UEFI variables has signed that")
	errNoLoader = errors.New("its firmware finds nothing on its disks that UEFI can start")
)

// firmwareEnd says why a guest will never get past its firmware, nil while it may.
func firmwareEnd(console []byte) error {
	switch {
	case !firmwareStuck.Match(console):
		return nil
	case firmwareRefused.Match(console):
		return errRefused
	}
	return errNoLoader
}
