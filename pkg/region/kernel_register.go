package region

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/disk"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// RegisterKernelInput asks for a kernel or ramdisk image made of a file.
type RegisterKernelInput struct {
	File         string
	Type         string // kernel or ramdisk; "" is kernel
	Name         string
	Description  string
	Architecture ami.Architecture // "" is the kernel's, x86_64 for a ramdisk
	Tags         []ami.Tag
	DryRun       bool
}

// The largest files that are registered, in bytes.
const (
	maxKernel  = 256 << 20
	maxRamdisk = 1 << 30
)

// RegisterKernel makes a kernel or a ramdisk image of a file.
func (r *Region) RegisterKernel(ctx context.Context, in RegisterKernelInput) (ami.Image, error) {
	if err := r.checkNewName(ctx, in.Name, in.Description, in.Tags); err != nil {
		return ami.Image{}, err
	}
	if in.Name == pvGrub().Name {
		return ami.Image{}, duplicateName(in.Name, ami.ImageID(ami.PVGrub))
	}
	image := r.newImage(in.Name, in.Description, in.Tags)
	image.VirtualizationType, image.State = ami.VirtualizationParavirtual, ami.ImageAvailable
	image.RootDeviceType, image.RootDeviceName, image.BlockDeviceMappings = "", "", []ami.BlockDeviceMapping{}
	switch in.Type {
	case "", ami.ImageTypeKernel:
		image.ImageID, image.ImageType = ami.ImageID(ami.NewKernelID()), ami.ImageTypeKernel
	case ami.ImageTypeRamdisk:
		image.ImageID, image.ImageType = ami.ImageID(ami.NewRamdiskID()), ami.ImageTypeRamdisk
	default:
		return ami.Image{}, ami.Errorf(ami.CodeInvalidParameterValue, "The type %q is not one of kernel and ramdisk.", in.Type)
	}
	src, err := os.Open(in.File)
	if err != nil {
		return ami.Image{}, ami.Errorf(ami.CodeInvalidParameterValue, "The %s cannot be read: %w", image.ImageType, err)
	}
	defer src.Close()
	if image.Architecture, err = inspectKernel(src, image.ImageType, in.Architecture); err != nil {
		return ami.Image{}, err
	}
	if in.DryRun {
		return ami.Image{}, dryRun("register the %s %q for %s", image.ImageType, in.Name, image.Architecture)
	}
	scratch, err := durable.NewScratch(r.path("tmp"), "kernel")
	if err != nil {
		return ami.Image{}, storeError(err, "No work folder can be made.")
	}
	defer scratch.Close()
	if image.Data, image.DataBytes, err = takeFile(ctx, src, scratch.Path("file")); err != nil {
		return ami.Image{}, storeError(err, "The %s cannot be kept.", image.ImageType)
	}
	lock, err := r.lockLayers(ctx)
	if err != nil {
		return ami.Image{}, storeError(err, "The objects cannot be locked.")
	}
	defer lock.Unlock()
	if err := durable.Rename(scratch.Path("file"), r.objectPath(image.Data)); err != nil {
		return ami.Image{}, storeError(err, "The %s cannot be kept.", image.ImageType)
	}
	durable.Step("kernel.kept")
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error { return tx.PutImage(image) })
	if errors.Is(err, catalog.ErrExists) {
		return ami.Image{}, duplicateName(in.Name, "")
	}
	return image, storeError(err, "The %s cannot be recorded.", image.ImageType)
}

// inspectKernel finds for which architecture a kernel or ramdisk is; said is what
// somebody says that it is for, "" for nothing.
func inspectKernel(src *os.File, kind string, said ami.Architecture) (ami.Architecture, error) {
	bad := func(format string, args ...any) (ami.Architecture, error) {
		return "", ami.Errorf(ami.CodeInvalidParameterValue, format, args...)
	}
	info, err := src.Stat()
	switch {
	case err != nil:
		return bad("%s cannot be read: %w", src.Name(), err)
	case !info.Mode().IsRegular():
		return bad("%s is no file.", src.Name())
	case kind == ami.ImageTypeKernel && info.Size() > maxKernel, info.Size() > maxRamdisk:
		return bad("%s has %d bytes, too many for a %s.", src.Name(), info.Size(), kind)
	}
	if err := checkBoot("", said); err != nil {
		return "", err
	}
	ramdisk := disk.InspectRamdisk(src, info.Size())
	if kind == ami.ImageTypeRamdisk {
		if ramdisk != nil {
			return bad("%s is no initial RAM disk: %w", src.Name(), ramdisk)
		}
		if said == "" {
			said = ami.ArchX8664
		}
		return said, nil
	}
	k, err := disk.InspectKernel(src, info.Size())
	if err != nil {
		e := ami.Errorf(ami.CodeInvalidParameterValue, "%s cannot be a kernel: %w", src.Name(), err)
		if ramdisk == nil {
			e = e.WithHint("If it is an initial RAM disk, say --type ramdisk.")
		}
		return "", e
	}
	if said != "" && said != k.Architecture {
		return bad("%s is for %s, not for %s.", src.Name(), k.Architecture, said)
	}
	return k.Architecture, nil
}

// takeFile copies a file that others may write to meanwhile, and names what was
// copied.
func takeFile(ctx context.Context, src *os.File, path string) (d digest.Digest, size int64, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(io.MultiWriter(f, h), io.LimitReader(src, maxRamdisk))
	if err = errors.Join(err, ctx.Err()); err != nil {
		return "", 0, err
	}
	return digest.FromSum([sha256.Size]byte(h.Sum(nil))), size, errors.Join(f.Chmod(0o444), f.Close())
}
