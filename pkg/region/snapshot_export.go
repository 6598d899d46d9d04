package region

import (
	"context"
	"errors"
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
	Decrypt    bool   // has to be said of an encrypted snapshot
	DryRun     bool
}

// exportFormat is the format of a file: the one that is said, else by its ending.
func exportFormat(said, path string) string {
	if said != "" {
		return said
	}
	ending := strings.TrimPrefix(filepath.Ext(path), ".")
	if _, ok := exportFormats[ending]; ok {
		return ending
	}
	return "raw"
}

// ExportSnapshot writes the whole content of a snapshot to one file. A file that
// is not complete never has the name.
func (r *Region) ExportSnapshot(ctx context.Context, in ExportInput) error {
	format := exportFormat(in.Format, in.Path)
	if !slices.Contains(ExportFormats(), format) {
		return ami.Errorf(ami.CodeInvalidParameterValue, "The format %q is not one of %s.", format, strings.Join(ExportFormats(), ", "))
	}
	snap, err := r.readable(ctx, in.SnapshotID)
	if err == nil {
		err = r.checkRead(ctx, "The snapshot "+string(in.SnapshotID), snap.ProductCodes)
	}
	if err != nil {
		return err
	}
	if snap.Encrypted && !in.Decrypt {
		return ami.Errorf(ami.CodeOperationNotPermitted, "The snapshot %s is encrypted, and the file would not be.", in.SnapshotID).
			WithHint("Say --decrypt if that is what you want.")
	}
	if err := checkNewFile(in.Path); err != nil {
		return err
	}
	if in.DryRun {
		return dryRun("export %s to %s as %s", in.SnapshotID, in.Path, format)
	}
	img, err := r.layers.OpenLayer(snap.Layer)
	if err != nil {
		return storeError(err, "The layer of %s cannot be read.", in.SnapshotID)
	}
	defer img.Close()
	mode := os.FileMode(0o644)
	if snap.Encrypted {
		mode = 0o600
	}
	step := r.progress.Step("exporting "+string(in.SnapshotID), img.Size())
	err = durable.WriteFile(in.Path, mode, func(f *os.File) error {
		switch format {
		case "raw":
			return qcow2.WriteRaw(ctx, f, qcow2.Flatten(img), step.Add)
		case "qcow2":
			_, err := qcow2.WriteLayer(ctx, f, qcow2.Flatten(img), nil, nil, step.Add)
			return err
		}
		return r.convert(ctx, snap, img, f.Name(), exportFormats[format])
	})
	step.Done(err)
	return storeError(err, "%s cannot be exported.", in.SnapshotID)
}

// convert has qemu-img write the formats that are not ours. It is given no keys:
// what is encrypted it reads from a plain copy, which lies where the plain file is
// to lie, and not among the region's.
func (r *Region) convert(ctx context.Context, snap ami.Snapshot, img *qcow2.Image, to string, format []string) error {
	chain, err := r.layers.Chain(snap.Layer)
	if err != nil {
		return err
	}
	from, as := chain[0], "qcow2"
	if snap.Encrypted {
		scratch, err := durable.NewScratch(filepath.Dir(to), "kami-export")
		if err != nil {
			return err
		}
		defer scratch.Close()
		if from, as, err = plainCopy(ctx, scratch.Path("plain"), img); err != nil {
			return err
		}
	}
	args := slices.Concat([]string{"convert", "-f", as}, format, []string{"--", "file:" + from, "file:" + to})
	out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("qemu-img: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// plainCopy writes an image to a raw file that only its owner can read.
func plainCopy(ctx context.Context, path string, img *qcow2.Image) (file, format string, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", "", err
	}
	err = qcow2.WriteRaw(ctx, f, qcow2.Flatten(img), func(int64) {})
	return path, "raw", errors.Join(err, f.Close())
}
