package ec2ami

import (
	"context"
	"crypto/aes"
	"crypto/rsa"
	"errors"
	"path"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/object"
)

// OpenInput is a bundle to read.
type OpenInput struct {
	Store    object.Store
	Manifest string // its name in the store; the parts lie beside it

	Keys     []*rsa.PrivateKey // the user's or the cloud's; the first that fits is taken
	Signers  []*rsa.PublicKey  // users whose signatures are good
	Unsigned bool              // take the manifest as it is, whoever signed it
}

// Bundle is an open bundle.
type Bundle struct {
	Manifest
	// Signed says that the signature is that of one of the signers.
	Signed bool

	store   object.Store
	dir     string
	key, iv [aes.BlockSize]byte
}

// Open reads a bundle's manifest, verifies its signature and unlocks it. What is
// wrong with it is InvalidManifest; keys that do not fit are InvalidKey.Format.
func Open(ctx context.Context, in OpenInput) (*Bundle, error) {
	r, info, err := in.Store.Get(ctx, in.Manifest)
	if errors.Is(err, object.ErrNotFound) {
		return nil, fault("There is no manifest %s in %s.", in.Manifest, in.Store.URL())
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if info.Size > MaxManifest {
		return nil, fault("The manifest is longer than %d MiB.", MaxManifest>>20)
	}
	m, err := ParseManifest(r)
	if err != nil {
		return nil, err
	}
	b := &Bundle{Manifest: *m, store: in.Store, dir: path.Dir(in.Manifest)}
	if err := b.verify(in); err != nil {
		return nil, err
	}
	if err := m.checkPrefix(prefixOf(in.Manifest)); err != nil {
		return nil, err
	}
	if len(in.Keys) > 0 {
		b.key, b.iv, err = m.unlock(in.Keys)
	} else {
		err = ami.Errorf(ami.CodeInvalidKeyFormat, "The bundle is encrypted, and there is no key to read it with.").
			WithHint("Give the private key of the user who made it, or of the cloud that it was made for, with --privatekey.")
	}
	return b, err
}

// verify looks for a signer whose signature it is.
func (b *Bundle) verify(in OpenInput) error {
	err := error(fault("It is not known who signed the manifest.").
		WithHint("Give the certificate of the user who made it with --cert; --no-verify-signature reads it nevertheless."))
	for _, user := range in.Signers {
		if err = b.Verify(user); err == nil {
			b.Signed = true
			return nil
		}
	}
	if in.Unsigned {
		return nil
	}
	return err
}

// part is the name of a part in the store.
func (b *Bundle) part(i int) string { return path.Join(b.dir, b.Parts[i].Name) }
