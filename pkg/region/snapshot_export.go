package region

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
)

// exportFormats are what a snapshot can be exported as, with qemu-img's words
// for those that it writes.
var exportFormats = map[string][]string{ //nolint:gochecknoglobals // nothing assigns it
	"raw":   nil,
	"qcow2": nil,
	"vmdk":  {"-O", "vmdk", "-o", "subformat=streamOptimized"},
	"vhd":   {"-O", "vpc", "-o", "subformat=dynamic,force_size=on"},
	"vhdx":  {"-O", "vhdx", "-o", "subformat=dynamic"},
}

// ExportFormats lists the formats of ExportSnapshot.
func ExportFormats() []string { return []string{"raw", "qcow2", "vmdk", "vhd", "vhdx"} }

// ExportInput asks for a snapshot as a file that stands on nothing.
type ExportInput struct {
	SnapshotID ami.SnapshotID
	Path       string // must not exist
	Format     string // "" is by the path's ending, else raw
	DryRun     bool
}

// ExportSnapshot writes the whole content of a snapshot to one file. A file that
// is not complete never has the name.
func (r *Region) ExportSnapshot(ctx context.Context, in ExportInput) error {
	format := in.Format
	if format == "" {
		format = strings.TrimPrefix(filepath.Ext(in.Path), ".")
		if _, ok := exportFormats[format]; !ok {
			format = "raw"
		}
	}
	if !slices.Contains(ExportFormats(), format) {
		return ami.Errorf(ami.CodeInvalidParameterValue, "The format %q is not one of %s.", format, strings.Join(ExportFormats(), ", "))
	}
	snap, _, err := r.completed(ctx, in.SnapshotID)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(in.Path); err == nil {
		return ami.Errorf(ami.CodeInvalidParameterValue, "%s exists.", in.Path).WithHint("Choose another file, or remove that one.")
	}
	if in.DryRun {
		return dryRun("export %s to %s as %s", in.SnapshotID, in.Path, format)
	}
	img, err := r.layers.OpenLayer(snap.Layer)
	if err != nil {
		return storeError(err, "The layer of %s cannot be read.", in.SnapshotID)
	}
	defer img.Close()
	step := r.progress.Step("exporting "+string(in.SnapshotID), img.Size())
	err = durable.WriteFile(in.Path, 0o644, func(f *os.File) error {
		switch format {
		case "raw":
			return qcow2.WriteRaw(ctx, f, qcow2.Flatten(img), step.Add)
		case "qcow2":
			_, err := qcow2.WriteLayer(ctx, f, qcow2.Flatten(img), nil, step.Add)
			return err
		}
		return r.convert(ctx, snap, f.Name(), exportFormats[format])
	})
	step.Done(err)
	return storeError(err, "%s cannot be exported.", in.SnapshotID)
}

// convert has qemu-img write the formats that are not ours.
func (r *Region) convert(ctx context.Context, snap ami.Snapshot, to string, format []string) error {
	chain, err := r.layers.Chain(snap.Layer)
	if err != nil {
		return err
	}
	args := slices.Concat([]string{"convert", "-f", "qcow2"}, format, []string{"--", chain[0], "file:" + to})
	out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("qemu-img: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
