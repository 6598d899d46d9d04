package region

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/disk/foreign"
	"github.com/kamivm/kami/pkg/disk/uefivars"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/qemu"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/launch"
	"github.com/kamivm/kami/pkg/machine"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/recipe"
)

// typeFor is the instance type of a launch of an image, which may say none.
func typeFor(image ami.Image, asked string) string {
	if asked == "" {
		return launch.DefaultTypeFor(image.Architecture)
	}
	return asked
}

// accelFor says how guests of an architecture are best run here, and why not with KVM.
func accelFor(arch ami.Architecture) (machine.Accel, string) {
	if !hypervisor.Native(arch) {
		return machine.AccelTCG, fmt.Sprintf("the host's processor is not one of %s", arch)
	}
	return hypervisor.ProbeAccel()
}

// bootsUEFI says whether an image's guests always boot by UEFI.
func bootsUEFI(i ami.Image) bool {
	return i.VirtualizationType != ami.VirtualizationParavirtual &&
		(i.BootMode == ami.BootUEFI || i.BootMode == "" && i.Architecture == ami.ArchARM64)
}

// checkSupport checks what an image says that its guests know, against what they boot
// with.
func checkSupport(i ami.Image) error {
	var errs []error
	switch {
	case i.TpmSupport != "" && i.TpmSupport != ami.TPMv2:
		errs = append(errs, ami.Errorf(ami.CodeInvalidParameterValue, "The TPM support %q is not %s.", i.TpmSupport, ami.TPMv2))
	case i.TpmSupport != "" && !bootsUEFI(i):
		errs = append(errs, ami.Errorf(ami.CodeInvalidParameterCombination, "TPM support goes with the boot mode uefi alone.").
			WithHint("Register the image with the boot mode uefi as well."))
	}
	if i.SriovNetSupport != "" && i.SriovNetSupport != ami.SriovSimple {
		errs = append(errs, ami.Errorf(ami.CodeInvalidParameterValue, "The SR-IOV support %q is not %s.", i.SriovNetSupport, ami.SriovSimple))
	}
	if (i.EnaSupport != nil || i.SriovNetSupport != "") && i.VirtualizationType == ami.VirtualizationParavirtual {
		errs = append(errs, ami.Errorf(ami.CodeInvalidParameterCombination, "Enhanced networking goes with the virtualization type hvm, not with paravirtual."))
	}
	return errors.Join(errs...)
}

func noVariables() error {
	return ami.Errorf(ami.CodeInvalidParameterCombination, "UEFI data goes with the boot modes uefi and uefi-preferred.").
		WithHint("Register the image with the boot mode uefi as well.")
}

// checkBooting refuses to launch an image in a boot mode in which it has not what it
// asks for.
func checkBooting(i ami.Image, boot ami.BootMode) error {
	if i.TpmSupport != "" && boot != ami.BootUEFI {
		return ami.Errorf(ami.CodeInvalidParameterCombination, "The image %s has TPM support, which goes with the boot mode uefi alone, not with %s.", i.ImageID, boot)
	}
	return nil
}

// registerSupport lays over an image what a registration says that its guests know,
// checks all of it, and returns the variables of UEFI that go with it, nil for none.
func (r *Region) registerSupport(image *ami.Image, in RegisterImageInput) ([]byte, error) {
	image.TpmSupport, image.EnaSupport, image.SriovNetSupport = in.TpmSupport, in.EnaSupport, in.SriovNetSupport
	if err := errors.Join(checkBoot(image.BootMode, image.Architecture), checkImdsSupport(in.ImdsSupport), checkSupport(*image)); err != nil {
		return nil, err
	}
	return r.registerVariables(in, *image)
}

// keepVariables records an image with its variables of UEFI: those first, as an object
// that nobody takes for garbage before put has named it.
func (r *Region) keepVariables(ctx context.Context, image *ami.Image, variables []byte, put func(*catalog.Tx) error) error {
	if variables == nil {
		return r.catalog.Update(ctx, put)
	}
	j, err := r.begin(ctx, nil, string(image.ImageID))
	if err != nil {
		return err
	}
	defer j.close(ctx)
	if image.UEFIData, err = r.putObject(ctx, variables); err != nil {
		return err
	}
	durable.Step("register.variables")
	return j.commit(ctx, put)
}

// registerVariables reads what a registration says of the variables of UEFI, nil for
// nothing: EC2's text, or those that the host's firmware has for Secure Boot.
func (r *Region) registerVariables(in RegisterImageInput, image ami.Image) ([]byte, error) {
	switch {
	case in.UEFIData == "" && !in.SecureBoot:
		return nil, nil
	case in.UEFIData != "" && in.SecureBoot:
		return nil, ami.Errorf(ami.CodeInvalidParameterCombination, "Secure Boot with Microsoft's keys, and UEFI data with others, cannot both be had.").
			WithHint("Leave out one: UEFI data with a platform key turns Secure Boot on by itself.")
	case !bootsUEFI(image) && image.BootMode != ami.BootUEFIPreferred:
		return nil, noVariables()
	case in.SecureBoot:
		return secureVariables(image.Architecture)
	}
	vars, err := uefivars.Decode(in.UEFIData)
	var volume []byte
	if err == nil {
		volume, err = uefivars.Build(vars, image.Architecture)
	}
	if errors.Is(err, uefivars.ErrDictionary) {
		return nil, ami.Errorf(ami.CodeInvalidParameterValue, "The UEFI data cannot be read: %w.", err).
			WithHint("Turn it into a flash memory first, with Amazon's python-uefivars: uefivars -i aws -o edk2 -I FILE -O vars.fd; base64 vars.fd is taken.")
	}
	if err != nil {
		return nil, ami.Errorf(ami.CodeInvalidParameterValue, "The UEFI data cannot be read: %w.", err).
			WithHint("It is base64, as kami instance uefi-data prints it, or of the file with the variables of OVMF.")
	}
	return volume, nil
}

// secureVariables are the variables with Microsoft's keys that come with the host's
// firmware.
func secureVariables(arch ami.Architecture) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		e := ami.Errorf(ami.CodeUnsupportedOperation, "The host has no variables of UEFI with Microsoft's keys: %w", err)
		return nil, e.WithHint("Install the firmware: apt-get install %s.", firmwarePackage(arch))
	}
	template, err := qemu.EnrolledVariables(arch)
	if err != nil {
		return fail(err)
	}
	f, err := os.Open(template)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	vars, err := readVariables(f)
	if err == nil && !uefivars.SecureBoot(vars) {
		err = fmt.Errorf("%s has no platform key", template)
	}
	if err != nil {
		return fail(err)
	}
	// Where the firmware's packager has started it is nobody's business.
	vars = slices.DeleteFunc(vars, func(v uefivars.Var) bool { return !isOfSecureBoot(v.Name) })
	b, err := uefivars.Build(vars, arch)
	if err != nil {
		return fail(err)
	}
	return b, nil
}

// checkSecureBuild finds what keeps a build for Secure Boot from one, before it begins.
func checkSecureBuild(rec recipe.Recipe, in BuildInput) error {
	if in.VirtualizationType == ami.VirtualizationParavirtual || in.RootDeviceType == ami.RootDeviceInstanceStore {
		return ami.Errorf(ami.CodeInvalidParameterCombination, "Secure Boot goes with hvm images on ebs alone: a paravirtual guest has no firmware, and a bundle no UEFI variables.")
	}
	_, err := secureVariables(rec.Architecture)
	return err
}

// adoptSecure makes an image of a disk that was built for Secure Boot.
func (r *Region) adoptSecure(ctx context.Context, image ami.Image, src qcow2.Source, name string, alone bool) (ami.Image, error) {
	variables, err := secureVariables(image.Architecture)
	if err != nil {
		return ami.Image{}, err
	}
	// Under a lease of their own, until the image names them.
	j, err := r.begin(ctx, nil, string(ami.NewImageID()))
	if err != nil {
		return ami.Image{}, storeError(err, "The UEFI variables cannot be kept.")
	}
	defer j.close(ctx)
	if image.UEFIData, err = r.putObject(ctx, variables); err != nil {
		return ami.Image{}, err
	}
	return r.adopt(ctx, image, []foreign.Disk{{Source: src}}, "Built from "+name, alone)
}

func isOfSecureBoot(name string) bool {
	return slices.Contains([]string{"PK", "KEK", "db", "dbx", "dbt", "SecureBootEnable", "CustomMode", "VendorKeysNv", "certdb", "MTC"}, name)
}

func firmwarePackage(arch ami.Architecture) string {
	if arch == ami.ArchARM64 {
		return "qemu-efi-aarch64"
	}
	return "ovmf"
}

// maxVariables bounds how much of a flash memory is read, in bytes.
const maxVariables = 1 << 20

func readVolume(f io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, maxVariables))
	if err != nil {
		return nil, err
	}
	return uefivars.Volume(b)
}

func readVariables(f io.Reader) ([]uefivars.Var, error) {
	b, err := readVolume(f)
	if err != nil || b == nil {
		return nil, err
	}
	return uefivars.Parse(b)
}

// volumeOf reads the flash memory of an instance, nil for one without or that no
// firmware has written to.
func (r *Region) volumeOf(inst ami.Instance) ([]byte, error) {
	f, err := os.Open(r.nvramPath(inst.InstanceID))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readVolume(f)
}

// hasSecureBoot says whether the variables of an instance turn Secure Boot on.
func (r *Region) hasSecureBoot(inst ami.Instance) (bool, error) {
	b, err := r.volumeOf(inst)
	var vars []uefivars.Var
	if err == nil && b != nil {
		vars, err = uefivars.Parse(b)
	}
	if errors.Is(err, uefivars.ErrFormat) { // of a firmware of another make, that knows by itself
		return false, nil
	}
	return uefivars.SecureBoot(vars), storeError(err, "The UEFI variables of %s cannot be read.", inst.InstanceID)
}

// writeVariables gives an instance the variables of its image.
func (r *Region) writeVariables(inst ami.Instance, image ami.Image) error {
	if image.UEFIData == "" || inst.CurrentBootMode != ami.BootUEFI {
		return nil
	}
	vars, err := r.object(image.UEFIData)
	if err != nil {
		return err
	}
	err = durable.WriteFile(r.nvramPath(inst.InstanceID), 0o600, func(f *os.File) error {
		if _, err := f.Write(vars); err != nil {
			return err
		}
		if size := uefivars.DeviceSize(inst.Architecture); int64(len(vars)) < size && inst.Architecture == ami.ArchARM64 {
			return f.Truncate(size) // a hole
		}
		return nil
	})
	return storeError(err, "The UEFI variables cannot be written.")
}

// keepNVRAM stores the instance's UEFI variables as an object named by digest.
func (r *Region) keepNVRAM(ctx context.Context, inst ami.Instance) (d digestName, err error) {
	b, err := r.volumeOf(inst)
	if errors.Is(err, uefivars.ErrFormat) { // of a firmware of another make
		b, err = os.ReadFile(r.nvramPath(inst.InstanceID))
	}
	if err != nil || b == nil {
		return "", storeError(err, "The UEFI variables of %s cannot be read.", inst.InstanceID)
	}
	return r.putObject(ctx, b)
}

// UEFIData returns the variables of an instance that boots by UEFI as EC2's
// GetInstanceUefiData has them.
func (r *Region) UEFIData(ctx context.Context, id ami.InstanceID) (ami.InstanceUEFIData, error) {
	out := ami.InstanceUEFIData{InstanceID: id}
	inst, err := r.instance(ctx, id)
	if err != nil {
		return out, err
	}
	if inst.CurrentBootMode != ami.BootUEFI {
		return out, ami.Errorf(ami.CodeUnsupportedOperation, "The instance '%s' does not boot by UEFI, and has no UEFI data.", id)
	}
	b, err := r.volumeOf(inst)
	var vars []uefivars.Var
	if err == nil && b != nil {
		vars, err = uefivars.Parse(b)
	}
	if err == nil {
		out.UEFIData, err = uefivars.Encode(vars)
	}
	return out, storeError(err, "The UEFI variables of %s cannot be read.", id)
}

// UEFIText is what a file with UEFI's variables says: the text that it holds, or the
// flash memory that it is.
func UEFIText(b []byte) string {
	if _, err := uefivars.Volume(b); err == nil {
		return base64.StdEncoding.EncodeToString(b)
	}
	return string(bytes.TrimSpace(b))
}
