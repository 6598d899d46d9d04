package region

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"time"

	"github.com/smallstep/pkcs7"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// identityDocument is EC2's, of version 2017-09-30: fields in its order.
type identityDocument struct {
	AccountID               string           `json:"accountId"`
	Architecture            ami.Architecture `json:"architecture"`
	AvailabilityZone        string           `json:"availabilityZone"`
	BillingProducts         []string         `json:"billingProducts"`
	DevpayProductCodes      []string         `json:"devpayProductCodes"`
	MarketplaceProductCodes []string         `json:"marketplaceProductCodes"`
	ImageID                 ami.ImageID      `json:"imageId"`
	InstanceID              ami.InstanceID   `json:"instanceId"`
	InstanceType            string           `json:"instanceType"`
	KernelID                *ami.KernelID    `json:"kernelId"`
	PendingTime             string           `json:"pendingTime"`
	PrivateIP               *string          `json:"privateIp"`
	RamdiskID               *ami.RamdiskID   `json:"ramdiskId"`
	Region                  string           `json:"region"`
	Version                 string           `json:"version"`
}

// identify writes the instance identity document into md and signs it. One that
// says the same already stays as it is.
func (r *Region) identify(ctx context.Context, md *ami.Metadata) error {
	text, err := json.MarshalIndent(identityDocument{
		AccountID: md.OwnerID, Architecture: md.Architecture, AvailabilityZone: md.AvailabilityZone,
		MarketplaceProductCodes: md.ProductCodes, ImageID: md.ImageID, InstanceID: md.InstanceID, InstanceType: md.InstanceType,
		KernelID: orNull(md.KernelID), PendingTime: md.LaunchTime.UTC().Format(time.RFC3339), PrivateIP: orNull(md.PrivateIP),
		RamdiskID: orNull(md.RamdiskID), Region: md.Region, Version: "2017-09-30",
	}, "", "  ")
	if err != nil || string(text) == md.Identity.Document {
		return err
	}
	key, cert, err := r.identityKey(ctx)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	signed, err := signPKCS7(text, key, cert)
	if err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	md.Identity = ami.Identity{Document: string(text), Signature: inLines(signature), PKCS7: inLines(signed)}
	return nil
}

func orNull[T ~string](s T) *T {
	if s == "" {
		return nil
	}
	return &s
}

func signPKCS7(text []byte, key *rsa.PrivateKey, cert *x509.Certificate) ([]byte, error) {
	data, err := pkcs7.NewSignedData(text)
	if err != nil {
		return nil, err
	}
	data.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	if err := data.AddSigner(cert, key, pkcs7.SignerInfoConfig{}); err != nil {
		return nil, err
	}
	return data.Finish()
}

// inLines is base64 as PEM has it, without its header: EC2 leaves it to the
// reader to put one around it.
func inLines(b []byte) string {
	const width = 64
	text := base64.StdEncoding.EncodeToString(b)
	var out bytes.Buffer
	for len(text) > width {
		out.WriteString(text[:width] + "\n")
		text = text[width:]
	}
	out.WriteString(text)
	return out.String()
}

// IdentityCertificate returns the region's certificate in PEM form: the identity
// documents of its instances are signed with its key. It is made when it is
// first asked for.
func (r *Region) IdentityCertificate(ctx context.Context) (string, error) {
	_, cert, err := r.identityKey(ctx)
	if err != nil {
		return "", storeError(err, "The certificate of the region %q cannot be told.", r.opts.Name)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})), nil
}

// Show returns one region of a home, with its certificate.
func Show(ctx context.Context, home, name string) (Info, error) {
	info, err := describe(ctx, home, name)
	if err != nil {
		return info, err
	}
	r, err := Open(ctx, Options{Home: home, Name: name})
	if err != nil {
		return info, err
	}
	defer r.Close()
	info.IdentityCertificate, err = r.IdentityCertificate(ctx)
	return info, err
}

// identityKey reads the key that signs identity documents, and its certificate;
// they are made together on first use.
func (r *Region) identityKey(ctx context.Context) (*rsa.PrivateKey, *x509.Certificate, error) {
	path := r.path("identity.pem")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		lockPath := r.path("tmp", "identity.lock")
		lock, lerr := durable.AcquireLock(ctx, lockPath)
		if lerr != nil {
			return nil, nil, lerr
		}
		defer func() {
			os.Remove(lockPath)
			lock.Unlock()
		}()
		if text, err = os.ReadFile(path); errors.Is(err, fs.ErrNotExist) { // nobody was quicker
			if text, err = newIdentityKey(r.opts.Name); err == nil {
				err = durable.WriteFile(path, 0o600, func(f *os.File) error {
					_, err := f.Write(text)
					return err
				})
			}
		}
	}
	if err != nil {
		return nil, nil, err
	}
	key, cert, err := parseIdentityKey(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return key, cert, nil
}

// newIdentityKey makes a key and a certificate that it signs itself, as PEM. Like
// Amazon's, the certificate does not run out.
func newIdentityKey(region string) ([]byte, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	template := x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"kami"}, CommonName: region + " instance identity"},
		NotBefore: now.AddDate(0, 0, -1), NotAfter: now.AddDate(100, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...), nil
}

func parseIdentityKey(text []byte) (*rsa.PrivateKey, *x509.Certificate, error) {
	private, rest := pem.Decode(text)
	public, _ := pem.Decode(rest)
	if private == nil || public == nil {
		return nil, nil, errors.New("it does not hold a key and a certificate")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(private.Bytes)
	if err != nil {
		return nil, nil, err
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("its key is a %T", parsed)
	}
	cert, err := x509.ParseCertificate(public.Bytes)
	return key, cert, err
}
