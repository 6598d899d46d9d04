package build

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/recipe"
)

// architecture is what a recipe is built for.
func architecture(r recipe.Recipe) ami.Architecture {
	if r.Architecture == "" {
		return ami.ArchX8664
	}
	return r.Architecture
}

func bootsByBIOS(r recipe.Recipe) bool { return architecture(r) != ami.ArchARM64 && !r.SecureBoot }
func bootsByUEFI(r recipe.Recipe) bool { return architecture(r) != ami.ArchI386 }

// bootMode is what an image of the recipe's disk says of booting.
func bootMode(r recipe.Recipe) ami.BootMode {
	switch {
	case !bootsByBIOS(r):
		return ami.BootUEFI
	case !bootsByUEFI(r):
		return ami.BootLegacyBIOS
	case r.BootMode == "":
		return ami.BootUEFIPreferred
	}
	return r.BootMode
}

// takesSigned says whether the boot loader is the distribution's, as it signs it:
// for Secure Boot, and for arm64, for which a host of x86 has no parts to make one of.
func takesSigned(r recipe.Recipe) bool { return r.SecureBoot || architecture(r) == ami.ArchARM64 }

// signedFiles are the signed boot loaders in the packages' tree that a build takes,
// GRUB first. The hook writes them to descriptor 5, as an archive: mmdebstrap has no
// use for more descriptors of others than that.
func signedFiles(o Options) (out []string) {
	if o.Paravirtual || !takesSigned(o.Recipe) {
		return nil
	}
	folder, suffix := "x86_64-efi-signed", "x64"
	if architecture(o.Recipe) == ami.ArchARM64 {
		folder, suffix = "arm64-efi-signed", "aa64"
	}
	out = []string{"usr/lib/grub/" + folder + "/grub" + suffix + ".efi.signed"}
	if o.Recipe.SecureBoot {
		out = append(out, "usr/lib/shim/shim"+suffix+".efi.signed")
	}
	return out
}

func signedPath(o Options) string { return filepath.Join(o.Tmp, "loaders.tar") }

// unpackSigned takes the signed boot loaders out of their archive, and returns their
// paths in the order of signedFiles.
func unpackSigned(o Options) ([]string, error) {
	f, err := os.Open(signedPath(o))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	want := signedFiles(o)
	out := make([]string, len(want))
	for archive := tar.NewReader(f); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		i := slices.Index(want, h.Name)
		if i < 0 || h.Size > signedESPSize {
			return nil, fmt.Errorf("the boot loader %s has %d bytes", h.Name, h.Size)
		}
		b, err := io.ReadAll(archive)
		if err != nil {
			return nil, err
		}
		out[i] = filepath.Join(o.Tmp, path.Base(h.Name))
		if err := os.WriteFile(out[i], b, 0o600); err != nil {
			return nil, err
		}
	}
	if i := slices.Index(out, ""); i >= 0 {
		return nil, fmt.Errorf("the packages have no %s", want[i])
	}
	return out, nil
}

// packages are what a build installs: the recipe's, and what its boot loaders are in.
func packages(o Options) []string {
	arch := architecture(o.Recipe)
	out := o.Recipe.PackagesFor(arch)
	if n := len(signedFiles(o)); n > 0 {
		out = append(out, "grub-efi-"+recipe.Debian(arch)+"-signed")
		if n > 1 {
			out = append(out, "shim-signed")
		}
	}
	return out
}

// findRoot is what all boot loaders do first: they look for the root file
// system by its identifier, and go on with the configuration in it.
func findRoot(o Options) string {
	return fmt.Sprintf("search.fs_uuid %s root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n", id(o.Recipe, "root"))
}

// earlyConfig writes findRoot to a file.
func earlyConfig(o Options) (string, error) {
	early := filepath.Join(o.Tmp, "early.cfg")
	return early, os.WriteFile(early, []byte(findRoot(o)), 0o600)
}

func mkimage(ctx context.Context, o Options, format, out string, modules ...string) error {
	early, err := earlyConfig(o)
	if err != nil {
		return err
	}
	args := append([]string{"-O", format, "-p", "/boot/grub", "-c", early, "-o", out}, modules...)
	return run(ctx, o, "boot loader", "grub-mkimage", args...)
}

// biosLoader makes what lies in the BIOS boot partition.
func biosLoader(ctx context.Context, o Options) ([]byte, error) {
	out := filepath.Join(o.Tmp, "core.img")
	err := mkimage(ctx, o, "i386-pc", out, "biosdisk", "part_gpt", "ext2", "normal", "configfile", "linux",
		"search", "search_fs_uuid", "serial", "terminal", "echo", "gzio", "test", "ls")
	if err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}

// The sizes of the EFI system partition, in bytes: with a GRUB of kami's own, and
// with one that has all there is.
const (
	espSize       = 4 << 20
	signedESPSize = 16 << 20
)

// espImage makes the EFI system partition with the removable-media loader; an empty
// one for what does not boot by UEFI.
func espImage(ctx context.Context, o Options, size int64) (string, error) {
	img := filepath.Join(o.Tmp, "esp.fat")
	if err := writeSparse(img, size); err != nil {
		return "", err
	}
	volume := id(o.Recipe, "fat")[:8]
	steps := [][]string{{"mkfs.vfat", "--invariant", "-F", "12", "-n", "EFI", "-i", volume, img}}
	loaders, err := efiLoaders(ctx, o)
	if err != nil {
		return "", err
	}
	if len(loaders) > 0 {
		folders := []string{"mmd", "-i", img, "::/EFI", "::/EFI/BOOT"}
		if takesSigned(o.Recipe) {
			folders = append(folders, "::/EFI/debian")
		}
		steps = append(steps, folders)
	}
	for _, l := range loaders {
		steps = append(steps, []string{"mcopy", "-i", img, l[0], "::" + l[1]})
	}
	for _, s := range steps {
		if err := run(ctx, o, "EFI system partition", s[0], s[1:]...); err != nil {
			return "", err
		}
	}
	return img, nil
}

// efiLoaders are the files of the EFI system partition, each with its path there.
// Firmware starts BOOT….EFI; shim starts the GRUB beside it, and that, as Debian
// signs it, reads the configuration in its own folder.
func efiLoaders(ctx context.Context, o Options) ([][2]string, error) {
	if !bootsByUEFI(o.Recipe) {
		return nil, nil
	}
	suffix := "X64"
	if architecture(o.Recipe) == ami.ArchARM64 {
		suffix = "AA64"
	}
	boot := "/EFI/BOOT/BOOT" + suffix + ".EFI"
	if !takesSigned(o.Recipe) {
		efi := filepath.Join(o.Tmp, "BOOTX64.EFI")
		err := mkimage(ctx, o, "x86_64-efi", efi, "part_gpt", "ext2", "normal", "configfile", "linux",
			"search", "search_fs_uuid", "serial", "terminal", "echo", "gzio", "test", "ls", "efi_gop", "all_video")
		return [][2]string{{efi, boot}}, err
	}
	early, err := earlyConfig(o)
	if err != nil {
		return nil, err
	}
	loaders, err := unpackSigned(o)
	if err != nil {
		return nil, &StepError{Step: "boot loader", Err: err}
	}
	config := [2]string{early, "/EFI/debian/grub.cfg"}
	if !o.Recipe.SecureBoot {
		return [][2]string{{loaders[0], boot}, config}, nil
	}
	return [][2]string{{loaders[1], boot}, {loaders[0], "/EFI/BOOT/GRUB" + suffix + ".EFI"}, config}, nil
}
