package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) printKMSKeys(all []region.KMSKey) error {
	type col = output.Column[region.KMSKey]
	doc := map[string]any{"Keys": nonNil(all)}
	return output.List(a.printer(), doc, all, func(k region.KMSKey) string { return k.KeyID }, []col{
		{Title: "KEY", Text: func(k region.KMSKey) string { return k.KeyID }},
		{Title: "ALIAS", Text: func(k region.KMSKey) string { return k.Alias }},
		{Title: "CREATED", Text: func(k region.KMSKey) string { return stamp(k.Created) }},
		{Title: "USED BY", Text: func(k region.KMSKey) string { return usedBy(k.UsedBy) }},
		{Title: "DESCRIPTION", Text: func(k region.KMSKey) string { return k.Description }},
	})
}

func (a *app) kms() *cobra.Command {
	return group("kms", "Make and keep the keys that encrypt volumes", `  kami kms create --alias alias/web
  kami volume create --size 8 --encrypted --kms-key-id alias/web`, a.kmsCreate(), a.kmsList(), a.kmsDelete())
}

func (a *app) kmsCreate() *cobra.Command {
	var alias, description string
	var dry bool
	c := &cobra.Command{
		Use: "create", Short: "Make a key", Args: args(0, 0), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Make a key of 256 random bits. It stays in the region's folder kms, in a file that
only its owner can read: keep a copy of that folder elsewhere, for without the key
what it encrypts is lost.`,
		Example: "  kami kms create --alias alias/web --description web",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				k, err := r.CreateKMSKey(c.Context(), alias, description, dry)
				if err != nil {
					return err
				}
				return a.printKMSKeys([]region.KMSKey{k})
			})
		},
	}
	c.Flags().StringVar(&alias, "alias", "", "a `NAME` for the key: alias/…")
	c.Flags().StringVar(&description, "description", "", "`TEXT` that says what it is for")
	dryFlag(c, &dry)
	return c
}

func (a *app) kmsList() *cobra.Command {
	return &cobra.Command{
		Use: "list [KEY...]", Aliases: []string{"ls", "show"}, Short: "Show the keys, and what needs them", ValidArgsFunction: a.completeKMSKeys,
		Example: "  kami kms list\n  kami kms list alias/web -o json --query 'Keys[].UsedBy'",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.DescribeKMSKeys(c.Context(), given...)
				if err != nil {
					return err
				}
				return a.printKMSKeys(all)
			})
		},
	}
}

func (a *app) kmsDelete() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "delete KEY...", Aliases: []string{"rm"}, Short: "Destroy keys that nothing needs", Args: args(1, -1), ValidArgsFunction: a.completeKMSKeys,
		Example: "  kami kms delete alias/web",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				return allOrNone(given, dry, func(name string, dry bool) error { return r.DeleteKMSKey(c.Context(), name, dry) })
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

// encryptionFlags adds --encrypted and --kms-key-id. It returns what was said by
// the first: nil for nothing.
func (a *app) encryptionFlags(c *cobra.Command, key *string) func() *bool {
	var encrypted bool
	c.Flags().BoolVar(&encrypted, "encrypted", false, "encrypt it")
	c.Flags().StringVar(key, "kms-key-id", "", "`KEY` to encrypt it with: an id or an alias (default the snapshot's, or the region's own)")
	must(c.RegisterFlagCompletionFunc("kms-key-id", a.completeKMSKeys))
	return func() *bool {
		if !c.Flags().Changed("encrypted") {
			return nil
		}
		return &encrypted
	}
}

func (a *app) snapshotCopy() *cobra.Command {
	var in region.CopySnapshotInput
	var tags []string
	var encrypted func() *bool
	c := &cobra.Command{
		Use: "copy SNAPSHOT", Aliases: []string{"cp"}, Short: "Copy a snapshot, and encrypt it", Args: args(1, 1), ValidArgsFunction: once(a.completeSnapshots),
		Long: `Copy a snapshot. The copy costs nothing, unless it is encrypted where the snapshot
is not, or with another key: then all of it is written anew. A copy of what is
encrypted is encrypted.`,
		Example: "  kami snapshot copy snap-0123456789abcdef0 --encrypted\n  kami snapshot copy snap-0123456789abcdef0 --encrypted --kms-key-id alias/web",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if in.Tags, err = parseTags(tags); err != nil {
				return err
			}
			in.SnapshotID, in.Encrypted = ami.SnapshotID(given[0]), encrypted()
			return a.with(c.Context(), func(r *region.Region) error {
				s, err := r.CopySnapshot(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printSnapshots([]ami.Snapshot{s})
			})
		},
	}
	encrypted = a.encryptionFlags(c, &in.KmsKeyID)
	c.Flags().StringVar(&in.Description, "description", "", "`TEXT` of at most 255 characters (default names the source)")
	tagFlag(c, &tags)
	dryFlag(c, &in.DryRun)
	return c
}

// usedBy names the first of what needs a key, and says how many more there are.
func usedBy(ids []string) string {
	if len(ids) > 2 {
		return fmt.Sprintf("%s and %d more", ids[0], len(ids)-1)
	}
	return strings.Join(ids, ", ")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
