package recipe

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

func TestWhatAnArchitectureHas(t *testing.T) {
	r, err := Parse([]byte(`version: 1
name: all
suite: bookworm
size: 256MiB
kernel: /k
initrd: /i
cmdline: console=ttyS0,115200 quiet
packages:
  - busybox
  - linux-image-cloud-amd64 [amd64]
  - linux-image-686 [i386]
  - grub [amd64 i386]
`))
	if err != nil {
		t.Fatal(err)
	}
	for arch, want := range map[ami.Architecture][]string{
		ami.ArchX8664: {"busybox", "linux-image-cloud-amd64", "grub"},
		ami.ArchI386:  {"busybox", "linux-image-686", "grub"},
		ami.ArchARM64: {"busybox"},
	} {
		if diff := cmp.Diff(want, r.PackagesFor(arch)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", arch, diff)
		}
	}
	if got := r.CmdlineFor(ami.ArchARM64); got != "console=ttyAMA0,115200 quiet" {
		t.Errorf("got the command line %q of arm64", got)
	}
	if got := r.CmdlineFor(ami.ArchI386); got != r.Cmdline {
		t.Errorf("got the command line %q of i386", got)
	}
}

func TestBuilt(t *testing.T) {
	for _, tt := range []struct {
		r      Recipe
		arch   ami.Architecture
		secure bool
		want   string // part of the error; "" is none
	}{
		{Recipe{Architecture: ami.ArchX8664}, "", false, ""},
		{Recipe{Architecture: ami.ArchX8664}, ami.ArchARM64, true, ""},
		{Recipe{Architecture: ami.ArchX8664}, "riscv64", false, "riscv64"},
		{Recipe{Architecture: ami.ArchX8664, SecureBoot: true}, ami.ArchI386, false, "i386"},
		{Recipe{Architecture: ami.ArchX8664, From: "tiny"}, "", true, "tiny"},
	} {
		got, err := tt.r.Built(tt.arch, tt.secure)
		if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v for %q: %v, want %q", tt.r, tt.arch, err, tt.want)
		}
		if err == nil && (tt.arch != "" && got.Architecture != tt.arch || got.SecureBoot != tt.secure) {
			t.Errorf("got %+v", got)
		}
	}
}
