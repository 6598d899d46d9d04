package cli

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func bundlesDoc(all []region.Bundle) any { return map[string]any{"Bundles": nonNil(all)} }

func (a *app) bundle() *cobra.Command {
	return group("bundle", "Pack filesystems into an object store, and back",
		"  kami bundle create rootfs.tar.zst images/web-1\n  kami bundle list\n  kami bundle unpack images/web-1 root.img",
		a.bundleCreate(), a.bundleInstance(), a.bundleList(), a.bundleShow(), a.bundleVerify(), a.bundleUnpack(), a.bundleDelete(), a.bundleTrust(),
		a.bundleExport(), a.bundleImport())
}

func (a *app) printBundles(all []region.Bundle) error {
	type col = output.Column[region.Bundle]
	return output.List(a.printer(), bundlesDoc(all), all, func(b region.Bundle) string { return b.Location }, []col{
		{Title: "BUNDLE", Text: func(b region.Bundle) string { return strings.TrimSuffix(b.Location, ".manifest") }},
		{Title: "NAME", Text: func(b region.Bundle) string { return b.Manifest.Name }},
		{Title: "ARCH", Text: func(b region.Bundle) string { return string(b.Manifest.Architecture) }},
		{Title: "TYPE", Text: func(b region.Bundle) string { return b.Manifest.VirtualizationType }},
		{Title: "PARTITION", Text: func(b region.Bundle) string { return b.Manifest.Partition }},
		{Title: "SIZE", Text: func(b region.Bundle) string { return output.Bytes(b.Manifest.Size) }},
		{Title: "SIGNED", Text: signedBy},
		{Title: "CREATED", Text: func(b region.Bundle) string { return stampIf(b.Manifest.CreationDate) }},
	})
}

// signedBy says in a word whether a bundle is to be trusted.
func signedBy(b region.Bundle) string {
	switch {
	case b.Trusted:
		return "trusted"
	case b.Signer != "":
		return "foreign"
	case b.Problem != "":
		return "damaged"
	}
	return "no"
}

// bundleStoreFlag adds --store.
func bundleStoreFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "store", "", "object `STORE` that holds the bundles: a directory, s3://BUCKET/PREFIX or sftp://USER@HOST/DIRECTORY (default object_store of config.toml, else the region's own)")
}

func allowUnsignedFlag(c *cobra.Command, to *bool) {
	c.Flags().BoolVar(to, "allow-unsigned", false, "take a bundle that is not signed, or by a key that is not trusted")
}

// completeBundles offers the bundles of the region's own store.
func (a *app) completeBundles(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, func(r *region.Region) (out []string) {
		all, _ := r.ListBundles(c.Context(), "", "", false)
		for _, b := range all {
			out = append(out, strings.TrimSuffix(b.Location, ".manifest")+"\t"+b.Manifest.Name)
		}
		return out
	})
}

func (a *app) bundleList() *cobra.Command {
	var store string
	var allow bool
	c := &cobra.Command{
		Use: "list [BUCKET]", Aliases: []string{"ls"}, Short: "List bundles", Args: args(0, 1), ValidArgsFunction: cobra.NoFileCompletions,
		Long: `List the bundles of a bucket, or of all. One that is signed by a key that is not
trusted is listed as foreign; unsigned ones are listed with --allow-unsigned.`,
		Example: "  kami bundle list\n  kami bundle list images --store s3://kami/eu -o json",
		RunE: func(c *cobra.Command, given []string) error {
			bucket := strings.Join(given, "")
			return a.with(c.Context(), func(r *region.Region) error {
				all, err := r.ListBundles(c.Context(), store, bucket, allow)
				if err != nil {
					return err
				}
				return a.printBundles(all)
			})
		},
	}
	bundleStoreFlag(c, &store)
	allowUnsignedFlag(c, &allow)
	return c
}

func (a *app) bundleShow() *cobra.Command {
	var ref region.BundleRef
	c := &cobra.Command{
		Use: "show BUNDLE", Short: "Show all that a bundle says of itself", Args: args(1, 1), ValidArgsFunction: once(a.completeBundles),
		Example: "  kami bundle show images/web-1\n  kami bundle show images/web-1 --query 'Bundles[0].Manifest.ContentDigest'",
		RunE: func(c *cobra.Command, given []string) error {
			ref.Location = given[0]
			return a.with(c.Context(), func(r *region.Region) error {
				b, err := r.DescribeBundle(c.Context(), ref)
				if err != nil {
					return err
				}
				a.wide()
				return a.printBundles([]region.Bundle{b})
			})
		},
	}
	bundleStoreFlag(c, &ref.Store)
	allowUnsignedFlag(c, &ref.AllowUnsigned)
	return c
}

func (a *app) bundleVerify() *cobra.Command {
	var ref region.BundleRef
	c := &cobra.Command{
		Use: "verify BUNDLE", Short: "Read all of a bundle and say what is wrong", Args: args(1, 1), ValidArgsFunction: once(a.completeBundles),
		Long: `Read every chunk of a bundle and hold it against its digest, and the whole
against the manifest's. Chunks that are wrong or missing are listed, with where
in the disk they are needed, and the exit status is 1.`,
		Example: "  kami bundle verify images/web-1",
		RunE: func(c *cobra.Command, given []string) error {
			ref.Location = given[0]
			return a.with(c.Context(), func(r *region.Region) error {
				rep, err := r.VerifyBundle(c.Context(), ref)
				if err != nil {
					return err
				}
				type fault = region.BundleFault
				type col = output.Column[fault]
				err = output.List(a.printer(), rep, rep.Faults, func(f fault) string { return f.Chunk }, []col{
					{Title: "CHUNK", Text: func(f fault) string { return f.Chunk }},
					{Title: "OFFSET", Text: func(f fault) string { return strconv.FormatInt(f.Offset, 10) }},
					{Title: "SIZE", Text: func(f fault) string { return strconv.FormatInt(f.Size, 10) }},
					{Title: "FAULT", Text: func(f fault) string { return f.Fault }},
				})
				if err == nil && len(rep.Faults) > 0 {
					return ami.Errorf(ami.CodeInvalidManifest, "The bundle %q is damaged: %d of its chunks are wrong or missing.", ref.Location, len(rep.Faults)).
						WithHint("Pack the same template into the same bucket again: chunks that are missing are stored anew.")
				}
				return err
			})
		},
	}
	bundleStoreFlag(c, &ref.Store)
	allowUnsignedFlag(c, &ref.AllowUnsigned)
	return c
}

func (a *app) bundleUnpack() *cobra.Command {
	var in region.UnpackBundleInput
	c := &cobra.Command{
		Use: "unpack BUNDLE FILE", Short: "Write a bundle to a disk file", Args: args(2, 2), ValidArgsFunction: thenFile(a.completeBundles),
		Long: `Write a bundle's filesystem or disk to a file: raw, where zeros are holes, or
qcow2. Every chunk is verified; the file has its name once it is complete.`,
		Example: "  kami bundle unpack images/web-1 root.img\n  kami bundle unpack images/web-1 root.qcow2",
		RunE: func(c *cobra.Command, given []string) (err error) {
			in.Location = given[0]
			if in.Path, err = filepath.Abs(given[1]); err != nil {
				return err
			}
			return a.with(c.Context(), func(r *region.Region) error { return r.UnpackBundle(c.Context(), in) })
		},
	}
	c.Flags().StringVar(&in.Format, "format", "", "`FORMAT` of the file: "+strings.Join(region.BundleFormats(), ", ")+" (default by its ending, else raw)")
	completeValues(c, "format", region.BundleFormats()...)
	bundleStoreFlag(c, &in.Store)
	allowUnsignedFlag(c, &in.AllowUnsigned)
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) bundleDelete() *cobra.Command {
	var in region.DeleteBundleInput
	c := &cobra.Command{
		Use: "delete BUNDLE...", Aliases: []string{"rm"}, Short: "Delete bundles", Args: args(1, -1), ValidArgsFunction: a.completeBundles,
		Long: `Delete bundles, and with them the chunks that no other bundle of the same bucket
needs. What was made of a bundle already lives on.`,
		Example: "  kami bundle delete images/web-1",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				var freed int64
				err := allOrNone(given, in.DryRun, func(ref string, dry bool) error {
					one := in
					one.Location, one.DryRun = ref, dry
					swept, err := r.DeleteBundle(c.Context(), one)
					freed += swept.Bytes
					return err
				})
				if err == nil && a.progress != nil && output.IsTerminal(a.err) {
					a.progress.Note("freed %s", output.Bytes(freed))
				}
				return err
			})
		},
	}
	bundleStoreFlag(c, &in.Store)
	dryFlag(c, &in.DryRun)
	return c
}

func bundleKeysDoc(all []region.BundleKey) any { return map[string]any{"Keys": nonNil(all)} }

func (a *app) bundleTrust() *cobra.Command {
	var remove string
	var dry bool
	c := &cobra.Command{
		Use: "trust [KEYFILE]", Short: "Say whose bundles and images are taken, or list the keys", Args: args(0, 1),
		Long: `Take bundles and images that are signed by the keys in a file: public ed25519 keys
in the form of OpenSSH, or one of minisign's, which signs images alone. Without a
file, list the keys that are trusted; the region's own is the one that kami bundle
create signs with, and what another region has to be given. The list is for all
accounts of the region, and changed by the default one.

The keys lie in the region's folder bundle-keys: its own, and those of others in
trusted, a file for ssh-keygen -Y verify.`,
		Example: "  kami bundle trust\n  kami bundle trust --query 'Keys[?Own].PublicKey' -o id >mine.pub\n  kami bundle trust theirs.pub",
		RunE: func(c *cobra.Command, given []string) error {
			if remove != "" && len(given) > 0 {
				return usagef("a key is either trusted or removed")
			}
			return a.with(c.Context(), func(r *region.Region) (err error) {
				var keys []region.BundleKey
				switch {
				case remove != "":
					return r.DistrustBundles(c.Context(), remove, dry)
				case len(given) == 1:
					keys, err = r.TrustBundles(c.Context(), given[0], dry)
				default:
					keys, err = r.BundleKeys(c.Context())
				}
				if err != nil {
					return err
				}
				type key = region.BundleKey
				return output.List(a.printer(), bundleKeysDoc(keys), keys, func(k key) string { return k.Fingerprint }, []output.Column[key]{
					{Title: "KEY", Text: func(k key) string { return k.Fingerprint }},
					{Title: "OWN", Text: func(k key) string { return yesNo(k.Own) }},
					{Title: "COMMENT", Text: func(k key) string { return k.Comment }},
				})
			})
		},
	}
	c.Flags().StringVar(&remove, "remove", "", "refuse bundles of the key with this `FINGERPRINT` again")
	must(c.RegisterFlagCompletionFunc("remove", func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.complete(c, func(r *region.Region) (out []string) {
			all, _ := r.BundleKeys(c.Context())
			for _, k := range slices.DeleteFunc(all, func(k region.BundleKey) bool { return k.Own }) {
				out = append(out, k.Fingerprint+"\t"+k.Comment)
			}
			return out
		})
	}))
	dryFlag(c, &dry)
	return c
}

// sizeOf reads a size in bytes, or in KiB, MiB, GiB or TiB by its unit.
func sizeOf(flag, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	units := []struct {
		suffix string
		shift  uint
	}{{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}, {"K", 10}, {"M", 20}, {"G", 30}, {"T", 40}, {"", 0}}
	for _, u := range units {
		digits, ok := strings.CutSuffix(s, u.suffix)
		if n, err := strconv.ParseInt(digits, 10, 64); ok && err == nil && n > 0 && n < 1<<(62-u.shift) {
			return n << u.shift, nil
		}
	}
	return 0, usageError{fmt.Errorf("the %s %q is not a number of bytes, or one with KiB, MiB, GiB or TiB behind it", flag, s)}
}
