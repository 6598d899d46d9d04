package cli

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

// parseTime reads a time as a person writes one, in UTC where it does not say.
func parseTime(flag, text string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("--%s %q is not a time such as 2030-01-31 or 2030-01-31T12:00:00Z", flag, text)
}

func (a *app) imageDeprecate() *cobra.Command {
	var at string
	var cancel, dry bool
	c := &cobra.Command{
		Use: "deprecate IMAGE", Short: "Say when an image is out of date", Args: args(1, 1), ValidArgsFunction: once(a.completeImages),
		Long: `Say when an image is out of date. From then on others find it only by its id,
and everybody launches it as ever. The time is rounded to the minute and at most
10 years from now. A public image is deprecated two years after it was made at the
latest, by itself.`,
		Example: "  kami image deprecate web-1 --at 2030-01-31\n  kami image deprecate web-1 --at 2030-01-31T12:00:00Z\n  kami image deprecate web-1 --cancel",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if (at == "") == !cancel {
				return usagef("one of --at and --cancel is needed; %s", seeHelp(c))
			}
			var when time.Time
			if !cancel {
				if when, err = parseTime("at", at); err != nil {
					return err
				}
			}
			return a.with(c.Context(), func(r *region.Region) error {
				id, err := a.ownImageID(c.Context(), r, given[0])
				if err != nil {
					return err
				}
				if cancel {
					_, err = r.CancelDeprecation(c.Context(), id, dry)
				} else {
					_, err = r.DeprecateImage(c.Context(), id, when, dry)
				}
				return err
			})
		},
	}
	c.Flags().StringVar(&at, "at", "", "`TIME` from which it is deprecated, such as 2030-01-31 or 2030-01-31T12:00:00Z; UTC where it does not say")
	c.Flags().BoolVar(&cancel, "cancel", false, "it is not deprecated, nor will be")
	dryFlag(c, &dry)
	return c
}

func (a *app) imageDisable() *cobra.Command {
	return a.imageVerb("disable IMAGE...", "Take images out of use, for the time being", "  kami image disable web-1",
		`Take images out of use: nobody launches them and nobody sees them but their owner
(kami image list --include-disabled). Whoever they were shared with loses them for
good. Instances live on.`, a.ownImageID,
		func(ctx context.Context, r *region.Region, id ami.ImageID, dry bool) error {
			_, err := r.DisableImage(ctx, id, dry)
			return err
		})
}

func (a *app) imageEnable() *cobra.Command {
	return a.imageVerb("enable IMAGE...", "Take disabled images into use again", "  kami image enable web-1",
		"Take disabled images into use again. Whom they were shared with before does not\ncome back.", a.ownImageID,
		func(ctx context.Context, r *region.Region, id ami.ImageID, dry bool) error {
			_, err := r.EnableImage(ctx, id, dry)
			return err
		})
}

func (a *app) imageProtect() *cobra.Command {
	var cooldown bool
	c := a.imageVerb("protect IMAGE...", "Keep images from being deregistered", "  kami image protect web-1\n  kami image protect web-1 --cooldown",
		"Keep images from being deregistered until that is turned off\n(kami image unprotect).", a.ownImageID,
		func(ctx context.Context, r *region.Region, id ami.ImageID, dry bool) error {
			_, err := r.ProtectImage(ctx, id, cooldown, dry)
			return err
		})
	c.Flags().BoolVar(&cooldown, "cooldown", false, "and for 24 hours after it was turned off")
	return c
}

func (a *app) imageUnprotect() *cobra.Command {
	return a.imageVerb("unprotect IMAGE...", "Let images be deregistered again", "  kami image unprotect web-1",
		"Let images be deregistered again: at once, or 24 hours later where they were\nprotected with --cooldown.", a.ownImageID,
		func(ctx context.Context, r *region.Region, id ami.ImageID, dry bool) error {
			image, err := r.UnprotectImage(ctx, id, dry)
			if err == nil && a.progress != nil && !image.CooldownExpiresOn.IsZero() {
				a.progress.Note("%s can be deregistered from %s on", id, stamp(image.CooldownExpiresOn))
			}
			return err
		})
}

func usageDoc(u region.ImageUsage) any {
	u.Entries = nonNil(u.Entries)
	return u
}

func (a *app) imageUsage() *cobra.Command {
	return &cobra.Command{
		Use: "usage IMAGE", Short: "Count who uses an image", Args: args(1, 1), ValidArgsFunction: once(a.completeImages),
		Long: `Count the instances of an image of one's own, by account. The JSON form also says
when it was last launched.`,
		Example: "  kami image usage web-1\n  kami image usage web-1 --query LastLaunchedTime",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				id, err := a.ownImageID(c.Context(), r, given[0])
				if err != nil {
					return err
				}
				u, err := r.ImageUsage(c.Context(), id)
				if err != nil {
					return err
				}
				type col = output.Column[region.ImageUsageEntry]
				return output.List(a.printer(), usageDoc(u), u.Entries, func(e region.ImageUsageEntry) string { return e.AccountID }, []col{
					{Title: "ACCOUNT", Text: func(e region.ImageUsageEntry) string { return e.AccountID }},
					{Title: "RESOURCE", Text: func(e region.ImageUsageEntry) string { return e.ResourceType }},
					{Title: "COUNT", Text: func(e region.ImageUsageEntry) string { return strconv.Itoa(e.UsageCount) }},
				})
			})
		},
	}
}

func referencesDoc(all []region.ImageReference) any {
	return map[string]any{"ImageReferences": nonNil(all)}
}

func (a *app) imageReferences() *cobra.Command {
	return &cobra.Command{
		Use: "references IMAGE...", Short: "List one's own instances that refer to images", Args: args(1, -1), ValidArgsFunction: a.completeImages,
		Long: `List the instances of this account that refer to images, its own or shared: what
there is to look at before an image is retired. Ids of images that are gone are
looked for too.`,
		Example: "  kami image references web-1\n  kami image references ami-0123456789abcdef0 -o id",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				var ids []ami.ImageID
				for _, ref := range given {
					id := ami.ImageID(ref)
					if _, err := ami.ParseImageID(ref); err != nil {
						image, err := r.ResolveImage(c.Context(), ref, false)
						if err != nil {
							return err
						}
						id = image.ImageID
					}
					ids = append(ids, id)
				}
				all, err := r.ImageReferences(c.Context(), ids)
				if err != nil {
					return err
				}
				type col = output.Column[region.ImageReference]
				return output.List(a.printer(), referencesDoc(all), all, func(f region.ImageReference) string { return f.ResourceID }, []col{
					{Title: "IMAGE", Text: func(f region.ImageReference) string { return string(f.ImageID) }},
					{Title: "TYPE", Text: func(f region.ImageReference) string { return f.ResourceType }},
					{Title: "RESOURCE", Text: func(f region.ImageReference) string { return f.ResourceID }},
				})
			})
		},
	}
}

func ancestryDoc(line []region.ImageAncestor) any {
	return map[string]any{"ImageAncestryEntries": nonNil(line)}
}

func (a *app) imageAncestry() *cobra.Command {
	return &cobra.Command{
		Use: "ancestry IMAGE", Short: "List the line of images that an image comes from", Args: args(1, 1), ValidArgsFunction: once(a.completeImages),
		Long: `List the line of images that an image comes from, the image first: what it was
made of, what that was made of, and so on, as far as this account may see. All
lines together draws kami image tree.`,
		Example: "  kami image ancestry web-2",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				image, err := r.ResolveImage(c.Context(), given[0], false)
				if err != nil {
					return err
				}
				line, err := r.ImageAncestry(c.Context(), image.ImageID)
				if err != nil {
					return err
				}
				type col = output.Column[region.ImageAncestor]
				return output.List(a.printer(), ancestryDoc(line), line, func(i region.ImageAncestor) string { return string(i.ImageID) }, []col{
					{Title: "IMAGE", Text: func(i region.ImageAncestor) string { return string(i.ImageID) }},
					{Title: "SOURCE", Text: func(i region.ImageAncestor) string { return string(i.SourceImageID) }},
					{Title: "CREATED", Text: func(i region.ImageAncestor) string { return stamp(i.CreationDate) }},
				})
			})
		},
	}
}
