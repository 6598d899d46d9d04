package build

import (
	"context"

	"github.com/kamivm/kami/pkg/disk"
	"github.com/kamivm/kami/pkg/recipe"
)

// RootUUID is the identifier of the root file system that the boot loaders of a
// disk look for, which is made of a name.
func RootUUID(name string) string { return id(recipe.Recipe{Name: name}, "root") }

// DiskSize is how large a disk is that has a root of so many bytes.
func DiskSize(root int64) int64 { return root - disk.Layout{}.RootSize() }

// Disk puts boot loaders for BIOS and UEFI and the root file system in the file
// root on one disk, and returns its path. The disk is as large as o.Recipe.Bytes
// says; the root has the identifier RootUUID of o.Recipe.Name, and what to start
// in its /boot/grub/grub.cfg. It returns a *StepError.
func Disk(ctx context.Context, o Options, root string) (string, error) { return makeDisk(ctx, o, root) }
