package ec2ami

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// minBits is the size of the shortest RSA key that is used; the first keys of EC2
// had as many.
const minBits = 1024

// ParseCertificate returns the RSA key of the first certificate in PEM text. That
// is all that it is for here: the certificates of that age have long expired, and
// nobody issued them. what names the file in errors.
func ParseCertificate(what string, text []byte) (*rsa.PublicKey, error) {
	block := findBlock(text, "CERTIFICATE", "X509 CERTIFICATE")
	if block == nil {
		return nil, ami.Errorf(ami.CodeInvalidKeyFormat, "%s has no certificate in it.", what).
			WithHint("It should be X.509 in PEM: -----BEGIN CERTIFICATE-----.")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, ami.Errorf(ami.CodeInvalidKeyFormat, "The certificate in %s cannot be read: %w", what, err)
	}
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok || key.N.BitLen() < minBits {
		return nil, ami.Errorf(ami.CodeInvalidKeyFormat, "The certificate in %s is not one of an RSA key of %d bits or more.", what, minBits)
	}
	return key, nil
}

// ParsePrivateKey returns the RSA key in PEM text, as openssl genrsa writes it.
func ParsePrivateKey(what string, text []byte) (*rsa.PrivateKey, error) {
	block := findBlock(text, "RSA PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY")
	if block == nil {
		return nil, ami.Errorf(ami.CodeInvalidKeyFormat, "%s has no private key in it.", what).
			WithHint("It should be an RSA key in PEM: -----BEGIN RSA PRIVATE KEY-----.")
	}
	if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
		return nil, ami.Errorf(ami.CodeInvalidKeyFormat, "The private key in %s is locked by a passphrase.", what).
			WithHint("openssl rsa -in %s -out FILE writes it without.", what)
	}
	var key any
	var err error
	if block.Type == "PRIVATE KEY" {
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	} else {
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, ami.Errorf(ami.CodeInvalidKeyFormat, "The private key in %s cannot be read: %w", what, err)
	}
	priv, ok := key.(*rsa.PrivateKey)
	if !ok || priv.N.BitLen() < minBits {
		return nil, ami.Errorf(ami.CodeInvalidKeyFormat, "The private key in %s is not an RSA key of %d bits or more.", what, minBits)
	}
	return priv, nil
}

func findBlock(text []byte, types ...string) *pem.Block {
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			return nil
		}
		for _, t := range types {
			if block.Type == t {
				return block
			}
		}
	}
}

// GenerateKey makes an RSA key and a certificate that it signs itself, both PEM,
// good for twenty years. name is who it is for.
func GenerateKey(name string, now time.Time) (key, cert []byte, err error) {
	priv, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.AddDate(20, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &priv.PublicKey, priv)
	if err != nil {
		return nil, nil, err
	}
	key = pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(priv)})
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return key, cert, nil
}

// wrap encrypts a key or an IV as the format has it: its hexadecimal text.
func wrap(to *rsa.PublicKey, secret [aes.BlockSize]byte) ([]byte, error) {
	return rsa.EncryptPKCS1v15(rand.Reader, to, []byte(hex.EncodeToString(secret[:]))) //nolint:staticcheck // the format's own
}

// unwrap is the way back; ok says whether it is that key's.
func unwrap(key *rsa.PrivateKey, sealed []byte) (secret [aes.BlockSize]byte, ok bool) {
	text, err := rsa.DecryptPKCS1v15(nil, key, sealed) //nolint:staticcheck // the format's own
	if err != nil {
		return secret, false
	}
	text = bytes.TrimSpace(text)
	if len(text) != hex.EncodedLen(len(secret)) {
		return secret, false
	}
	_, err = hex.Decode(secret[:], text)
	return secret, err == nil
}

// unlock finds the key and the IV of the parts with the first of the keys that
// fits, the user's or the cloud's. InvalidKey.Format says that none does.
func (m *Manifest) unlock(keys []*rsa.PrivateKey) (key, iv [aes.BlockSize]byte, err error) {
	for _, k := range keys {
		for _, sealed := range [][2][]byte{{m.userKey, m.userIV}, {m.cloudKey, m.cloudIV}} {
			key, ok := unwrap(k, sealed[0])
			iv, also := unwrap(k, sealed[1])
			if ok && also {
				return key, iv, nil
			}
		}
	}
	return key, iv, ami.Errorf(ami.CodeInvalidKeyFormat, "The bundle is encrypted to other keys than those that were given.").
		WithHint("Give the private key of the user who made it, or of the cloud that it was made for, with --privatekey.")
}

// Verify checks the manifest's signature by the key of its user.
func (m *Manifest) Verify(user *rsa.PublicKey) error {
	if len(m.signature) == 0 {
		return fault("The manifest is not signed.").
			WithHint("--no-verify-signature reads it nevertheless: whoever could write to the store could have written it.")
	}
	sum := sha1.Sum(m.signed)
	if rsa.VerifyPKCS1v15(user, crypto.SHA1, sum[:], m.signature) != nil {
		return fault("The manifest was changed after it was signed, or somebody else signed it.").
			WithHint("Give the certificate of the user who made it with --cert; --no-verify-signature reads it nevertheless.")
	}
	return nil
}
