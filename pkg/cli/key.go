package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func keysDoc(all []ami.KeyPair) any { return map[string]any{"KeyPairs": nonNil(all)} }

func (a *app) printKeys(all []ami.KeyPair) error {
	type col = output.Column[ami.KeyPair]
	return output.List(a.printer(), keysDoc(all), all, func(k ami.KeyPair) string { return string(k.KeyPairID) }, []col{
		{Title: "NAME", Text: func(k ami.KeyPair) string { return k.KeyName }},
		{Title: "ID", Text: func(k ami.KeyPair) string { return string(k.KeyPairID) }},
		{Title: "TYPE", Text: func(k ami.KeyPair) string { return k.KeyType }},
		{Title: "FINGERPRINT", Text: func(k ami.KeyPair) string { return k.KeyFingerprint }},
	})
}

func (a *app) key() *cobra.Command {
	return group("key", "Make and keep key pairs", "  kami key create me\n  kami launch web-1 --key-name me", a.keyCreate(), a.keyImport(),
		a.tag("key", "me", a.completeKeys, a.keyRef), a.untag("key", "me", a.completeKeys, a.keyRef),
		a.list("key pairs", "  kami key list", func(ctx context.Context, r *region.Region, in region.DescribeInput) error {
			all, err := r.DescribeKeyPairs(ctx, in)
			if err != nil {
				return err
			}
			return a.printKeys(all)
		}), a.keyDelete())
}

func (a *app) keyCreate() *cobra.Command {
	var keyType, save string
	var dry bool
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a key pair", Args: args(1, 1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Make a key pair. The private key stays in the region, readable by its owner
alone, where kami ssh finds it; --save writes a copy of it.`,
		Example: "  kami key create me\n  kami key create me --type rsa --save me.pem",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				k, err := createKey(c.Context(), r, given[0], keyType, save, dry)
				if err != nil {
					return err
				}
				return a.printKeys([]ami.KeyPair{k})
			})
		},
	}
	c.Flags().StringVar(&keyType, "type", "ed25519", "`TYPE` of the key: ed25519 or rsa")
	completeValues(c, "type", "ed25519", "rsa")
	c.Flags().StringVar(&save, "save", "", "`FILE` to write the private key to; it must not exist")
	dryFlag(c, &dry)
	return c
}

// createKey makes a key pair, and saves its private key in a file that is opened
// first: a file that cannot be written leaves no key pair behind.
func createKey(ctx context.Context, r *region.Region, name, keyType, save string, dry bool) (ami.KeyPair, error) {
	if save == "" || dry {
		k, _, err := r.CreateKeyPair(ctx, name, keyType, dry)
		return k, err
	}
	f, err := os.OpenFile(save, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return ami.KeyPair{}, fmt.Errorf("the private key cannot be saved, so no key pair was made: %w", err)
	}
	k, private, err := r.CreateKeyPair(ctx, name, keyType, dry)
	if err != nil {
		return k, errors.Join(err, f.Close(), os.Remove(save))
	}
	_, err = f.Write(private)
	if err = errors.Join(err, f.Close()); err != nil {
		return k, fmt.Errorf("the key pair was made, but its private key cannot be saved: %w", err)
	}
	return k, nil
}

func (a *app) keyImport() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "import NAME FILE", Short: "Take over a public key", Args: args(2, 2),
		Long: `Take over a public key in OpenSSH's form, ed25519 or rsa. kami has no private key
of it, so kami ssh uses what ssh finds by itself, or --identity.`,
		Example: "  kami key import me ~/.ssh/id_ed25519.pub",
		RunE: func(c *cobra.Command, given []string) error {
			public, err := os.ReadFile(given[1])
			if err != nil {
				return fmt.Errorf("the public key cannot be read: %w", err)
			}
			return a.with(c.Context(), func(r *region.Region) error {
				k, err := r.ImportKeyPair(c.Context(), given[0], public, dry)
				if err != nil {
					return err
				}
				return a.printKeys([]ami.KeyPair{k})
			})
		},
	}
	dryFlag(c, &dry)
	return c
}

func (a *app) keyDelete() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Forget key pairs; guests that have one keep it", Args: args(1, -1), ValidArgsFunction: a.completeKeys,
		Example: "  kami key delete me",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				for _, name := range given {
					if err := r.DeleteKeyPair(c.Context(), name, dry); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	dryFlag(c, &dry)
	return c
}
