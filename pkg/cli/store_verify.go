package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) storeVerify() *cobra.Command {
	var in region.VerifyInput
	var sample string
	c := &cobra.Command{
		Use: "verify", Short: "Read every layer and compare it with its name", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Read every layer and compare it with its name, which is its SHA-256, and see that
every record is backed: that the layers, disks and snapshots that it names are
there. What is not well is told of with what it harms and what to do, and does not
stop the rest. The exit status is 1 where something is not well.

A verify that was interrupted is gone on with: layers that were well since it was
begun are not read again, unless --restart says so. With --sample only a part of
the layers is read, those that were read longest ago, so that samples taken one
after the other come by all of them; layers that were not well are read each time.`,
		Example: "  kami store verify\n  kami store verify --sample 10%\n  kami store verify --restart",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if err := exclusive(c, "sample", "restart"); err != nil {
				return err
			}
			if in.Sample, err = percent("sample", sample); err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error {
				v, err := r.VerifyStore(c.Context(), in)
				a.printer() // the progress is over
				if err == nil {
					err = a.printVerified(v)
				}
				// Also what was found before an interruption.
				if bad := a.tellHarm(v, names(c.Context(), r)); err == nil && bad > 0 {
					err = exitError(exitFailed)
				}
				return err
			})
		},
	}
	c.Flags().StringVar(&sample, "sample", "", "read only so many `PERCENT` of the bytes (10%), of whole layers")
	c.Flags().BoolVar(&in.Restart, "restart", false, "read all layers, also where the last verify was interrupted")
	return c
}

// percent reads a flag as "10%"; 0 is a flag that is not given.
func percent(flag, value string) (int, error) {
	if value == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(strings.TrimSuffix(value, "%"))
	if err != nil || n < 1 || n > 100 {
		return 0, usagef("--%s %q is not a percentage from 1%% to 100%%", flag, value)
	}
	return n, nil
}

func verifyDoc(v *region.Verification) any {
	if v == nil {
		v = &region.Verification{}
	}
	out := make([]region.VerifyResult, len(v.Results))
	for i, res := range v.Results {
		res.Images, res.Snapshots, res.Volumes = nonNil(res.Images), nonNil(res.Snapshots), nonNil(res.Volumes)
		res.Instances, res.Running = nonNil(res.Instances), nonNil(res.Running)
		out[i] = res
	}
	return map[string]any{"Layers": out, "LayerCount": v.Layers, "PassedOverCount": v.Passed}
}

// printVerified writes what a verify found.
func (a *app) printVerified(v region.Verification) error {
	type col = output.Column[region.VerifyResult]
	return output.List(a.printer(), verifyDoc(&v), v.Results, func(res region.VerifyResult) string { return res.Resource }, []col{
		{Title: "LAYER", Text: func(res region.VerifyResult) string {
			if res.Layer == "" {
				return res.Resource
			}
			return res.Layer.Short()
		}},
		{Title: "RESULT", Text: func(res region.VerifyResult) string {
			if res.OK {
				return "ok"
			}
			return res.Detail
		}},
		{Title: "IMAGES", Text: func(res region.VerifyResult) string { return join(res.Images) }},
	})
}

// names are those of the images, as far as they are known.
func names(ctx context.Context, r *region.Region) map[ami.ImageID]string {
	out := map[ami.ImageID]string{}
	images, err := r.DescribeImages(context.WithoutCancel(ctx), region.DescribeInput{IncludeDeprecated: true, IncludeDisabled: true})
	for _, i := range images {
		if err == nil {
			out[i.ImageID] = i.Name
		}
	}
	return out
}

// tellHarm says on standard error what each thing that is not well harms and what
// to do about it, and returns how many there are.
func (a *app) tellHarm(v region.Verification, names map[ami.ImageID]string) (bad int) {
	for _, res := range v.Results {
		if res.OK {
			continue
		}
		bad++
		named := make([]string, len(res.Images))
		for i, id := range res.Images {
			if named[i] = string(id); names[id] != "" {
				named[i] += " (" + names[id] + ")"
			}
		}
		fmt.Fprintf(a.err, "kami: %s: %s\n", res.Resource, res.Detail)
		for _, h := range []struct{ noun, ids string }{
			{"images", strings.Join(named, " ")},
			{"snapshots", join(res.Snapshots)},
			{"volumes", join(res.Volumes)},
			{"instances", join(res.Instances)},
			{"running", join(res.Running)},
		} {
			if h.ids != "" {
				fmt.Fprintf(a.err, "  %-10s %s\n", h.noun, h.ids)
			}
		}
		if res.Advice != "" {
			fmt.Fprintf(a.err, "  %s\n", res.Advice)
		}
	}
	return bad
}

func join[ID ami.ImageID | ami.SnapshotID | ami.VolumeID | ami.InstanceID](ids []ID) string {
	text := make([]string, len(ids))
	for i, id := range ids {
		text[i] = string(id)
	}
	return strings.Join(text, " ")
}
