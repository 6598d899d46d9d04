package region

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// SignatureVerdict is what one signature of an image is worth.
type SignatureVerdict struct {
	KeyFingerprint string `json:"KeyFingerprint"`
	Comment        string `json:"Comment,omitempty"` // of the key, where it is trusted
	Format         string `json:"Format"`            // ssh or minisign
	Valid          bool   `json:"Valid"`             // it is of this image, and by that key
	Trusted        bool   `json:"Trusted"`           // the key is
	Reason         string `json:"Reason,omitempty"`  // why it is not valid
}

// VerifyImageResult is what verifying an image found.
type VerifyImageResult struct {
	ImageID    ami.ImageID        `json:"ImageId"`
	Manifest   string             `json:"Manifest"` // that signatures are of
	Signatures []SignatureVerdict `json:"Signatures"`
}

// VerifyImage reads all that an image's snapshots stand on, compares the layers with
// their names and what the guest would see with the content digests of the records,
// and says what the image's signatures are worth. It returns what is wrong beside
// that: InternalError where bytes are damaged, and what the launch of an image is
// refused with where signatures are required.
func (r *Region) VerifyImage(ctx context.Context, image ami.Image) (VerifyImageResult, error) {
	out, err := r.ImageSignatures(ctx, image)
	if err != nil {
		return out, err
	}
	if image.IsInstanceStore() {
		err = r.verifyImageBundle(ctx, image)
	} else {
		err = r.verifyContents(ctx, image)
	}
	if fault := signatureFault(image, out.Signatures); err == nil && fault != nil {
		return out, fault
	}
	return out, err
}

// judgeSignatures says what signatures of a manifest are worth.
func (r *Region) judgeSignatures(all []ami.ImageSignature, manifest []byte) ([]SignatureVerdict, error) {
	if len(all) == 0 {
		return nil, nil
	}
	trusted, err := r.keyring().Trusted()
	if err != nil {
		return nil, storeError(err, "The keys that are trusted cannot be read.")
	}
	out := make([]SignatureVerdict, len(all))
	for i, s := range all {
		v := SignatureVerdict{KeyFingerprint: s.KeyFingerprint, Format: s.Format}
		var key bundle.TrustedKey
		named, err := bundle.ParseKeys([]byte(s.PublicKey))
		if err == nil {
			key, v.Format, err = bundle.VerifyImage(manifest, []byte(s.Signature), named...)
		}
		// What the record says beside the signature is not signed.
		if err == nil && key.Fingerprint != s.KeyFingerprint {
			err = fmt.Errorf("%w: it is by %s", bundle.ErrSignature, key.Fingerprint)
		}
		if err != nil {
			v.Reason = err.Error()
		} else {
			v.Valid = true
			if at := slices.IndexFunc(trusted, key.Same); at >= 0 {
				v.Trusted, v.Comment = true, trusted[at].Comment
			}
		}
		out[i] = v
	}
	return out, nil
}

// signatureFault is nil for an image of which one signature at least is valid and by
// a key that is trusted. It returns OperationNotPermitted for one that is not signed,
// InvalidManifest where the signatures are of something else, and AuthFailure where
// they are by others.
func signatureFault(image ami.Image, all []SignatureVerdict) *ami.Error {
	if slices.ContainsFunc(all, func(v SignatureVerdict) bool { return v.Valid && v.Trusted }) {
		return nil
	}
	name := fmt.Sprintf("%s (%s)", image.ImageID, image.Name)
	valid := slices.IndexFunc(all, func(v SignatureVerdict) bool { return v.Valid })
	switch {
	case len(all) == 0:
		return ami.Errorf(ami.CodeOperationNotPermitted, "The image %s is not signed: nobody says that it is what it seems.", name).
			WithHint("Its owner signs it: kami image sign %s --key FILE.", image.ImageID)
	case valid < 0:
		return ami.Errorf(ami.CodeInvalidManifest, "The image %s is not what was signed: %s.", name, all[0].Reason).
			WithHint("Get it again from who signed it. Where you know why it differs, sign it anew: kami image sign %s --key FILE.", image.ImageID)
	}
	return ami.Errorf(ami.CodeAuthFailure, "The image %s is signed by %s, which is not trusted.", name, all[valid].KeyFingerprint).
		WithHint("Get the key from who has signed it, and kami bundle trust KEYFILE.")
}

// verifyContents reads the snapshots of an image: the layers' files, and what a guest
// would see of them.
func (r *Region) verifyContents(ctx context.Context, image ami.Image) error {
	from := &near{r: r}
	defer from.letGo(ctx)
	p, err := from.parcel(ctx, string(image.ImageID))
	if err != nil {
		return err
	}
	harmed := func(err error) error {
		err = storeError(err, "The image %s is not what its records say.", image.ImageID)
		var known *ami.Error
		if errors.As(err, &known) && known.Hint == "" {
			known.Hint = "kami store verify says what else that harms."
		}
		return err
	}
	if err := r.verifyParcel(ctx, p); err != nil {
		return harmed(err)
	}
	for _, s := range p.Snapshots {
		if err := r.verifyContent(ctx, s); err != nil {
			return harmed(err)
		}
	}
	return nil
}

// verifyContent reads a snapshot as a guest does.
func (r *Region) verifyContent(ctx context.Context, s ami.Snapshot) (err error) {
	step := r.progress.Step("reading the disk "+string(s.SnapshotID), 0)
	defer func() { step.Done(err) }()
	img, err := r.layers.OpenLayer(s.Layer)
	if err != nil {
		return err
	}
	defer img.Close()
	blocks, err := qcow2.HashBlocks(ctx, img)
	if err != nil {
		return err
	}
	return sameContent(s, blocks.Content(), img.Size())
}

func sameContent(s ami.Snapshot, got digest.Digest, size int64) error {
	if got != s.ContentDigest || size != s.SizeBytes {
		return fmt.Errorf("%w: the disk of %s has %d bytes with the content digest %s, and its record says %d and %s",
			snapshot.ErrCorrupt, s.SnapshotID, size, got.Short(), s.SizeBytes, s.ContentDigest.Short())
	}
	return nil
}

// verifyImageBundle reads the bundle of an instance-store image.
func (r *Region) verifyImageBundle(ctx context.Context, image ami.Image) error {
	if err := r.checkBundle(ctx, image, false); err != nil {
		return err
	}
	store, err := r.storeOf(ctx, image, object.Options{})
	if err != nil {
		return err
	}
	defer store.Close()
	b, err := bundle.Open(ctx, store, image.ImageLocation, bundle.Trust{AllowUnsigned: true}) // the image's own digests say what it is
	if err != nil {
		return bundleError(err, image.ImageLocation, store.URL())
	}
	step := r.progress.Step("verifying "+image.ImageLocation, b.Size())
	rep, err := b.Verify(ctx, step.Add)
	step.Done(err)
	if err == nil && (len(rep.Faults) > 0 || b.Manifest().Digest != image.Bundle.ContentDigest) {
		return ami.Errorf(ami.CodeInvalidManifest, "The bundle %s of the image %s is damaged: %d of its chunks are wrong or missing.", image.ImageLocation, image.ImageID, len(rep.Faults)).
			WithHint("kami bundle verify %s says which.", image.ImageLocation)
	}
	return bundleError(err, image.ImageLocation, store.URL())
}

// ImageSignatures says what the signatures of an image are worth by its records:
// nothing of its disks is read.
func (r *Region) ImageSignatures(ctx context.Context, image ami.Image) (VerifyImageResult, error) {
	out := VerifyImageResult{ImageID: image.ImageID}
	text, err := r.ImageManifest(ctx, image)
	if err != nil {
		return out, err
	}
	out.Manifest = string(text)
	out.Signatures, err = r.judgeSignatures(image.Signatures, text)
	return out, err
}
