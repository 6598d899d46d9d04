package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// extent is one line of qemu-img map.
type extent struct {
	Length  int64 `json:"length"`
	Depth   int   `json:"depth"`
	Present bool  `json:"present"`
	Data    bool  `json:"data"`
}

func decodeMap(text string) ([]extent, error) {
	var e []extent
	err := json.Unmarshal([]byte(text), &e)
	return e, err
}

// report is the page: what was measured, on what.
func report(ctx context.Context, b *bench, rows []row) string {
	var s strings.Builder
	s.WriteString("# Benchmarks\n\n")
	s.WriteString("Written by `make bench`: kami and the bare tools, turn by turn in one run, the\nmedian of " + fmt.Sprint(b.rounds) + " rounds. The ratios matter; the seconds are this machine's.\n\n")
	s.WriteString("| what | kami | by hand | ratio | aim |\n| --- | --- | --- | --- | --- |\n")
	for _, r := range rows {
		fmt.Fprintf(&s, "| %s | %s | %s | %s | %s |\n", r.what, dash(r.kami), dash(r.bare), dash(r.ratio), r.want)
	}
	s.WriteString("\nThe machine: " + machine() + ".\n")
	for _, v := range [][]string{{"qemu-img", "--version"}, {"virsh", "--version"}, {"openssl", "version"}} {
		out, err := command(ctx, v[0], v[1:]...)
		if err != nil {
			out = "not there"
		}
		first, _, _ := strings.Cut(out, "\n")
		if v[0] == "virsh" {
			first = "libvirt " + first
		}
		s.WriteString("- " + first + "\n")
	}
	fmt.Fprintf(&s, "- %s, measured %s", runtime.Version(), time.Now().UTC().Format(time.DateOnly))
	return s.String()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// machine is the processor, how many, the memory and the kernel.
func machine() string {
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.SplitSeq(string(b), "\n") {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	acceleration := "without KVM's processor flags"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil && (strings.Contains(string(b), " vmx") || strings.Contains(string(b), " svm")) {
		acceleration = "with KVM's processor flags"
	}
	return fmt.Sprintf("%s, %d cores, Linux %s, %s", model, runtime.NumCPU(), strings.TrimSpace(string(kernel)), acceleration)
}
