package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func permissionsDoc(p region.ImagePermissions) any {
	p.LaunchPermissions = nonNil(p.LaunchPermissions)
	return p
}

func (a *app) printPermissions(p region.ImagePermissions) error {
	type col = output.Column[ami.LaunchPermission]
	return output.List(a.printer(), permissionsDoc(p), p.LaunchPermissions, ami.LaunchPermission.String, []col{
		{Title: "LAUNCHED BY", Text: ami.LaunchPermission.String},
		{Title: "IS", Text: func(p ami.LaunchPermission) string {
			switch {
			case p.Group != "":
				return "everybody"
			case p.OrganizationARN != "":
				return "organisation"
			case p.OrganizationalUnitARN != "":
				return "unit of an organisation"
			}
			return "account"
		}},
	})
}

// ownImageID finds an image, kernel or ramdisk of the caller's by id or name.
func (a *app) ownImageID(ctx context.Context, r *region.Region, ref string) (ami.ImageID, error) {
	return r.ResolveOwnImage(ctx, ref)
}

func (a *app) imagePermission() *cobra.Command {
	return group("permission", "Say who may find and launch an image",
		"  kami image permission add web-1 123456789012\n  kami image permission list web-1\n  kami image permission reset web-1",
		a.permissionList(), a.permissionChange("add", "Share an image", false), a.permissionChange("remove", "Share an image with fewer", true), a.permissionReset(), a.permissionCancel())
}

func (a *app) permissionList() *cobra.Command {
	return &cobra.Command{
		Use: "list IMAGE", Aliases: []string{"ls"}, Short: "List whom an image is shared with", Args: args(1, 1), ValidArgsFunction: once(a.completeImages),
		Example: "  kami image permission list web-1\n  kami image permission list web-1 -o id",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				id, err := a.ownImageID(c.Context(), r, given[0])
				if err != nil {
					return err
				}
				p, err := r.DescribeLaunchPermissions(c.Context(), id)
				if err != nil {
					return err
				}
				return a.printPermissions(p)
			})
		},
	}
}

// permissionChange makes the verbs that add and remove permissions.
func (a *app) permissionChange(verb, short string, remove bool) *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: verb + " IMAGE WHO...", Short: short, Args: args(2, -1), ValidArgsFunction: once(a.completeImages),
		Example: "  kami image permission " + verb + " web-1 123456789012\n  kami image permission " + verb + " web-1 all\n  kami image permission " + verb + " web-1 arn:aws:organizations::123456789012:organization/o-a1b2c3d4e5",
		Long: short + `: all or none of those that are named.
WHO is an account of 12 digits, all for everybody, or the ARN of an organisation
or of a unit of one. Whoever an image is shared with may launch it, and through it
read its snapshots, but not change it, see its tags, or read its snapshots apart
from it. An image cannot be public that is encrypted or paid for, nor while the
region blocks that.`,
		RunE: func(c *cobra.Command, given []string) error {
			var who []ami.LaunchPermission
			var errs []error
			for _, s := range given[1:] {
				p, err := ami.ParseLaunchPermission(s)
				who, errs = append(who, p), append(errs, err)
			}
			if err := errors.Join(errs...); err != nil {
				return err
			}
			in := region.ShareImageInput{Add: who, DryRun: dry}
			if remove {
				in.Add, in.Remove = nil, who
			}
			return a.with(c.Context(), func(r *region.Region) (err error) {
				if in.ImageID, err = a.ownImageID(c.Context(), r, given[0]); err != nil {
					return err
				}
				p, err := r.ShareImage(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printPermissions(p)
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func (a *app) permissionReset() *cobra.Command {
	return a.imageVerb("reset IMAGE...", "Share an image with nobody", "  kami image permission reset web-1",
		"Take back every permission to launch an image: it is its owner's alone again.", a.ownImageID,
		func(ctx context.Context, r *region.Region, id ami.ImageID, dry bool) error {
			return r.ResetLaunchPermissions(ctx, id, dry)
		})
}

func (a *app) permissionCancel() *cobra.Command {
	return a.imageVerb("cancel IMAGE...", "Give up one's own permission to launch an image", "  kami image permission cancel ami-0123456789abcdef0",
		`Give up this account's permission to launch an image that another account shared
with it. What is shared with everybody or an organisation stays shared.`,
		func(ctx context.Context, r *region.Region, ref string) (ami.ImageID, error) {
			image, err := r.ResolveImage(ctx, ref, false)
			return image.ImageID, err
		},
		func(ctx context.Context, r *region.Region, id ami.ImageID, dry bool) error {
			return r.CancelLaunchPermission(ctx, id, dry)
		})
}

// imageVerb makes a verb that does one thing to images: to all of them or none.
func (a *app) imageVerb(use, short, example, long string, find func(context.Context, *region.Region, string) (ami.ImageID, error), do func(context.Context, *region.Region, ami.ImageID, bool) error) *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example, Args: args(1, -1), ValidArgsFunction: a.completeImages,
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				return allOrNone(given, dry, func(ref string, dry bool) error {
					id, err := find(c.Context(), r, ref)
					if err != nil {
						return err
					}
					return do(c.Context(), r, id, dry)
				})
			})
		},
	}
	dryFlag(c, &dry)
	return c
}
