package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// machine is the processor, how many, the memory and the kernel.
func machine() string {
	model := field("/proc/cpuinfo", "model name")
	if model == "" {
		model = "unknown processor"
	}
	flags := " " + field("/proc/cpuinfo", "flags") + " "
	acceleration := "without KVM's processor flags"
	if strings.Contains(flags, " vmx ") || strings.Contains(flags, " svm ") {
		acceleration = "with KVM's processor flags"
	}
	kibibytes, _, _ := strings.Cut(field("/proc/meminfo", "MemTotal"), " ")
	memory, _ := strconv.ParseInt(kibibytes, 10, 64)
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%s, %d cores, %d GiB of memory, Linux %s, %s",
		model, runtime.NumCPU(), memory>>20, strings.TrimSpace(string(kernel)), acceleration)
}

// field is the first value of a name in one of /proc's files, "" for none.
func field(path, name string) string {
	text, _ := os.ReadFile(path)
	for line := range strings.SplitSeq(string(text), "\n") {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// versions are those of all that was compared; a tool that is not there is left out.
func (b *bench) versions(ctx context.Context) []string {
	var all []string
	for _, v := range []struct {
		before string
		args   []string
	}{
		{"", []string{b.bin, "version"}},
		{"", []string{"qemu-img", "--version"}},
		{"libvirt ", []string{"virsh", "--version"}},
		{"", []string{"openssl", "version"}},
		{"", []string{"restic", "version"}},
		{"", []string{"casync", "--version"}},
		{"", []string{"borg", "--version"}},
	} {
		out, err := command(ctx, v.args[0], v.args[1:]...)
		if err != nil {
			continue
		}
		first, _, _ := strings.Cut(out, "\n")
		all = append(all, v.before+strings.TrimSpace(first))
	}
	return append(all, runtime.Version())
}
