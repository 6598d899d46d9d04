package region

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// PVBoot is what a paravirtual guest starts with.
type PVBoot struct {
	KernelID  ami.KernelID  // "" is pv-grub, or the image's
	RamdiskID ami.RamdiskID // "" is none, or the image's
	// KernelCmdline is the whole command line; behind that of the guest's own
	// configuration with pv-grub. "" is DefaultCmdline, or the image's.
	KernelCmdline string
}

// DefaultCmdline is the command line of a kernel that is given none.
const DefaultCmdline = "root=/dev/vda ro console=ttyS0"

// maxCmdline is what Linux takes on x86, in bytes with the zero at the end.
const maxCmdline = 2048

// pvGrub is the kernel that is no file: what is started is looked up in the
// guest's root at each start.
func pvGrub() ami.Image {
	return ami.Image{
		ImageID: ami.ImageID(ami.PVGrub), Name: "pv-grub-x86_64", OwnerID: ami.Builtin, OwnerAlias: ami.BuiltinAlias,
		Description: "Starts the kernel that the guest's own root names: menu.lst, grub.cfg, BLS entries",
		State:       ami.ImageAvailable, CreationDate: time.Unix(1700000000, 0).UTC(), Architecture: ami.ArchX8664,
		VirtualizationType: ami.VirtualizationParavirtual, Hypervisor: "kvm", ImageType: ami.ImageTypeKernel,
		ImageLocation: ami.BuiltinAlias + "/pv-grub-x86_64", Public: true, BlockDeviceMappings: []ami.BlockDeviceMapping{},
	}
}

// DescribeKernels returns the kernels and ramdisks that the caller may use, oldest
// first.
func (r *Region) DescribeKernels(ctx context.Context, in DescribeInput) ([]ami.Image, error) {
	in.Filters = append(slices.Clone(in.Filters), Filter{Name: "image-type", Values: []string{ami.ImageTypeKernel, ami.ImageTypeRamdisk}})
	return r.DescribeImages(ctx, in)
}

// ResolveKernel finds an available kernel or ramdisk by id or name; kind is its
// image type, "" for either.
func (r *Region) ResolveKernel(ctx context.Context, ref, kind string) (ami.Image, error) {
	in := DescribeInput{}
	if isKernelID(ref) {
		in.IDs = []string{ref}
	} else {
		in.Filters = []Filter{{Name: "name", Values: []string{ami.EscapePattern(ref)}}, {Name: "state", Values: []string{string(ami.ImageAvailable)}}}
	}
	found, err := r.DescribeKernels(ctx, in)
	if err != nil {
		return ami.Image{}, err
	}
	found = slices.DeleteFunc(found, func(i ami.Image) bool { return kind != "" && i.ImageType != kind })
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1: // one's own and the one that is everybody's
		return ami.Image{}, ami.Errorf(ami.CodeInvalidParameterValue, "%d kernels have the name %q.", len(found), ref).WithHint("Give the id of one.")
	case kind == "":
		kind = "kernel or ramdisk"
	}
	return ami.Image{}, ami.Errorf(ami.CodeInvalidAMIIDNotFound, "There is no %s %q.", kind, ref).
		WithHint("kami kernel list shows the kernels and ramdisks there are.")
}

// isKernelID says whether an id is one of a kernel or a ramdisk, sound or not.
func isKernelID(id string) bool {
	return strings.HasPrefix(id, "aki-") || strings.HasPrefix(id, "ari-")
}

// parseAnyImageID checks the form of an image's, a kernel's or a ramdisk's id.
func parseAnyImageID(id string) (err error) {
	switch {
	case strings.HasPrefix(id, "aki-"):
		_, err = ami.ParseKernelID(id)
	case strings.HasPrefix(id, "ari-"):
		_, err = ami.ParseRamdiskID(id)
	default:
		_, err = ami.ParseImageID(id)
	}
	return err
}

// bootOf settles what guests of one kind of virtualization start with; "" is hvm.
func (r *Region) bootOf(ctx context.Context, virtualization string, arch ami.Architecture, boot PVBoot) (string, PVBoot, error) {
	fail := func(err error) (string, PVBoot, error) { return "", PVBoot{}, err }
	switch virtualization {
	case "", ami.VirtualizationHVM:
		if boot != (PVBoot{}) {
			return fail(ami.Errorf(ami.CodeInvalidParameterCombination, "A kernel, a ramdisk and a kernel command line go with the virtualization type paravirtual, not with hvm.").
				WithHint("An hvm guest starts what its own boot loader says."))
		}
		return ami.VirtualizationHVM, boot, nil
	case ami.VirtualizationParavirtual:
	default:
		return fail(ami.Errorf(ami.CodeInvalidParameterValue, "The virtualization type %q is not one of hvm and paravirtual.", virtualization))
	}
	if boot.KernelID == "" {
		boot.KernelID = ami.PVGrub
	}
	if boot.KernelID == ami.PVGrub && boot.RamdiskID != "" {
		return fail(ami.Errorf(ami.CodeInvalidParameterCombination, "No ramdisk goes with pv-grub, which starts the one that the guest's own configuration names."))
	}
	if len(boot.KernelCmdline) >= maxCmdline || strings.ContainsFunc(boot.KernelCmdline, unicode.IsControl) {
		return fail(ami.Errorf(ami.CodeInvalidParameterValue, "The kernel command line has line breaks or more than %d bytes.", maxCmdline-1))
	}
	if _, err := ami.ParseKernelID(string(boot.KernelID)); err != nil {
		return fail(err)
	}
	if err := r.checkKernel(ctx, string(boot.KernelID), ami.ImageTypeKernel, arch); err != nil {
		return fail(err)
	}
	if boot.RamdiskID != "" {
		if _, err := ami.ParseRamdiskID(string(boot.RamdiskID)); err != nil {
			return fail(err)
		}
		if err := r.checkKernel(ctx, string(boot.RamdiskID), ami.ImageTypeRamdisk, arch); err != nil {
			return fail(err)
		}
	}
	return virtualization, boot, nil
}

func noBootMode() error {
	return ami.Errorf(ami.CodeInvalidParameterCombination, "A boot mode goes with the virtualization type hvm, not with paravirtual.").
		WithHint("A paravirtual guest has no firmware.")
}

// checkKernel finds whether a kernel or ramdisk is there, and is for a guest's
// architecture.
func (r *Region) checkKernel(ctx context.Context, id, kind string, arch ami.Architecture) error {
	image, err := r.ResolveKernel(ctx, id, kind)
	if err != nil {
		return err
	}
	if arch == "" {
		arch = ami.ArchX8664
	}
	// pv-grub reads disks, on which it finds kernels of either width.
	if id == string(ami.PVGrub) && arch == ami.ArchI386 {
		arch = ami.ArchX8664
	}
	if image.Architecture != arch {
		return ami.Errorf(ami.CodeInvalidParameterValue, "The %s %s is for %s, and the guest is of %s.", kind, id, image.Architecture, arch)
	}
	return nil
}

// planBoot settles what a launch starts with: a kernel, or firmware in a boot mode.
func (r *Region) planBoot(ctx context.Context, image ami.Image, in RunInstancesInput) (pv PVBoot, asked, boot ami.BootMode, err error) {
	if image.VirtualizationType == ami.VirtualizationParavirtual {
		if in.BootMode != "" {
			return pv, "", "", noBootMode()
		}
		_, pv, err = r.bootOf(ctx, image.VirtualizationType, image.Architecture, in.PVBoot.over(image))
		return pv, "", "", err
	}
	if _, _, err := r.bootOf(ctx, image.VirtualizationType, image.Architecture, in.PVBoot); err != nil {
		return pv, "", "", err
	}
	if asked = image.BootMode; in.BootMode != "" {
		asked = in.BootMode
	}
	if err := checkBoot(in.BootMode, image.Architecture); err != nil {
		return pv, "", "", err
	}
	if boot, err = bootMode(asked, image.Architecture); err == nil {
		err = checkBooting(image, boot)
	}
	return pv, asked, boot, err
}

// over lays what a launch says over what its image does. Another kernel brings its
// own ramdisk; the command line stays, unless it means another thing with it.
func (boot PVBoot) over(image ami.Image) PVBoot {
	out := PVBoot{image.KernelID, image.RamdiskID, image.KernelCmdline}
	if boot.KernelID != "" && boot.KernelID != out.KernelID {
		if boot.KernelID == ami.PVGrub || out.KernelID == ami.PVGrub {
			out.KernelCmdline = ""
		}
		out.KernelID, out.RamdiskID = boot.KernelID, ""
	}
	if boot.RamdiskID != "" {
		out.RamdiskID = boot.RamdiskID
	}
	if boot.KernelCmdline != "" {
		out.KernelCmdline = boot.KernelCmdline
	}
	return out
}

// checkBooted finds whether the kernel and ramdisk that a record is about to name
// are there still.
func checkBooted(tx *catalog.Tx, kernel ami.KernelID, ramdisk ami.RamdiskID) error {
	for _, id := range []ami.ImageID{ami.ImageID(kernel), ami.ImageID(ramdisk)} {
		if id == "" || id == ami.ImageID(ami.PVGrub) {
			continue
		}
		if _, err := tx.Image(id); err != nil {
			return notFoundOr(err, notFoundImage(id))
		}
	}
	return nil
}

// DeregisterKernel retires a kernel or a ramdisk that no image and no instance
// starts with.
func (r *Region) DeregisterKernel(ctx context.Context, id ami.ImageID, dry bool) error {
	kernel, err := r.ResolveKernel(ctx, string(id), "")
	if err != nil {
		return err
	}
	if kernel.OwnerID == ami.Builtin {
		return ami.Errorf(ami.CodeOperationNotPermitted, "%s (%s) is part of every region.", id, kernel.Name)
	}
	if kernel.OwnerID != r.account {
		return notFoundImage(id)
	}
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if kernel, err = tx.Image(id); err != nil {
			return notFoundOr(err, notFoundImage(id))
		}
		if err := r.checkUnprotected(tx, kernel); err != nil {
			return err
		}
		users, err := kernelUsers(tx, id)
		if err = r.legible(err); err != nil {
			return err
		}
		if len(users) > 0 {
			return ami.Errorf(ami.CodeDependencyViolation, "%s (%s) is in use by %s.", id, kernel.Name, strings.Join(users, ", ")).
				WithHint("Deregister the images and terminate the instances that start with it first.")
		}
		if dry {
			return dryRun("deregister %s (%s)", id, kernel.Name)
		}
		return tx.DeleteImage(id)
	})
	if err != nil {
		return storeError(err, "%s cannot be deregistered.", id)
	}
	if err := r.dropObjects(ctx, objectsOf(kernel)); err != nil {
		r.progress.Note("the file of %s could not be removed; kami store gc will: %v", id, err)
	}
	return nil
}

// kernelUsers returns the images and instances that start with a kernel or ramdisk.
// What cannot be read may.
func kernelUsers(tx *catalog.Tx, id ami.ImageID) (users []string, err error) {
	images, ierr := tx.Images()
	for _, i := range images {
		if i.State != ami.ImageDeregistered && (ami.ImageID(i.KernelID) == id || ami.ImageID(i.RamdiskID) == id) {
			users = append(users, string(i.ImageID))
		}
	}
	instances, err := tx.Instances()
	for _, i := range instances {
		if i.State.Name != ami.InstanceTerminated && (ami.ImageID(i.KernelID) == id || ami.ImageID(i.RamdiskID) == id) {
			users = append(users, string(i.InstanceID))
		}
	}
	err = errors.Join(ierr, err)
	if errors.Is(err, catalog.ErrDamaged) {
		users = append(users, "what a record says that cannot be read")
	}
	return users, err
}
