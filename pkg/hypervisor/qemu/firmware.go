package qemu

import (
	"bytes"
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
// the names of the descriptors, that is UEFI with a variable store, plain or with
// Secure Boot. It returns ErrNoFirmware.
func findFirmware(arch ami.Architecture, secure bool) (firmware, error) {
	found, err := chooseFirmware(arch, secure, false)
	return firmware{
		found.Mapping.Executable.Filename, found.Mapping.Executable.Format,
		found.Mapping.Template.Filename, found.Mapping.Template.Format,
	}, err
}

// HasFirmware says whether the host has UEFI firmware for guests of an architecture.
func HasFirmware(arch ami.Architecture) bool {
	_, err := chooseFirmware(arch, false, false)
	return err == nil
}

// EnrolledVariables is the path of the variables with Microsoft's keys that come with
// the host's firmware for an architecture. It returns ErrNoFirmware.
func EnrolledVariables(arch ami.Architecture) (string, error) {
	found, err := chooseFirmware(arch, true, true)
	return found.Mapping.Template.Filename, err
}

func chooseFirmware(arch ami.Architecture, secure, enrolled bool) (descriptor, error) {
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
		if err != nil || json.Unmarshal(b, &d) != nil || !d.fits(arch, secure) || enrolled && !slices.Contains(d.Features, "enrolled-keys") {
			continue
		}
		return d, nil
	}
	kind := "UEFI"
	if secure {
		kind += " with Secure Boot"
	}
	return descriptor{}, fmt.Errorf("%w: no descriptor in %s is of %s for %s", hypervisor.ErrNoFirmware, firmwareDirs[1], kind, arch)
}

// fits says whether a firmware is UEFI for the machine of an architecture, with
// Secure Boot or without.
func (d descriptor) fits(arch ami.Architecture, secure bool) bool {
	m := d.Mapping
	if !slices.Contains(d.Interfaces, "uefi") || m.Device != "flash" || m.Mode != "" && m.Mode != "split" || m.Template.Filename == "" {
		return false
	}
	if slices.Contains(d.Features, "secure-boot") != secure || slices.Contains(d.Features, "requires-smm") && !secure {
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
	return durable.WriteFile(path, 0o600, func(store *os.File) error { return copySparse(store, template) })
}

// copySparse copies what is not zero, and leaves holes for the rest: the flash memory
// of an arm64 guest has 64 MiB, and hardly anything in it.
func copySparse(dst, src *os.File) error {
	buf, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		n, err := io.ReadFull(src, buf)
		if n > 0 && !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := dst.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return dst.Truncate(at)
		}
		if err != nil {
			return err
		}
	}
}
