package cli

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

// place is a path made absolute, or an address as it is.
func place(s string) (string, error) {
	if strings.Contains(s, "://") {
		return s, nil
	}
	return filepath.Abs(s)
}

func (a *app) imageStore() *cobra.Command {
	var in region.StoreImageInput
	c := &cobra.Command{
		Use: "store IMAGE PLACE", Short: "Write an image to one file or object", Args: args(2, 2), ValidArgsFunction: thenFile(a.completeImages),
		Long: `Write an image to one file: its records and tags, and all layers that its
snapshots stand on, compressed as they are. PLACE is a folder or an object store,
s3://… or sftp://…, where the file is called by the image's id with the ending
.bin; or the name of the file itself, with that ending. It is there when it is
complete. Whom the image is shared with is not in it.

Encrypted snapshots stay encrypted: without their key nobody reads them.`,
		Example: "  kami image store web-1 /mnt/backup\n  kami image store web-1 web-1.bin\n  kami image store web-1 's3://backup/images?region=eu-north-1'",
		RunE: func(c *cobra.Command, given []string) (err error) {
			in.Image = given[0]
			if in.To, err = place(given[1]); err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error {
				done, err := r.StoreImage(c.Context(), in)
				if err != nil {
					return err
				}
				type col = output.Column[region.StoredImage]
				return output.List(a.printer(), done, []region.StoredImage{done}, func(s region.StoredImage) string { return s.At }, []col{
					{Title: "IMAGE", Text: func(s region.StoredImage) string { return string(s.ImageID) }},
					{Title: "SIZE", Text: func(s region.StoredImage) string { return output.Bytes(s.Bytes) }},
					{Title: "AT", Text: func(s region.StoredImage) string { return s.At }},
				})
			})
		},
	}
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) imageRestore() *cobra.Command {
	var in region.RestoreImageInput
	var tags []string
	c := &cobra.Command{
		Use: "restore FILE", Short: "Make an image of one that was stored", Args: args(1, 1),
		Long: `Make an image of a file or an object that kami image store wrote. It gets a new
id, and its old name unless --name gives it another. Everything in the file is
held against its digest; layers that are here already are not written again.`,
		Example: "  kami image restore /mnt/backup/ami-0123456789abcdef0.bin --name web-1\n  kami image restore 's3://backup/images/ami-0123456789abcdef0.bin?region=eu-north-1'",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			if in.From, err = place(given[0]); err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error {
				done, err := r.RestoreStoredImage(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printCopy(done)
			})
		},
	}
	c.Flags().StringVar(&in.Name, "name", "", "`NAME` of the image (default the stored one's)")
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) imageExport() *cobra.Command {
	var in region.ExportImageInput
	c := &cobra.Command{
		Use: "export IMAGE FILE", Short: "Write an image's disks for other hypervisors", Args: args(2, 2), ValidArgsFunction: thenFile(a.completeImages),
		Long: `Write the disks of an image to files: raw, qcow2, vmdk, vhd or vhdx, by the ending
of FILE unless --format says it. The root's is FILE; another disk has its device
before the ending, as in web-sdb.vmdk. kami import reads all of these; how the
guest boots, if not as its disk shows, has to be said there (--boot-mode).`,
		Example: "  kami image export web-1 web-1.vmdk\n  kami image export web-1 web-1.img --format vhd",
		RunE: func(c *cobra.Command, given []string) (err error) {
			in.Image = given[0]
			if in.Path, err = filepath.Abs(given[1]); err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error {
				done, err := r.ExportImage(c.Context(), in)
				if err != nil {
					return err
				}
				type col = output.Column[region.ExportedDisk]
				return output.List(a.printer(), exportDoc(done), done, func(d region.ExportedDisk) string { return d.Path }, []col{
					{Title: "DEVICE", Text: func(d region.ExportedDisk) string { return d.DeviceName }},
					{Title: "FORMAT", Text: func(d region.ExportedDisk) string { return d.Format }},
					{Title: "FILE", Text: func(d region.ExportedDisk) string { return d.Path }},
				})
			})
		},
	}
	c.Flags().StringVar(&in.Format, "format", "", "`FORMAT` of the files: "+strings.Join(region.ExportFormats(), ", ")+" (default by the ending, else raw)")
	completeValues(c, "format", region.ExportFormats()...)
	c.Flags().BoolVar(&in.Decrypt, "decrypt", false, "write what is in encrypted snapshots to files that are not")
	dryFlag(c, &in.DryRun)
	return c
}

func exportDoc(all []region.ExportedDisk) any { return map[string]any{"Disks": nonNil(all)} }
