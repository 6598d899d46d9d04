package region

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// DescribeKeyPairs returns the caller's key pairs; the ids of in are key names.
func (r *Region) DescribeKeyPairs(ctx context.Context, in DescribeInput) ([]ami.KeyPair, error) {
	if err := checkFilters(in.Filters, ami.MatchKeyPair); err != nil {
		return nil, err
	}
	var all []ami.KeyPair
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		all, err = tx.KeyPairs()
		return r.legible(err)
	})
	if err != nil {
		return nil, storeError(err, "The key pairs cannot be read.")
	}
	var own []ami.KeyPair
	for _, k := range all {
		if k.OwnerID == r.account {
			own = append(own, k)
		}
	}
	return find(in, own, func(k ami.KeyPair) string { return k.KeyName }, ami.MatchKeyPair, notFoundKeyPair)
}

func (r *Region) keyPair(ctx context.Context, name string) (ami.KeyPair, error) {
	var key ami.KeyPair
	err := r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		key, err = tx.KeyPair(r.account, name)
		return err
	})
	if errors.Is(err, catalog.ErrNotFound) {
		return key, notFoundKeyPair(name)
	}
	return key, storeError(err, "The key pair %s cannot be read.", name)
}

// privateKeyPath is where the region keeps the private half of a key that it
// made, for kami ssh. The name is encoded since people choose it freely.
func (r *Region) privateKeyPath(name string) string {
	path := r.path("keys", base64.RawURLEncoding.EncodeToString([]byte(name))+".pem")
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// CreateKeyPair makes a key pair. The private key is returned once; a copy that
// only its owner can read stays in the region for kami ssh.
func (r *Region) CreateKeyPair(ctx context.Context, name, keyType string, dry bool) (ami.KeyPair, []byte, error) {
	if err := r.checkKeyName(ctx, name); err != nil {
		return ami.KeyPair{}, nil, err
	}
	var private crypto.Signer
	var err error
	switch keyType {
	case "", "ed25519":
		keyType = "ed25519"
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case "rsa":
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		return ami.KeyPair{}, nil, ami.Errorf(ami.CodeInvalidParameterValue, "The key type %q is not ed25519 or rsa.", keyType)
	}
	if err != nil {
		return ami.KeyPair{}, nil, storeError(err, "The key cannot be made.")
	}
	if dry {
		return ami.KeyPair{}, nil, dryRun("create the %s key pair %q", keyType, name)
	}
	public, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		return ami.KeyPair{}, nil, storeError(err, "The key cannot be made.")
	}
	block, err := ssh.MarshalPrivateKey(private, name)
	if err != nil {
		return ami.KeyPair{}, nil, storeError(err, "The key cannot be made.")
	}
	key := r.newKey(name, keyType, public)
	if rsaKey, ok := private.(*rsa.PrivateKey); ok {
		// EC2: SHA-1 of the private key's PKCS#8 for an RSA key that it made.
		der, err := x509.MarshalPKCS8PrivateKey(rsaKey)
		if err != nil {
			return ami.KeyPair{}, nil, storeError(err, "The key cannot be made.")
		}
		key.KeyFingerprint = colons(fmt.Sprintf("%x", sha1.Sum(der)))
	}
	text := pem.EncodeToMemory(block)
	if err := r.putKey(ctx, key); err != nil {
		return ami.KeyPair{}, nil, err
	}
	if err := os.MkdirAll(r.path("keys"), 0o700); err != nil {
		return key, text, storeError(err, "The private key cannot be kept.")
	}
	path := r.path("keys", base64.RawURLEncoding.EncodeToString([]byte(name))+".pem")
	err = durable.WriteFile(path, 0o600, func(f *os.File) error {
		_, err := f.Write(text)
		return err
	})
	return key, text, storeError(err, "The private key cannot be kept.")
}

// ImportKeyPair records a public key in the form of authorized_keys.
func (r *Region) ImportKeyPair(ctx context.Context, name string, publicKey []byte, dry bool) (ami.KeyPair, error) {
	if err := r.checkKeyName(ctx, name); err != nil {
		return ami.KeyPair{}, err
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(publicKey)
	if err != nil {
		return ami.KeyPair{}, ami.Errorf(ami.CodeInvalidKeyFormat, "Key is not in valid OpenSSH public key format.").
			WithHint("Give a public key file such as ~/.ssh/id_ed25519.pub, never the private key.")
	}
	var keyType, fingerprint string
	switch public.Type() {
	case ssh.KeyAlgoED25519:
		keyType = "ed25519"
	case ssh.KeyAlgoRSA:
		keyType = "rsa"
		der, err := x509.MarshalPKIXPublicKey(public.(ssh.CryptoPublicKey).CryptoPublicKey())
		if err != nil {
			return ami.KeyPair{}, storeError(err, "The key cannot be read.")
		}
		fingerprint = colons(fmt.Sprintf("%x", md5.Sum(der))) // EC2: MD5 of an imported RSA key
	default:
		return ami.KeyPair{}, ami.Errorf(ami.CodeInvalidKeyFormat, "The key type %s is not supported; use ed25519 or rsa.", public.Type())
	}
	if dry {
		return ami.KeyPair{}, dryRun("import the %s key %q", keyType, name)
	}
	key := r.newKey(name, keyType, public)
	if fingerprint != "" {
		key.KeyFingerprint = fingerprint
	}
	return key, r.putKey(ctx, key)
}

// DeleteKeyPair forgets a key pair. One that is not there is no error, as in EC2.
func (r *Region) DeleteKeyPair(ctx context.Context, name string, dry bool) error {
	if dry {
		return dryRun("delete the key pair %q", name)
	}
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if err := tx.DeleteKeyPair(r.account, name); !errors.Is(err, catalog.ErrNotFound) {
			return err
		}
		return nil
	})
	if err != nil {
		return storeError(err, "The key pair %s cannot be deleted.", name)
	}
	if path := r.privateKeyPath(name); path != "" {
		return storeError(durable.Remove(path), "The private key of %s cannot be removed.", name)
	}
	return nil
}

func (r *Region) checkKeyName(ctx context.Context, name string) error {
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(c rune) bool { return c < 0x20 || c > 0x7e }) {
		return ami.Errorf(ami.CodeInvalidParameterValue, "The key name %q is not 1 to 255 printable ASCII characters.", name)
	}
	_, err := r.keyPair(ctx, name)
	switch ami.ErrorCode(err) {
	case ami.CodeInvalidKeyPairNotFound:
		return nil
	case "":
		return duplicateKey(name)
	}
	return err
}

func duplicateKey(name string) error {
	return ami.Errorf(ami.CodeInvalidKeyPairDuplicate, "The keypair '%s' already exists.", name).
		WithHint("Choose another name, or kami key delete it first.")
}

func (r *Region) newKey(name, keyType string, public ssh.PublicKey) ami.KeyPair {
	sum := sha256.Sum256(public.Marshal())
	return ami.KeyPair{
		KeyPairID: ami.NewKeyPairID(), KeyName: name, KeyType: keyType, OwnerID: r.account,
		KeyFingerprint: base64.StdEncoding.EncodeToString(sum[:]),
		PublicKey:      strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public))) + " " + name,
		CreateTime:     time.Now().UTC().Truncate(time.Millisecond),
	}
}

func (r *Region) putKey(ctx context.Context, key ami.KeyPair) error {
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error { return tx.PutKeyPair(key) })
	if errors.Is(err, catalog.ErrExists) {
		return duplicateKey(key.KeyName)
	}
	return storeError(err, "The key pair cannot be recorded.")
}

// colons puts a colon between the pairs of hexadecimal digits.
func colons(hex string) string {
	var b strings.Builder
	for i := 0; i < len(hex); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(hex[i : i+2])
	}
	return b.String()
}
