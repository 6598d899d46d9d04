package region

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/disk"
	"github.com/kamivm/kami/pkg/disk/foreign"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
)

// ImportImage makes a registered image of a disk file in one step.
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
	src, closer, err := foreign.Open(ctx, path, format, scratch.Dir(), step)
	step.Done(err)
	if err != nil {
		return ami.Image{}, importError(in.Source, err)
	}
	defer closer.Close()
	report, err := disk.Inspect(ctx, src, src.Size())
	if err != nil {
		return ami.Image{}, importError(in.Source, err)
	}
	if report.Truncated(src.Size()) {
		return ami.Image{}, importError(in.Source, fmt.Errorf("%w: it has %d bytes, and its partitions end at %d", foreign.ErrTruncated, src.Size(), report.Claimed))
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
	if !report.BIOSBootable && !report.UEFIBootable {
		r.progress.Note("no boot loader was found in %s: the image may not boot", filepath.Base(in.Source))
	}
	if src.Size() > maxVolumeGiB*gib {
		return ami.Image{}, importError(in.Source, fmt.Errorf("a disk of %d GiB is larger than the largest volume, %d GiB", gibCeil(src.Size()), int64(maxVolumeGiB)))
	}
	image, err = r.adopt(ctx, image, src, "Imported from "+filepath.Base(in.Source), in.NoRelative)
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
	case errors.Is(err, foreign.ErrTruncated), errors.Is(err, qcow2.ErrCorrupt):
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
