package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// firmware is a UEFI firmware in two flash memories.
type firmware struct {
	code, codeFormat string // the same for all guests
	vars, varsFormat string // the template of each guest's own variable store
}

// firmwareDirs hold descriptors of firmware, as docs/interop/firmware.json of
// QEMU has them. A file in an earlier one hides one of its name in a later one.
var firmwareDirs = [...]string{"/etc/qemu/firmware", "/usr/share/qemu/firmware"}

// descriptor is as much of one as it takes to choose.
type descriptor struct {
	Interfaces []string `json:"interface-types"`
	Mapping    struct {
		Device     string
		Mode       string
		Executable flashFile
		Template   flashFile `json:"nvram-template"`
	}
	Targets []struct {
		Architecture string
		Machines     []string
	}
	Features []string
}

type flashFile struct{ Filename, Format string }

// findFirmware chooses the firmware for guests of an architecture: the first, by
// the names of the descriptors, that is plain UEFI with a variable store. It
// returns ErrNoFirmware.
func findFirmware(arch ami.Architecture) (firmware, error) {
	files := map[string]string{}
	for i := len(firmwareDirs) - 1; i >= 0; i-- {
		found, _ := filepath.Glob(filepath.Join(firmwareDirs[i], "*.json"))
		for _, file := range found {
			files[filepath.Base(file)] = file
		}
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		b, err := os.ReadFile(files[name])
		var d descriptor
		if err != nil || json.Unmarshal(b, &d) != nil || !d.fits(arch) {
			continue
		}
		return firmware{
			d.Mapping.Executable.Filename, d.Mapping.Executable.Format,
			d.Mapping.Template.Filename, d.Mapping.Template.Format,
		}, nil
	}
	return firmware{}, fmt.Errorf("%w: no descriptor in %s is of UEFI for %s", hypervisor.ErrNoFirmware, firmwareDirs[1], arch)
}

// fits says whether a firmware is plain UEFI for the machine of an architecture.
// Secure Boot would take a machine that guards its flash memory.
func (d descriptor) fits(arch ami.Architecture) bool {
	m := d.Mapping
	if !slices.Contains(d.Interfaces, "uefi") || m.Device != "flash" || m.Mode != "" && m.Mode != "split" || m.Template.Filename == "" {
		return false
	}
	if slices.Contains(d.Features, "requires-smm") || slices.Contains(d.Features, "secure-boot") {
		return false
	}
	want := map[ami.Architecture][2]string{
		ami.ArchX8664: {"x86_64", "pc-q35-7.2"},
		ami.ArchI386:  {"i386", "pc-q35-7.2"},
		ami.ArchARM64: {"aarch64", "virt-7.2"},
	}[arch]
	for _, t := range d.Targets {
		if t.Architecture != want[0] {
			continue
		}
		if slices.ContainsFunc(t.Machines, func(pattern string) bool { ok, _ := path.Match(pattern, want[1]); return ok }) {
			return true
		}
	}
	return false
}

// makeStore makes a guest's variable store at path, unless it has one.
func (f firmware) makeStore(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	template, err := os.Open(f.vars)
	if err != nil {
		return fmt.Errorf("%w: %w", hypervisor.ErrNoFirmware, err)
	}
	defer template.Close()
	return durable.WriteFile(path, 0o600, func(store *os.File) error {
		_, err := io.Copy(store, template)
		return err
	})
}
