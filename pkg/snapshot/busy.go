package snapshot

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/ami"
)

// QEMU holds locks on bytes 100 to 163 and 200 to 263 of each image that it has
// open, one for each permission that it takes and does not share (QEMU:
// block/file-posix.c, RAW_LOCK_PERM_BASE).
const (
	lockBase   = 100
	lockLength = 200
)

// HeadBusy says whether a process on this host has the head of a volume open, as
// QEMU does with its disks, whichever hypervisor started it.
func (s *Store) HeadBusy(id ami.VolumeID) (bool, error) {
	f, err := os.Open(s.HeadPath(id))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: lockBase, Len: lockLength}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, fmt.Errorf("asking who has %s open: %w", id, err)
	}
	return lock.Type != unix.F_UNLCK, nil
}
