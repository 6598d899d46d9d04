package bundle

import (
	"bytes"
	"crypto/rand"
	"crypto/sha512"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// SignatureNamespace is what bundles are signed for, in the words of ssh-keygen:
//
//	ssh-keygen -Y verify -f trusted -I kami -n kami-bundle -s web.manifest.sig < web.manifest
const SignatureNamespace = "kami-bundle"

// maxSignature bounds a signature's file, in bytes.
const maxSignature = 16 << 10

// OpenSSH's PROTOCOL.sshsig.
const (
	sigMagic   = "SSHSIG"
	sigVersion = 1
	sigArmor   = "SSH SIGNATURE"
	sigHash    = "sha512"
)

type sigBlob struct {
	Version   uint32
	PublicKey []byte
	Namespace string
	Reserved  string
	Hash      string
	Signature []byte
}

// signed is what a signature is of.
func signed(namespace string, message []byte) []byte {
	sum := sha512.Sum512(message)
	return append([]byte(sigMagic), ssh.Marshal(struct {
		Namespace, Reserved, Hash string
		Sum                       []byte
	}{namespace, "", sigHash, sum[:]})...)
}

// Sign makes the signature's file of a manifest's.
func Sign(key ssh.Signer, message []byte) ([]byte, error) {
	return signAs(key, SignatureNamespace, message)
}

func signAs(key ssh.Signer, namespace string, message []byte) ([]byte, error) {
	sig, err := key.Sign(rand.Reader, signed(namespace, message))
	if err != nil {
		return nil, err
	}
	blob := append([]byte(sigMagic), ssh.Marshal(sigBlob{
		Version: sigVersion, PublicKey: key.PublicKey().Marshal(), Namespace: namespace, Hash: sigHash, Signature: ssh.Marshal(sig),
	})...)
	return pem.EncodeToMemory(&pem.Block{Type: sigArmor, Bytes: blob}), nil
}

// Trust says whose bundles are taken.
type Trust struct {
	Keys []ssh.PublicKey
	// AllowUnsigned takes any bundle, also with a signature that is not of it.
	AllowUnsigned bool
}

// verify returns the key that made the signature of message. It returns
// ErrSignature for what is not one, and with the key ErrUntrusted for one that is
// by nobody who is trusted.
func (t Trust) verify(message, file []byte) (ssh.PublicKey, error) {
	key, err := verifySSH(SignatureNamespace, message, file)
	if err != nil {
		return nil, err
	}
	for _, k := range t.Keys {
		if bytes.Equal(k.Marshal(), key.Marshal()) {
			return key, nil
		}
	}
	return key, fmt.Errorf("%w: %s", ErrUntrusted, ssh.FingerprintSHA256(key))
}

// verifySSH returns the key that made the signature of message, whoever has it. It
// returns ErrSignature for what is not one.
func verifySSH(namespace string, message, file []byte) (ssh.PublicKey, error) {
	bad := func(format string, args ...any) (ssh.PublicKey, error) {
		return nil, fmt.Errorf("%w: %w", ErrSignature, fmt.Errorf(format, args...))
	}
	block, rest := pem.Decode(file)
	if block == nil || block.Type != sigArmor || len(bytes.TrimSpace(rest)) > 0 {
		return bad("it is no SSH signature")
	}
	body, ok := bytes.CutPrefix(block.Bytes, []byte(sigMagic))
	var blob sigBlob
	if !ok || ssh.Unmarshal(body, &blob) != nil {
		return bad("it is no SSH signature")
	}
	if blob.Version != sigVersion || blob.Namespace != namespace || blob.Reserved != "" || blob.Hash != sigHash {
		return bad("version %d, namespace %.40q, hash %.40q are not those of a %s signature", blob.Version, blob.Namespace, blob.Hash, namespace)
	}
	key, err := ssh.ParsePublicKey(blob.PublicKey)
	if err != nil {
		return bad("its key: %w", err)
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(blob.Signature, &sig); err != nil {
		return bad("%w", err)
	}
	if err := checkKey(key); err != nil || sig.Format != ssh.KeyAlgoED25519 {
		return bad("it is by a key of type %.40q, and not by ed25519", key.Type())
	}
	if err := key.Verify(signed(namespace, message), &sig); err != nil {
		return bad("%w", err)
	}
	return key, nil
}

// Fingerprint is a key's SHA-256 as ssh-keygen prints it.
func Fingerprint(key ssh.PublicKey) string { return ssh.FingerprintSHA256(key) }

func checkKey(key ssh.PublicKey) error {
	if key.Type() != ssh.KeyAlgoED25519 {
		return fmt.Errorf("%w: %s is of type %s, not %s", ErrBadKey, ssh.FingerprintSHA256(key), key.Type(), ssh.KeyAlgoED25519)
	}
	return nil
}

// isSignatureFault says whether err is about who signed a bundle.
func isSignatureFault(err error) bool {
	return errors.Is(err, ErrUnsigned) || errors.Is(err, ErrUntrusted) || errors.Is(err, ErrSignature)
}
