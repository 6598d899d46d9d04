package region

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

func uidText() string { return strconv.Itoa(os.Getuid()) }

// ownedBySelf refuses a folder in a shared place that somebody else made.
func ownedBySelf(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(st.Uid) != os.Getuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: not a private folder of this user", dir)
	}
	return nil
}

// hasUEFI says whether the host offers UEFI firmware for x86 guests, by the
// descriptors that QEMU's firmware packages install.
func hasUEFI() bool {
	for _, dir := range []string{"/usr/share/qemu/firmware", "/etc/qemu/firmware"} {
		if found, _ := filepath.Glob(filepath.Join(dir, "*edk2-x86_64*.json")); len(found) > 0 {
			return true
		}
		if found, _ := filepath.Glob(filepath.Join(dir, "*ovmf*.json")); len(found) > 0 {
			return true
		}
	}
	return false
}

// allocated is what a file takes on disk, in bytes; 0 for one that is not there.
func allocated(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
