package ec2ami

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/pgzip"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/object"
)

// WriteInput is an image to bundle, and for whom.
type WriteInput struct {
	Store  object.Store
	Prefix string // of all names; no folders

	Image   io.ReaderAt
	Size    int64    // bytes
	Extents []Extent // of the image that may hold bytes, in order; nil is all of it

	Machine  Machine
	User     string // account
	Type     string // "" is TypeMachine
	Ancestry []string
	Bundler  Bundler

	Key   *rsa.PrivateKey // signs
	Cert  *rsa.PublicKey  // the user's; has to be that of Key
	Cloud *rsa.PublicKey  // the cloud's

	Replace  bool          // a bundle of that prefix, or what is left of one
	Progress func(n int64) // bytes of the image that were read; may be nil
}

// Write bundles an image: its parts, several at once, and last its manifest, which
// it returns. What its image says is ErrRead. Where it fails it takes away the parts that it wrote. A bundle that is
// there already, or parts of one, are left alone unless Replace is set.
func Write(ctx context.Context, in WriteInput) (*Manifest, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	if err := in.free(ctx); err != nil {
		return nil, err
	}
	m := &Manifest{
		Bundler: in.Bundler, Machine: in.Machine, Name: in.Prefix, User: in.User, Type: in.Type,
		Ancestry: in.Ancestry, Size: in.Size,
	}
	out := newUploads(ctx, in.Store, in.Prefix, in.Replace)
	err := in.write(m, out)
	if err == nil && in.Replace {
		err = in.sweep(ctx, m)
	}
	if err == nil {
		err = in.putManifest(ctx, m)
	}
	if err != nil {
		out.undo(ctx)
		return nil, err
	}
	return m, nil
}

func (in *WriteInput) check() error {
	if err := CheckPrefix(in.Prefix); err != nil {
		return err
	}
	if in.Type == "" {
		in.Type = TypeMachine
	}
	if in.Progress == nil {
		in.Progress = func(int64) {}
	}
	if in.Size < 1 || in.Size > MaxSize {
		return ami.Errorf(ami.CodeInvalidParameterValue, "The image is of %d bytes; a bundle takes 1 byte to 1 TiB.", in.Size)
	}
	if !in.Key.PublicKey.Equal(in.Cert) {
		return ami.Errorf(ami.CodeInvalidKeyFormat, "The certificate is not that of the private key.").
			WithHint("--cert and --privatekey have to be of one pair.")
	}
	return nil
}

func (in *WriteInput) manifestName() string { return in.Prefix + ManifestSuffix }

// free sees to it that no bundle of that name is there, or goes.
func (in *WriteInput) free(ctx context.Context) error {
	if in.Replace { // first of all: a manifest never names parts of two bundles
		return in.Store.Delete(ctx, in.manifestName())
	}
	_, err := in.Store.Stat(ctx, in.manifestName())
	if errors.Is(err, object.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = in.taken(nil)
	}
	return err
}

func (in *WriteInput) taken(err error) error {
	e := ami.Errorf(ami.CodeInvalidParameterValue, "A bundle %s, or a part of one, is in %s already.", in.Prefix, in.Store.URL()).
		WithHint("Choose another name with --prefix, or say --replace.")
	e.Err = err
	return e
}

// write makes the parts and fills in what they make known.
func (in *WriteInput) write(m *Manifest, out *uploads) error {
	var key, iv [aes.BlockSize]byte
	if _, err := rand.Read(key[:]); err != nil {
		return err
	}
	if _, err := rand.Read(iv[:]); err != nil {
		return err
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return err
	}
	enc := &encrypter{w: out, mode: cipher.NewCBCEncrypter(block, iv[:])}
	zip, err := pgzip.NewWriterLevel(enc, pgzip.DefaultCompression)
	if err != nil {
		return err
	}
	if err := zip.SetConcurrency(1<<20, runtime.GOMAXPROCS(0)); err != nil {
		return err
	}
	digest := sha1.New()
	err = writeTar(io.MultiWriter(out.alive(), digest, zip), in.Prefix, in.Image, in.Size, in.Extents, in.Progress)
	if cerr := zip.Close(); err == nil { // also where it failed: it has goroutines
		err = cerr
	}
	if err == nil {
		enc.end()
	}
	m.Parts, m.BundledSize, err = out.wait(err)
	if errors.Is(err, object.ErrExists) {
		return in.taken(err)
	}
	if err != nil {
		return err
	}
	digest.Sum(m.Digest[:0])
	for _, sealed := range []struct {
		to     *[]byte
		who    *rsa.PublicKey
		secret [aes.BlockSize]byte
	}{{&m.userKey, in.Cert, key}, {&m.userIV, in.Cert, iv}, {&m.cloudKey, in.Cloud, key}, {&m.cloudIV, in.Cloud, iv}} {
		if *sealed.to, err = wrap(sealed.who, sealed.secret); err != nil {
			return err
		}
	}
	return nil
}

func (in *WriteInput) putManifest(ctx context.Context, m *Manifest) error {
	text, err := m.marshal(in.Key)
	if err != nil {
		return err
	}
	durable.Step("ec2bundle.parts")
	err = in.Store.PutNew(ctx, in.manifestName(), bytes.NewReader(text), int64(len(text)))
	if errors.Is(err, object.ErrExists) {
		return in.taken(err)
	}
	return err
}

// sweep takes away what a bundle that is replaced had of parts beyond the new ones.
func (in *WriteInput) sweep(ctx context.Context, m *Manifest) error {
	stem := in.Prefix + ".part."
	var old []string
	err := in.Store.List(ctx, stem, func(info object.Info) error {
		digits := strings.TrimPrefix(info.Name, stem)
		ours := slices.ContainsFunc(m.Parts, func(p Part) bool { return p.Name == info.Name })
		if digits != "" && strings.Trim(digits, "0123456789") == "" && !ours {
			old = append(old, info.Name)
		}
		return nil
	})
	for _, name := range old {
		err = errors.Join(err, in.Store.Delete(ctx, name))
	}
	return err
}

func partName(prefix string, n int) string { return fmt.Sprintf("%s.part.%02d", prefix, n) }

// undoTime bounds how long a failure is cleaned up after.
const undoTime = 30 * time.Second

// encrypter is AES-CBC over a stream, with PKCS#7's padding at its end. It never
// fails, since pgzip's goroutines end only where their writer takes all: what fails
// are uploads, and these are asked by alive.
type encrypter struct {
	w    io.Writer
	mode cipher.BlockMode
	rest []byte // less than a block
	buf  []byte
}

func (e *encrypter) Write(b []byte) (int, error) {
	e.buf = append(append(e.buf[:0], e.rest...), b...)
	whole := len(e.buf) / aes.BlockSize * aes.BlockSize
	e.rest = append(e.rest[:0], e.buf[whole:]...)
	e.send(e.buf[:whole])
	return len(b), nil
}

// end writes the last block, which is there even when nothing is left for it.
func (e *encrypter) end() {
	n := aes.BlockSize - len(e.rest)
	e.send(append(e.rest, bytes.Repeat([]byte{byte(n)}, n)...))
}

func (e *encrypter) send(b []byte) {
	e.mode.CryptBlocks(b, b)
	_, _ = e.w.Write(b)
}
