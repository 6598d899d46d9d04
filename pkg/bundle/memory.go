package bundle

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// spare is which part of the memory that is free a filesystem may take on its way
// into a bundle: one in so many.
const spare = 4

// imageFile returns where a filesystem is to be made that will have so many bytes
// in it: in memory where there is plenty, since mke2fs would have the disk write
// all of it for nothing, else in a file. What is in memory goes with the process.
func (o *packing) imageFile(name string, content int64) string {
	if content > freeMemory()/spare {
		return o.tmp(name)
	}
	fd, err := unix.MemfdCreate("kami-"+name, unix.MFD_CLOEXEC)
	if err != nil {
		return o.tmp(name) // an old kernel
	}
	o.out.closers = append(o.out.closers, os.NewFile(uintptr(fd), name))
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
}

// freeMemory is how much memory there is for us, in bytes: of the host, and of the
// group that we are limited with. 0 is for what cannot be told.
func freeMemory() int64 {
	free := int64(0)
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(info)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemAvailable:" {
			n, _ := strconv.ParseInt(f[1], 10, 64) // 0 where it cannot be read
			free = n << 10
		}
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(groups)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[1] != "" && f[1] != "memory" {
			continue
		}
		// Inside of a container the own group is the root that is seen.
		for _, own := range []string{f[2], ""} {
			for _, of := range []struct{ root, limit, used string }{
				{"/sys/fs/cgroup", "memory.max", "memory.current"},
				{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"},
			} {
				limit, lerr := number(filepath.Join(of.root, own, of.limit))
				used, uerr := number(filepath.Join(of.root, own, of.used))
				if lerr == nil && uerr == nil {
					free = min(free, max(limit-used, 0))
				}
			}
		}
	}
	return free
}

func number(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}
