package region

import (
	"context"
	"crypto/rsa"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle/ec2ami"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// A region is a cloud to EC2's own bundles: it has a key that they are encrypted to,
// and one for each account that signs them where nobody brings his own. They lie in
// the region's folder ec2-bundles, named as EC2 named them: cert-*.pem and pk-*.pem.

// cloudName is whose the region's own pair is; accounts are digits.
const cloudName = "ec2"

// ec2Pair is a key and its certificate.
type ec2Pair struct {
	key  *rsa.PrivateKey
	cert *rsa.PublicKey
}

func (r *Region) ec2KeyFiles(name string) (key, cert string) {
	dir := r.path("ec2-bundles")
	return filepath.Join(dir, "pk-"+name+".pem"), filepath.Join(dir, "cert-"+name+".pem")
}

// madeEC2Pair returns the region's pair of that name, which it makes the first time
// and says where it lies.
func (r *Region) madeEC2Pair(ctx context.Context, name string) (ec2Pair, error) {
	key, cert := r.ec2KeyFiles(name)
	if err := os.MkdirAll(filepath.Dir(key), 0o700); err != nil {
		return ec2Pair{}, storeError(err, "The folder of the bundles' keys cannot be made.")
	}
	lock, err := durable.AcquireLock(ctx, filepath.Join(filepath.Dir(key), ".lock"))
	if err != nil {
		return ec2Pair{}, storeError(err, "The bundles' keys cannot be locked.")
	}
	defer lock.Unlock()
	// The certificate is the second to be written: with it, both are there.
	if _, err := os.Lstat(cert); errors.Is(err, fs.ErrNotExist) {
		if err := r.makeEC2Pair(name, key, cert); err != nil {
			return ec2Pair{}, storeError(err, "A key for bundles cannot be made.")
		}
	}
	return readEC2Pair(key, cert)
}

func (r *Region) makeEC2Pair(name, key, cert string) error {
	whose := "kami region " + r.opts.Name
	if r.opts.Name == "" {
		whose = "kami"
	}
	if name != cloudName {
		whose = "kami account " + name
	}
	keyPEM, certPEM, err := ec2ami.GenerateKey(whose, time.Now())
	if err != nil {
		return err
	}
	if err := durable.SyncDir(filepath.Dir(filepath.Dir(key))); err != nil { // the folder may be new
		return err
	}
	for _, f := range []struct {
		path string
		text []byte
	}{{key, keyPEM}, {cert, certPEM}} {
		durable.Step("ec2key.made")
		err := durable.WriteFile(f.path, 0o600, func(w *os.File) error {
			_, err := w.Write(f.text)
			return err
		})
		if err != nil {
			return err
		}
	}
	r.progress.Note("made a key for EC2's own bundles: %s and %s", key, cert)
	return nil
}

// oldEC2Pair is madeEC2Pair for reading: ok is false where none was made.
func (r *Region) oldEC2Pair(name string) (pair ec2Pair, ok bool, err error) {
	key, cert := r.ec2KeyFiles(name)
	if _, err := os.Lstat(cert); errors.Is(err, fs.ErrNotExist) {
		return ec2Pair{}, false, nil
	}
	pair, err = readEC2Pair(key, cert)
	return pair, err == nil, err
}

func readEC2Pair(key, cert string) (pair ec2Pair, err error) {
	if pair.key, err = readPEM(key, ec2ami.ParsePrivateKey); err != nil {
		return ec2Pair{}, err
	}
	pair.cert, err = readPEM(cert, ec2ami.ParseCertificate)
	return pair, err
}

// maxPEM bounds a file of a key or of certificates, in bytes.
const maxPEM = 1 << 20

// readPEM reads a file of a person's.
func readPEM[T any](path string, parse func(what string, text []byte) (T, error)) (T, error) {
	var none T
	st, err := os.Stat(path)
	if err == nil && (!st.Mode().IsRegular() || st.Size() > maxPEM) {
		err = errors.New("it is no PEM file")
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return none, ami.Errorf(ami.CodeInvalidKeyFormat, "%s cannot be read: %w", path, withoutPath(err))
	}
	return parse(path, text)
}

// withoutPath is what went wrong with a file that the message names.
func withoutPath(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
