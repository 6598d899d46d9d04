package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/region"
)

// tagFlag adds --tag to a command.
func tagFlag(c *cobra.Command, to *[]string) {
	c.Flags().StringArrayVar(to, "tag", nil, "tag to set, as `KEY=VALUE`; may be repeated")
	must(c.RegisterFlagCompletionFunc("tag", cobra.NoFileCompletions))
}

func parseTags(list []string) ([]ami.Tag, error) {
	var tags []ami.Tag
	for _, s := range list {
		t, err := ami.ParseTag(s)
		if err != nil {
			return nil, err
		}
		tags = append(tags, t)
	}
	return tags, nil
}

// A refFunc finds the id of what a person calls by id or name.
type refFunc func(context.Context, *region.Region, string) (string, error)

func (a *app) imageRef(ctx context.Context, r *region.Region, ref string) (string, error) {
	image, err := r.ResolveImage(ctx, ref, false)
	return string(image.ImageID), err
}

func (a *app) instanceRef(ctx context.Context, r *region.Region, ref string) (string, error) {
	id, err := a.instanceID(ctx, r, ref)
	return string(id), err
}

func (a *app) snapshotRef(_ context.Context, _ *region.Region, ref string) (string, error) {
	id, err := ami.ParseSnapshotID(ref)
	return string(id), err
}

func (a *app) volumeRef(_ context.Context, _ *region.Region, ref string) (string, error) {
	id, err := ami.ParseVolumeID(ref)
	return string(id), err
}

func (a *app) keyRef(ctx context.Context, r *region.Region, name string) (string, error) {
	all, err := r.DescribeKeyPairs(ctx, region.DescribeInput{IDs: []string{name}})
	if err != nil {
		return "", err
	}
	return string(all[0].KeyPairID), nil
}

// placeholder is a noun as it stands in a command's usage.
func placeholder(noun string) string { return strings.ToUpper(noun) }

func article(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

func (a *app) tag(noun, example string, complete cobra.CompletionFunc, find refFunc) *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "tag " + placeholder(noun) + " KEY=VALUE...", Short: "Set tags of " + article(noun), Args: args(2, -1), ValidArgsFunction: once(complete),
		Example: "  kami " + noun + " tag " + example + " stage=test owner=me",
		RunE: func(c *cobra.Command, given []string) error {
			tags, err := parseTags(given[1:])
			if err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error {
				id, err := find(c.Context(), r, given[0])
				if err != nil {
					return err
				}
				return r.CreateTags(c.Context(), []string{id}, tags, dry)
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func (a *app) untag(noun, example string, complete cobra.CompletionFunc, find refFunc) *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "untag " + placeholder(noun) + " KEY...", Short: "Remove tags of " + article(noun), Args: args(2, -1), ValidArgsFunction: once(complete),
		Example: "  kami " + noun + " untag " + example + " stage",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				id, err := find(c.Context(), r, given[0])
				if err != nil {
					return err
				}
				return r.DeleteTags(c.Context(), []string{id}, given[1:], dry)
			})
		},
	}
	dryFlag(c, &dry)
	return c
}
