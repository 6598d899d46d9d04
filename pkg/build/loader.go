package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// findRoot is what both boot loaders do first: they look for the root file
// system by its identifier, and go on with the configuration in it.
func findRoot(o Options) string {
	return fmt.Sprintf("search.fs_uuid %s root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n", id(o.Recipe, "root"))
}

func mkimage(ctx context.Context, o Options, format, out string, modules ...string) error {
	early := filepath.Join(o.Tmp, "early.cfg")
	if err := os.WriteFile(early, []byte(findRoot(o)), 0o600); err != nil {
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

// espSize is the size of the EFI system partition, in bytes.
const espSize = 4 << 20

// espImage makes the EFI system partition with the removable-media loader.
func espImage(ctx context.Context, o Options) (string, error) {
	efi, img := filepath.Join(o.Tmp, "BOOTX64.EFI"), filepath.Join(o.Tmp, "esp.fat")
	err := mkimage(ctx, o, "x86_64-efi", efi, "part_gpt", "ext2", "normal", "configfile", "linux",
		"search", "search_fs_uuid", "serial", "terminal", "echo", "gzio", "test", "ls", "efi_gop", "all_video")
	if err != nil {
		return "", err
	}
	if err := writeSparse(img, espSize); err != nil {
		return "", err
	}
	volume := id(o.Recipe, "fat")[:8]
	steps := [][]string{
		{"mkfs.vfat", "--invariant", "-F", "12", "-n", "EFI", "-i", volume, img},
		{"mmd", "-i", img, "::/EFI", "::/EFI/BOOT"},
		{"mcopy", "-i", img, efi, "::/EFI/BOOT/BOOTX64.EFI"},
	}
	for _, s := range steps {
		if err := run(ctx, o, "EFI system partition", s[0], s[1:]...); err != nil {
			return "", err
		}
	}
	return img, nil
}
