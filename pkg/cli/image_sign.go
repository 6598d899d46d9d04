package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/output"
	"github.com/kamivm/kami/pkg/region"
)

func (a *app) imageSign() *cobra.Command {
	var in region.SignImageInput
	var remove string
	c := &cobra.Command{
		Use: "sign IMAGE", Short: "Sign an image, whose copies are signed then too", Args: args(1, 1), ValidArgsFunction: once(a.completeImages),
		Long: `Sign an image of this account's: with a private key, ed25519 of OpenSSH's or one
of minisign's, or without --key with the region's own. Several keys may sign it;
each has one signature.

What is signed is the image's manifest (kami image manifest), which names the
disks by what is in them. So the signature is of every copy too, also of one
that is stored, encrypted or encoded anew. What is made of a guest is another
image, which nobody has signed.

A key that is locked by a passphrase, or that is elsewhere, signs what kami
image manifest prints, and --signature puts its signature to the image:

  ssh-keygen -Y sign -n kami-image -f ~/.ssh/id_ed25519 web-1.txt
  minisign -S -s minisign.key -m web-1.txt`,
		Example: "  kami image sign web-1\n  kami image sign web-1 --key ~/.ssh/id_ed25519\n  kami image sign web-1 --signature web-1.txt.sig\n  kami image sign web-1 --signature web-1.txt.minisig --key minisign.pub",
		RunE: func(c *cobra.Command, given []string) error {
			if remove != "" && (in.Key != "" || in.Signature != "") {
				return usagef("a signature is either made or removed")
			}
			return a.with(c.Context(), func(r *region.Region) (err error) {
				if in.ImageID, err = a.ownImageID(c.Context(), r, given[0]); err != nil {
					return err
				}
				var image ami.Image
				if remove != "" {
					image, err = r.UnsignImage(c.Context(), in.ImageID, remove, in.DryRun)
				} else {
					image, err = r.SignImage(c.Context(), in)
				}
				if err != nil {
					return err
				}
				v, err := r.ImageSignatures(c.Context(), image)
				if err != nil {
					return err
				}
				return a.printSignatures(v)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&in.Key, "key", "", "`FILE` of the private key; with --signature, of the public one (default the region's own)")
	f.StringVar(&in.Signature, "signature", "", "`FILE` of a signature that was made elsewhere, by ssh-keygen -Y sign -n kami-image or minisign -S")
	f.StringVar(&remove, "remove", "", "take away the signature by the key with this `FINGERPRINT`")
	dryFlag(c, &in.DryRun)
	return c
}

func signaturesDoc(v region.VerifyImageResult) any {
	v.Signatures = nonNil(v.Signatures)
	return v
}

func (a *app) printSignatures(v region.VerifyImageResult) error {
	type verdict = region.SignatureVerdict
	type col = output.Column[verdict]
	return output.List(a.printer(), signaturesDoc(v), v.Signatures, func(s verdict) string { return s.KeyFingerprint }, []col{
		{Title: "KEY", Text: func(s verdict) string { return s.KeyFingerprint }},
		{Title: "FORMAT", Text: func(s verdict) string { return s.Format }},
		{Title: "VALID", Text: func(s verdict) string { return yesNo(s.Valid) }},
		{Title: "TRUSTED", Text: func(s verdict) string { return yesNo(s.Trusted) }},
		{Title: "COMMENT", Text: func(s verdict) string { return strings.TrimSpace(s.Comment + " " + s.Reason) }},
	})
}

func (a *app) imageVerify() *cobra.Command {
	return &cobra.Command{
		Use: "verify IMAGE", Short: "Read all of an image, and check who has signed it", Args: args(1, 1), ValidArgsFunction: once(a.completeImages),
		Long: `Read all that an image is made of: its layers are compared with their names, and
what a guest would see of its disks with the content digests that are signed.
Then tell of each signature whether it is of that, and whether its key is
trusted (kami bundle trust). It fails unless one signature at least is both.`,
		Example: "  kami image verify web-1\n  kami image verify web-1 --query 'Signatures[?Trusted].KeyFingerprint' -o json",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				image, err := r.ResolveImage(c.Context(), given[0], false)
				if err != nil {
					return err
				}
				v, err := r.VerifyImage(c.Context(), image)
				if v.Manifest == "" {
					return err
				}
				if perr := a.printSignatures(v); perr != nil {
					return perr
				}
				return err
			})
		},
	}
}

func (a *app) imageManifest() *cobra.Command {
	return &cobra.Command{
		Use: "manifest IMAGE", Short: "Print the text that signatures of an image are of", Args: args(1, 1), ValidArgsFunction: once(a.completeImages),
		Long: `Print the text that signatures of an image are of, byte for byte: what its
guests start with, and the size and content digest of each of its disks. It is
the same of each copy. Nothing is read but records. By hand a signature is
verified with it:

  ssh-keygen -Y verify -f allowed_signers -I kami -n kami-image \
    -s web-1.txt.sig <web-1.txt
  minisign -V -p minisign.pub -m web-1.txt`,
		Example: "  kami image manifest web-1 > web-1.txt",
		RunE: func(c *cobra.Command, given []string) error {
			return a.with(c.Context(), func(r *region.Region) error {
				image, err := r.ResolveImage(c.Context(), given[0], false)
				if err != nil {
					return err
				}
				text, err := r.ImageManifest(c.Context(), image)
				if err != nil {
					return err
				}
				_, err = a.out.Write(text)
				return err
			})
		},
	}
}

func (a *app) imageSignatures() *cobra.Command {
	var at []string
	var dry bool
	c := &cobra.Command{
		Use: "image-signatures [STATE]", Short: "Say whether images have to be signed here", Args: args(0, 1), ValidArgs: region.SignatureStates(),
		Long: `Show for what the region asks for a signature by a key that is trusted (kami
bundle trust), or set it. STATE is off, warn, in which what has none is told of,
or require, in which it is refused. It is for all accounts of the region, and set
by the default one.

--at says when: at a launch (of an instance, and of another root for one), at a
copy to this region, at an import of a stored image or a disk; without it, at
all three. A disk that is imported has no signature: it is imported where that
is not required, signed there, and copied.`,
		Example: "  kami region image-signatures\n  kami region image-signatures warn\n  kami region image-signatures require --at launch,copy",
		RunE: func(c *cobra.Command, given []string) error {
			if len(given) == 0 && len(at) > 0 {
				return usagef("--at goes with a state; %s", seeHelp(c))
			}
			var actions []region.SignedAction
			for _, s := range at {
				actions = append(actions, region.SignedAction(s))
			}
			return a.with(c.Context(), func(r *region.Region) (err error) {
				if len(given) > 0 {
					if _, err := r.SetSignaturePolicy(c.Context(), region.SignatureState(given[0]), actions, dry); err != nil {
						return err
					}
				}
				p, err := r.SignaturePolicy(c.Context())
				if err != nil {
					return err
				}
				type policy = region.SignaturePolicy
				type col = output.Column[policy]
				return output.List(a.printer(), p, []policy{p}, func(p policy) string { return fmt.Sprint(p.Launch) }, []col{
					{Title: "LAUNCH", Text: func(p policy) string { return string(p.Launch) }},
					{Title: "COPY", Text: func(p policy) string { return string(p.Copy) }},
					{Title: "IMPORT", Text: func(p policy) string { return string(p.Import) }},
				})
			})
		},
	}
	var actions []string
	for _, s := range region.SignedActions() {
		actions = append(actions, string(s))
	}
	c.Flags().StringSliceVar(&at, "at", nil, "`ACTIONS` that it is for: "+strings.Join(actions, ", ")+" (default all)")
	completeValues(c, "at", actions...)
	dryFlag(c, &dry)
	return c
}
