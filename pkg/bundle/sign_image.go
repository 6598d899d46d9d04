package bundle

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// ImageNamespace is what images are signed for, in the words of ssh-keygen:
//
//	ssh-keygen -Y verify -f trusted -I kami -n kami-image -s web.sig < web.manifest
const ImageNamespace = "kami-image"

// The forms of signatures of images.
const (
	FormatSSH      = "ssh"
	FormatMinisign = "minisign"
)

// ErrEncryptedKey is returned for a private key that is of no use without its
// passphrase.
var ErrEncryptedKey = errors.New("the key is encrypted with a passphrase")

// ImageSigner is a private key that images are signed with: OpenSSH's or minisign's.
type ImageSigner struct {
	ssh      ssh.Signer
	minisign *minisignKey // nil for OpenSSH's
}

// NewImageSigner takes a key of OpenSSH's, such as a keyring's.
func NewImageSigner(key ssh.Signer) ImageSigner { return ImageSigner{ssh: key} }

// ParseImageSigner reads the file of a private key. It returns ErrBadKey for what is
// no ed25519 key, and ErrEncryptedKey.
func ParseImageSigner(b []byte) (ImageSigner, error) {
	if isMinisign(b) {
		key, err := parseMinisignPrivate(b)
		return ImageSigner{minisign: key}, err
	}
	key, err := ssh.ParsePrivateKey(b)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return ImageSigner{}, ErrEncryptedKey
	}
	if err != nil {
		return ImageSigner{}, fmt.Errorf("%w: %w", ErrBadKey, err)
	}
	return ImageSigner{ssh: key}, checkKey(key.PublicKey())
}

// Sign makes the signature's file of an image's manifest, and says in which form it is.
func (s ImageSigner) Sign(manifest []byte) (file []byte, format string, err error) {
	if s.minisign != nil {
		return s.minisign.sign(manifest), FormatMinisign, nil
	}
	file, err = signAs(s.ssh, ImageNamespace, manifest)
	return file, FormatSSH, err
}

// PublicKey is the key that its signatures are verified with.
func (s ImageSigner) PublicKey() TrustedKey {
	if s.minisign != nil {
		return s.minisign.public()
	}
	return trustedKey(s.ssh.PublicKey(), "", false)
}

// VerifyImage returns which key made a signature's file of an image's manifest, trusted
// or not, and in which form the file is. One of OpenSSH's names its key; one of
// minisign's does not, and is tried with candidates. It returns ErrSignature for one that
// is not of this manifest or by none of them.
func VerifyImage(manifest, file []byte, candidates ...TrustedKey) (TrustedKey, string, error) {
	if len(file) > maxSignature {
		return TrustedKey{}, "", fmt.Errorf("%w: it has more than %d bytes", ErrSignature, maxSignature)
	}
	if !isMinisign(file) {
		key, err := verifySSH(ImageNamespace, manifest, file)
		if err != nil {
			return TrustedKey{}, FormatSSH, err
		}
		return trustedKey(key, "", false), FormatSSH, nil
	}
	sig, err := parseMinisignature(file)
	if err != nil {
		return TrustedKey{}, FormatMinisign, err
	}
	for _, k := range candidates {
		if public, err := edKey(k.key); err == nil && sig.verify(public, manifest) {
			return k, FormatMinisign, nil
		}
	}
	return TrustedKey{}, FormatMinisign, fmt.Errorf("%w: it is by no key that is known, or of something else", ErrSignature)
}

// Same says whether two are one key.
func (t TrustedKey) Same(o TrustedKey) bool { return bytes.Equal(t.key.Marshal(), o.key.Marshal()) }
