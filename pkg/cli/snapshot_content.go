package cli

import (
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) snapshotDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff FIRST SECOND", Short: "Show what changed between two snapshots", Args: args(2, 2), ValidArgsFunction: a.completeSnapshots,
		Long: `Show in which blocks of 512 KiB two snapshots differ, with the SHA-256 of each
side (- where all is zeros). The lists of digests are compared, not the disks,
so it takes no time; the snapshots need not have anything to do with each other.`,
		Example: "  kami snapshot diff snap-0123456789abcdef0 snap-0fedcba9876543210\n" +
			"  kami snapshot diff snap-0123456789abcdef0 snap-0fedcba9876543210 --query ChangedBytes",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				d, err := r.DiffSnapshots(c.Context(), ami.SnapshotID(given[0]), ami.SnapshotID(given[1]))
				if err != nil {
					return err
				}
				type col = output.Column[region.ChangedBlock]
				index := func(b region.ChangedBlock) string { return strconv.FormatInt(b.Index, 10) }
				err = output.List(a.printer(), d, d.Blocks, index, []col{
					{Title: "BLOCK", Text: index},
					{Title: "OFFSET", Text: func(b region.ChangedBlock) string { return strconv.FormatInt(b.Index*region.BlockSize, 10) }},
					{Title: "FIRST", Text: func(b region.ChangedBlock) string { return shortSum(b.First) }},
					{Title: "SECOND", Text: func(b region.ChangedBlock) string { return shortSum(b.Second) }},
				})
				if err == nil && a.flags.output == string(output.Table) && a.flags.query == "" && output.IsTerminal(a.out) {
					_, err = fmt.Fprintf(a.out, "\nchanged: %s in %d blocks\n", output.Bytes(d.ChangedBytes), len(d.Blocks))
				}
				return err
			})
		},
	}
}

// requireFlag adds --require: the least that a snapshot has to promise.
func requireFlag(c *cobra.Command, to *ami.Consistency) {
	var names []string
	for _, k := range ami.Consistencies() {
		names = append(names, string(k))
	}
	c.Flags().StringVar((*string)(to), "require", "", "fail rather than take the disks with less than this `CONSISTENCY`: "+strings.Join(names, ", ")+", which a running guest's agent is not asked to freeze for")
	completeValues(c, "require", names...)
}

func shortSum(sum [32]byte) string {
	if sum == [32]byte{} {
		return "-"
	}
	return hex.EncodeToString(sum[:6])
}

func (a *app) snapshotExport() *cobra.Command {
	var in region.ExportInput
	c := &cobra.Command{
		Use: "export SNAPSHOT FILE", Short: "Write a snapshot to a file that stands on nothing", Args: args(2, 2), ValidArgsFunction: thenFile(a.completeSnapshots),
		Long: `Write the whole content of a snapshot to a file: raw, qcow2, vmdk, vhd or vhdx,
by the file's ending unless --format says it. The file has its name once it is
complete; kami import reads all of these.`,
		Example: "  kami snapshot export snap-0123456789abcdef0 disk.qcow2\n  kami snapshot export snap-0123456789abcdef0 disk.img --format raw",
		RunE: func(c *cobra.Command, given []string) (err error) {
			in.SnapshotID = ami.SnapshotID(given[0])
			if in.Path, err = filepath.Abs(given[1]); err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error { return r.ExportSnapshot(c.Context(), in) })
		},
	}
	c.Flags().StringVar(&in.Format, "format", "", "`FORMAT` of the file: "+strings.Join(region.ExportFormats(), ", ")+" (default by its ending, else raw)")
	completeValues(c, "format", region.ExportFormats()...)
	c.Flags().BoolVar(&in.Decrypt, "decrypt", false, "write what is in an encrypted snapshot to a file that is not")
	dryFlag(c, &in.DryRun)
	return c
}
