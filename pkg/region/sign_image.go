package region

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/catalog"
)

// EC2 knows no signatures of images. Ours are of the image's manifest, which names
// its disks by their content digests: whatever has the same content, in which region
// and however encoded, has the same signatures.

// maxSignatures is how many signatures one image has at most.
const maxSignatures = 16

// SignImageInput asks for a signature of an image.
type SignImageInput struct {
	ImageID ami.ImageID
	// Key is the path of a private key, OpenSSH's ed25519 or minisign's; "" is the
	// region's own. With Signature it is that of a public key.
	Key       string
	Signature string // the path of a signature of the manifest that was made elsewhere; "" makes one
	DryRun    bool
}

// ImageManifest is the text that signatures of an image are of, by the digests that
// the catalog has: nothing is read but records.
func (r *Region) ImageManifest(ctx context.Context, image ami.Image) (text []byte, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		text, err = r.manifestNow(tx, image)
		return err
	})
	return text, storeError(err, "The image %s cannot be read.", image.ImageID)
}

// manifestNow is ImageManifest in a transaction.
func (r *Region) manifestNow(tx *catalog.Tx, image ami.Image) ([]byte, error) {
	if image.ImageType != ami.ImageTypeMachine {
		return nil, ami.Errorf(ami.CodeUnsupportedOperation, "%s is a %s; machine images are signed, with the kernel that they start.", image.ImageID, image.ImageType)
	}
	var snaps []ami.Snapshot
	for _, id := range snapshotsOf(image) {
		snap, err := tx.Snapshot(id)
		if err != nil {
			return nil, notFoundOr(err, notFoundSnapshot(id))
		}
		snaps = append(snaps, snap)
	}
	var kernels []ami.Image
	for _, id := range []string{string(image.KernelID), string(image.RamdiskID)} {
		kernel, err := tx.Image(ami.ImageID(id))
		if errors.Is(err, catalog.ErrNotFound) { // pv-grub, none, or one that is missed then
			continue
		}
		if err != nil {
			return nil, err
		}
		kernels = append(kernels, kernel)
	}
	return manifestText(image, snaps, kernels)
}

func manifestText(image ami.Image, snaps []ami.Snapshot, kernels []ami.Image) ([]byte, error) {
	m, err := ami.NewImageManifest(image, snaps, kernels)
	if err != nil {
		return nil, err
	}
	return m.Text()
}

// SignImage puts a signature to an image of the caller's, in the place of one by the
// same key.
func (r *Region) SignImage(ctx context.Context, in SignImageInput) (ami.Image, error) {
	signature, err := r.signing(ctx, in)
	if err != nil {
		return ami.Image{}, err
	}
	return r.editImage(ctx, in.ImageID, in.DryRun, "sign", func(tx *catalog.Tx, i *ami.Image) error {
		if i.State != ami.ImageAvailable && i.State != ami.ImageDisabled {
			return ami.Errorf(ami.CodeIncorrectState, "The image %s is %s; one that is complete can be signed.", i.ImageID, i.State)
		}
		text, err := r.manifestNow(tx, *i)
		if err != nil {
			return err
		}
		sig, err := signature(text)
		if err != nil {
			return err
		}
		sig.SigningTime = r.now().Truncate(time.Second)
		i.Signatures = slices.DeleteFunc(slices.Clone(i.Signatures), func(s ami.ImageSignature) bool { return s.KeyFingerprint == sig.KeyFingerprint })
		if i.Signatures = append(i.Signatures, sig); len(i.Signatures) > maxSignatures {
			return ami.Errorf(ami.CodeResourceLimitExceeded, "The image %s has %d signatures; there are at most that many.", i.ImageID, maxSignatures).
				WithHint("kami image sign %s --remove FINGERPRINT takes one away.", i.ImageID)
		}
		return nil
	})
}

// signing returns what makes the signature of a manifest that is asked for.
func (r *Region) signing(ctx context.Context, in SignImageInput) (func(manifest []byte) (ami.ImageSignature, error), error) {
	record := func(key bundle.TrustedKey, file []byte, format string) ami.ImageSignature {
		return ami.ImageSignature{KeyFingerprint: key.Fingerprint, Format: format, PublicKey: key.PublicKey, Signature: string(file)}
	}
	if in.Signature == "" {
		signer, err := r.imageSigner(ctx, in.Key)
		return func(manifest []byte) (ami.ImageSignature, error) {
			file, format, err := signer.Sign(manifest)
			return record(signer.PublicKey(), file, format), storeError(err, "The image cannot be signed.")
		}, err
	}
	file, err := os.ReadFile(in.Signature)
	if err != nil {
		return nil, ami.Errorf(ami.CodeInvalidParameterValue, "The signature cannot be read: %w.", err)
	}
	known, err := r.keyring().Trusted()
	if err != nil {
		return nil, storeError(err, "The keys that are trusted cannot be read.")
	}
	if in.Key != "" {
		b, err := os.ReadFile(in.Key)
		if err != nil {
			return nil, ami.Errorf(ami.CodeInvalidKeyFormat, "The key cannot be read: %w.", err)
		}
		if known, err = bundle.ParseKeys(b); err != nil {
			return nil, badImageKey(err, in.Key, "Beside a signature --key is of the public key: the .pub file of ssh-keygen -t ed25519, or minisign.pub.")
		}
	}
	return func(manifest []byte) (ami.ImageSignature, error) {
		key, format, err := bundle.VerifyImage(manifest, file, known...)
		if err == nil && in.Key != "" && !slices.ContainsFunc(known, key.Same) {
			err = bundle.ErrSignature
		}
		if err != nil {
			return ami.ImageSignature{}, ami.Errorf(ami.CodeInvalidManifest, "%s is no signature of this image: %w.", in.Signature, err).
				WithHint("Sign what kami image manifest prints, byte for byte; of a key of minisign's that is not trusted, give the public key by --key.")
		}
		return record(key, file, format), nil
	}, nil
}

// imageSigner reads a private key; "" is the region's own.
func (r *Region) imageSigner(ctx context.Context, path string) (bundle.ImageSigner, error) {
	if path == "" {
		key, err := r.keyring().Key(ctx, "kami "+r.opts.Name)
		return bundle.NewImageSigner(key), storeError(err, "The region's key cannot be had.")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return bundle.ImageSigner{}, ami.Errorf(ami.CodeInvalidKeyFormat, "The key cannot be read: %w.", err)
	}
	signer, err := bundle.ParseImageSigner(b)
	return signer, badImageKey(err, path, "Images are signed with a private ed25519 key of OpenSSH's (ssh-keygen -t ed25519) or one of minisign's.")
}

func badImageKey(err error, path, hint string) error {
	switch {
	case errors.Is(err, bundle.ErrEncryptedKey):
		return ami.Errorf(ami.CodeInvalidKeyFormat, "%s cannot be used: %w.", path, err).
			WithHint("Sign what kami image manifest prints with ssh-keygen -Y sign -n %s, or minisign -S, and give that by --signature.", bundle.ImageNamespace)
	case err != nil:
		return ami.Errorf(ami.CodeInvalidKeyFormat, "%s cannot be used: %w.", path, err).WithHint("%s", hint)
	}
	return nil
}

// UnsignImage takes the signature by a key away from an image of the caller's.
func (r *Region) UnsignImage(ctx context.Context, id ami.ImageID, fingerprint string, dry bool) (ami.Image, error) {
	fingerprint = fullFingerprint(fingerprint)
	return r.editImage(ctx, id, dry, "take a signature away from", func(_ *catalog.Tx, i *ami.Image) error {
		left := slices.DeleteFunc(slices.Clone(i.Signatures), func(s ami.ImageSignature) bool { return s.KeyFingerprint == fingerprint })
		if len(left) == len(i.Signatures) {
			return ami.Errorf(ami.CodeInvalidParameterValue, "The image %s has no signature by %s.", i.ImageID, fingerprint).
				WithHint("kami image verify %s shows those that it has.", i.ImageID)
		}
		i.Signatures = left
		return nil
	})
}
