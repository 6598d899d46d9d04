package region

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/disk/foreign"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
)

// ImportImage makes a registered image of a disk file in one step, with a volume
// for each disk in it.
func (r *Region) ImportImage(ctx context.Context, in ImportInput) (ami.Image, error) {
	if in.Name == "" {
		in.Name = nameOfFile(in.Source)
	}
	if err := r.checkNewName(ctx, in.Name, in.Description, in.Tags); err != nil {
		return ami.Image{}, err
	}
	if err := checkBoot(in.BootMode, in.Architecture); err != nil {
		return ami.Image{}, err
	}
	if err := r.checkSignedDisk(ctx, in.Source); err != nil {
		return ami.Image{}, err
	}
	if err := ami.CheckUsageOperation(in.UsageOperation); err != nil {
		return ami.Image{}, err
	}
	format, err := foreign.ParseFormat(in.Format)
	if err != nil {
		return ami.Image{}, ami.Errorf(ami.CodeInvalidParameterValue, "%w.", err)
	}
	if in.DryRun {
		return ami.Image{}, dryRun("import %s as %q", in.Source, in.Name)
	}
	scratch, err := durable.NewScratch(r.path("tmp"), "import")
	if err != nil {
		return ami.Image{}, storeError(err, "No work folder can be made.")
	}
	defer scratch.Close()
	path, err := r.fetch(ctx, in, scratch)
	if err != nil {
		return ami.Image{}, err
	}
	step := r.progress.Step("reading "+filepath.Base(in.Source), 0)
	disks, err := foreign.Open(ctx, path, format, scratch.Dir(), step)
	step.Done(err)
	if err != nil {
		return ami.Image{}, importError(in.Source, err)
	}
	defer disks.Close()
	report, err := r.checkDisks(ctx, in, disks)
	if err != nil {
		return ami.Image{}, importError(in.Source, err)
	}
	image := r.newImage(in.Name, in.Description, in.Tags)
	image.BootMode, image.Architecture = report.BootMode(), report.Architecture
	if in.BootMode != "" {
		image.BootMode = in.BootMode
	}
	if in.Architecture != "" {
		image.Architecture = in.Architecture
	}
	if image.Architecture == "" {
		image.Architecture = ami.ArchX8664
	}
	if image.Architecture == ami.ArchARM64 && in.BootMode == "" { // whatever code for a BIOS is on it
		image.BootMode = ami.BootUEFI
	}
	if err := checkBoot(image.BootMode, image.Architecture); err != nil {
		return ami.Image{}, err
	}
	image.SetUsage(in.UsageOperation)
	image, err = r.adopt(ctx, image, disks.Disks, "Imported from "+filepath.Base(in.Source), in.NoRelative)
	if errors.Is(err, qcow2.ErrCorrupt) { // found where the damage is, in the midst of reading
		err = importError(in.Source, errors.Unwrap(err))
	}
	return image, err
}

// nameOfFile makes an image name of a file's name: without the folders and the
// endings of its format.
func nameOfFile(source string) string {
	name, _, _ := strings.Cut(filepath.Base(source), "?")
	for {
		switch ext := strings.ToLower(filepath.Ext(name)); ext {
		case ".gz", ".xz", ".zst", ".raw", ".img", ".qcow2", ".vmdk", ".vhd", ".vhdx", ".vpc", ".ova":
			name = name[:len(name)-len(ext)]
		default:
			return name
		}
	}
}

func importError(source string, err error) error {
	var known *ami.Error
	if errors.As(err, &known) {
		return err
	}
	code, hint := ami.CodeInvalidParameterValue, ""
	switch {
	case errors.Is(err, foreign.ErrForeignFile):
		hint = "A disk that names other files could read this host's files and is refused. Flatten it where it was made: qemu-img convert -O qcow2."
	case errors.Is(err, foreign.ErrTruncated), errors.Is(err, foreign.ErrDamaged), errors.Is(err, qcow2.ErrCorrupt):
		hint = "Fetch the file again, and give its checksum with --sha256."
	case errors.Is(err, foreign.ErrNotADisk):
		hint = "If it is a raw disk all the same, say so with --format raw."
	case errors.Is(err, foreign.ErrNoSpace):
		code, hint = ami.CodeResourceLimitExceeded, "Make room (kami store gc), or choose another home with --home."
	case errors.Is(err, context.Canceled):
		return err
	}
	e := ami.Errorf(code, "%s cannot be imported: %w.", source, err)
	e.Hint = hint
	return e
}
