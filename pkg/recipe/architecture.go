package recipe

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
)

// Debian is Debian's name for an architecture, "" for one that is not built for.
func Debian(arch ami.Architecture) string {
	return map[ami.Architecture]string{ami.ArchX8664: "amd64", ami.ArchARM64: "arm64", ami.ArchI386: "i386"}[arch]
}

// Built is the recipe as somebody wants it built: for another architecture, "" for
// its own, and with secure for Secure Boot whatever it says.
func (r Recipe) Built(arch ami.Architecture, secure bool) (Recipe, error) {
	if arch != "" {
		r.Architecture = arch
	}
	r.SecureBoot = r.SecureBoot || secure
	switch {
	case Debian(r.Architecture) == "":
		return r, fmt.Errorf("the architecture %q is not one of x86_64, arm64 and i386", r.Architecture)
	case r.SecureBoot && r.From != "":
		return r, fmt.Errorf("the recipe stands on %s, whose boot loaders it keeps", r.From)
	case r.SecureBoot && r.Architecture == ami.ArchI386:
		return r, errors.New("i386 has no UEFI, and so no Secure Boot")
	}
	return r, nil
}

// PackagesFor are the packages of a recipe that an architecture has, by their names
// alone and in their order.
func (r Recipe) PackagesFor(arch ami.Architecture) []string {
	var out []string
	for _, p := range r.Packages {
		name, only, limited := strings.Cut(strings.TrimSuffix(p, "]"), " [")
		if !limited || slices.Contains(strings.Fields(only), Debian(arch)) {
			out = append(out, name)
		}
	}
	return out
}

// CmdlineFor is the kernel's command line for an architecture: the serial port that
// is ttyS0 on x86 is ttyAMA0 on arm64.
func (r Recipe) CmdlineFor(arch ami.Architecture) string {
	if arch == ami.ArchARM64 {
		return strings.ReplaceAll(r.Cmdline, "console=ttyS0", "console=ttyAMA0")
	}
	return r.Cmdline
}
