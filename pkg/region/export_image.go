package region

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
)

// ExportImageInput asks for the disks of an image as files that stand on nothing.
type ExportImageInput struct {
	Image   string // id or name
	Path    string // of the root's file; another disk's has its device before the ending
	Format  string // one of ExportFormats; "" is by the path's ending, else raw
	Decrypt bool   // has to be said of encrypted snapshots
	DryRun  bool
}

// ExportedDisk is a file that an export wrote.
type ExportedDisk struct {
	DeviceName string         `json:"DeviceName"`
	SnapshotID ami.SnapshotID `json:"SnapshotId"`
	Path       string         `json:"Path"`
	Format     string         `json:"Format"`
}

// ExportImage writes the disks of an image, the root first: all of them, or none.
func (r *Region) ExportImage(ctx context.Context, in ExportImageInput) (done []ExportedDisk, err error) {
	image, err := r.ResolveImage(ctx, in.Image, false)
	if err != nil {
		return nil, err
	}
	if image.OwnerID != r.account { // who may launch it may not read it apart from that
		return nil, notAuthorized(image.ImageID)
	}
	from := &near{r: r}
	defer from.letGo(ctx)
	if _, err := from.parcel(ctx, string(image.ImageID)); err != nil {
		return nil, err
	}
	format := exportFormat(in.Format, in.Path)
	for _, m := range image.BlockDeviceMappings {
		if m.Ebs == nil || m.Ebs.SnapshotID == "" {
			continue
		}
		d := ExportedDisk{m.DeviceName, m.Ebs.SnapshotID, in.Path, format}
		if !sameDevice(m.DeviceName, image.RootDeviceName) {
			ext := filepath.Ext(in.Path)
			d.Path = strings.TrimSuffix(in.Path, ext) + "-" + filepath.Base(m.DeviceName) + ext
		}
		done = append(done, d)
	}
	slices.SortStableFunc(done, func(a, b ExportedDisk) int { return len(a.Path) - len(b.Path) })
	export := func(d ExportedDisk, dry bool) error {
		return r.ExportSnapshot(ctx, ExportInput{SnapshotID: d.SnapshotID, Path: d.Path, Format: format, Decrypt: in.Decrypt, DryRun: dry})
	}
	for _, d := range done { // what would fail, before there is any file
		if err := export(d, true); ami.ErrorCode(err) != ami.CodeDryRunOperation {
			return nil, err
		}
	}
	if in.DryRun {
		return nil, dryRun("export %s to %d files, the first %s", image.ImageID, len(done), in.Path)
	}
	for i, d := range done {
		if err := export(d, false); err != nil {
			for _, d := range done[:i] {
				err = errors.Join(err, os.Remove(d.Path))
			}
			return nil, err
		}
	}
	return done, nil
}
