package cli

import (
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) printEC2Bundle(b region.EC2Bundle) error {
	type col = output.Column[region.EC2Bundle]
	return output.List(a.printer(), b, []region.EC2Bundle{b}, func(b region.EC2Bundle) string { return b.Manifest }, []col{
		{Title: "MANIFEST", Text: func(b region.EC2Bundle) string { return b.Manifest }},
		{Title: "ARCH", Text: func(b region.EC2Bundle) string { return b.Architecture }},
		{Title: "SIZE", Text: func(b region.EC2Bundle) string { return output.Bytes(b.ImageBytes) }},
		{Title: "BUNDLED", Text: func(b region.EC2Bundle) string { return output.Bytes(b.BundledBytes) }},
		{Title: "PARTS", Text: func(b region.EC2Bundle) string { return fmt.Sprint(b.Parts) }},
		{Title: "USER", Text: func(b region.EC2Bundle) string { return b.User }},
	})
}

// ec2KeyFlags adds --cert and --privatekey, named as ec2-ami-tools name them.
func ec2KeyFlags(c *cobra.Command, to *region.EC2Keys, whose string) {
	c.Flags().StringVar(&to.Cert, "cert", "", "PEM `FILE` of the X.509 certificate of the bundle's user (default the account's, of this region)")
	c.Flags().StringVar(&to.PrivateKey, "privatekey", "", "PEM `FILE` of the RSA private key "+whose+" (default the account's, of this region)")
}

func (a *app) bundleExport() *cobra.Command {
	var in region.ExportEC2Input
	var arch string
	c := &cobra.Command{
		Use: "export IMAGE|SNAPSHOT|BUNDLE|FILE", Short: "Write a bundle in EC2's own old format", Args: args(1, 1),
		ValidArgsFunction: func(c *cobra.Command, given []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(given) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			ids, _ := a.completeImages(c, given, word)
			bundles, _ := a.completeBundles(c, given, word)
			return append(ids, bundles...), cobra.ShellCompDirectiveDefault
		},
		Long: `Write the root of an image, a snapshot, a bundle, or a raw file in the bundle
format of ec2-ami-tools and euca2ools: encrypted parts of 10 MiB and
PREFIX.manifest.xml, version 2007-10-10. The parts are written while they are
made; the manifest is the last.

The bundle is signed by its user and encrypted to the user and to the cloud that
it is for. Where no keys are given the region makes its own, which lie in its
folder ec2-bundles.`,
		Example: "  kami bundle export ami-0123456789abcdef0 --to /srv/bundles\n" +
			"  kami bundle export root.img --to 's3://images/web' --prefix web --cert cert.pem --privatekey pk.pem --ec2cert cert-ec2.pem --user 123456789012",
		RunE: func(c *cobra.Command, given []string) (err error) {
			in.Source = given[0]
			if _, serr := os.Stat(in.Source); serr == nil {
				if in.Source, err = filepath.Abs(in.Source); err != nil {
					return err
				}
			}
			if err := oneOf("architecture", arch, architectures()...); err != nil {
				return err
			}
			in.Architecture = ami.Architecture(arch)
			if in.To == "" {
				return usagef("it is not said where to: --to names a directory or an object store")
			}
			return a.with(c.Context(), func(r *region.Region) error {
				b, err := r.ExportEC2Bundle(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printEC2Bundle(b)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.To, "to", "", "directory or object store to write to: a path, s3://BUCKET/PREFIX or sftp://HOST/DIRECTORY, as `STORE`")
	f.StringVar(&in.Prefix, "prefix", "", "`NAME` of the bundle's files (default that of the source)")
	f.StringVar(&in.User, "user", "", "`ACCOUNT` that the bundle is of (default the caller's)")
	f.StringVar(&arch, "architecture", "", "`ARCH` of the machine: x86_64, arm64 or i386 (default the source's)")
	f.StringVar(&in.KernelID, "kernel", "", "`ID` of the kernel (default the source's)")
	f.StringVar(&in.RamdiskID, "ramdisk", "", "`ID` of the ramdisk (default the source's)")
	f.StringSliceVar(&in.ProductCodes, "product-codes", nil, "product `CODES` that the bundle carries, with commas between them")
	f.StringSliceVar(&in.Mapping, "block-device-mapping", nil, "`VIRTUAL=DEVICE` pairs, as root=/dev/sda1,ephemeral0=sdb (default the source's)")
	ec2KeyFlags(c, &in.EC2Keys, "that signs")
	f.StringVar(&in.EC2Cert, "ec2cert", "", "PEM `FILE` of the certificate of the cloud that it is for (default the region's own)")
	bundleStoreFlag(c, &in.Store)
	allowUnsignedFlag(c, &in.AllowUnsigned)
	f.BoolVar(&in.Replace, "replace", false, "write over a bundle of that name, or what is left of one")
	f.BoolVar(&in.Decrypt, "decrypt", false, "bundle what is in an encrypted snapshot")
	dryFlag(c, &in.DryRun)
	completeValues(c, "architecture", architectures()...)
	return c
}

func (a *app) bundleImport() *cobra.Command {
	var in region.ImportEC2Input
	var file string
	var mappings []string
	c := &cobra.Command{
		Use: "import MANIFEST [BUNDLE]", Short: "Read a bundle in EC2's own old format", Args: args(1, 2),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault // files
		},
		Long: `Read a bundle that ec2-ami-tools, euca2ools or kami bundle export made, by its
manifest - a path, a URL, or a name in --from - and make a bundle of kami's of
it, or with --to-file a raw file.

The manifest's signature is verified by the certificate of the user who made it,
each part and the whole image by their digests; nothing has its name before all of
that is done. The private key is the user's, or that of the cloud that the bundle
was made for: either fits.`,
		Example: "  kami bundle import old/image.manifest.xml images/old --cert cert.pem --privatekey pk.pem\n" +
			"  kami bundle import image.manifest.xml --from s3://images/old --to-file root.img",
		RunE: func(c *cobra.Command, given []string) (err error) {
			if in.Manifest, in.From, err = manifestIn(given[0], in.From); err != nil {
				return err
			}
			if in.BlockDeviceMappings, err = parseMappings(mappings); err != nil {
				return err
			}
			if (len(given) == 2) == (file != "") {
				return usagef("say either which bundle to make, BUCKET/NAME, or --to-file")
			}
			return a.with(c.Context(), func(r *region.Region) error {
				if file != "" {
					return a.unpackEC2(c, r, in, file)
				}
				in.Location = given[1]
				b, err := r.ImportEC2Bundle(c.Context(), in)
				if err != nil {
					return err
				}
				return a.printBundles([]region.Bundle{b})
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.From, "from", "", "directory or object store that holds the manifest and its parts, as `STORE` (default the manifest's own)")
	f.StringVar(&file, "to-file", "", "`FILE` to unpack to, raw, instead of a bundle")
	ec2KeyFlags(c, &in.EC2Keys, "of the bundle's user, or of its cloud")
	f.BoolVar(&in.NoVerifySignature, "no-verify-signature", false, "take the manifest whoever signed it")
	f.StringVar(&in.Name, "name", "", "`NAME` of what is in the bundle (default the bundle's own)")
	f.StringVar((*string)(&in.KernelID), "kernel", "", "kernel that its guests start with, an `AKI` (default the manifest's where the region has it, else pv-grub)")
	f.StringVar((*string)(&in.RamdiskID), "ramdisk", "", "ramdisk that goes with the kernel, an `ARI`")
	f.BoolVar(&in.BundleSpec.Unsigned, "unsigned", false, "do not sign the bundle that is made")
	bundleStoreFlag(c, &in.Store)
	mappingFlag(c, &mappings)
	dryFlag(c, &in.DryRun)
	return c
}

func (a *app) unpackEC2(c *cobra.Command, r *region.Region, in region.ImportEC2Input, file string) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	b, err := r.UnpackEC2Bundle(c.Context(), region.UnpackEC2Input{ReadEC2Input: in.ReadEC2Input, File: file, DryRun: in.DryRun})
	if err != nil {
		return err
	}
	return a.printEC2Bundle(b)
}

// manifestIn is a manifest's name and the store that it is in: given, or where the
// manifest's own path or URL says.
func manifestIn(manifest, store string) (name, in string, err error) {
	switch {
	case store != "":
		return manifest, store, nil
	case strings.Contains(manifest, "://"):
		u, err := url.Parse(manifest)
		if err != nil || path.Base(u.Path) == "/" || path.Base(u.Path) == "." {
			return "", "", usagef("%s is no manifest in a store; --from names the store apart", manifest)
		}
		name = path.Base(u.Path)
		u.Path, u.RawPath = path.Dir(u.Path), ""
		return name, u.String(), nil
	}
	abs, err := filepath.Abs(manifest)
	return filepath.Base(abs), filepath.Dir(abs), err
}
