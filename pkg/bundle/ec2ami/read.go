package ec2ami

import (
	"archive/tar"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/kamivm/kami/pkg/ami"
)

// Digested says what a manifest's image digest is of. All are found in manifests of
// that age; whichever it is, each part has a digest of its own.
type Digested string

// What image digests are of.
const (
	DigestOfTar     Digested = "tar"     // as it should be
	DigestOfImage   Digested = "image"   // Scalr's tools
	DigestOfNothing Digested = "nothing" // the first euca2ools
)

const (
	// slack is what a tar may have beside the image, in bytes: headers, the map of a
	// sparse member, the zeros at its end.
	slack = 4 << 20
	// stretch is how much of the image is looked at for zeros at once.
	stretch = 64 << 10
)

// Unpack writes the image to w, of its size, where what is not written is zeros. A
// digest that is of the image is known only where w is an io.ReaderAt, too. w has to be
// thrown away if it fails, since all is known to be right only at the end. No more
// is unpacked than the manifest declares. copied is told of bytes of the image. What
// is wrong with the bundle is InvalidManifest, what w says is ErrWrite.
func (b *Bundle) Unpack(ctx context.Context, w io.WriterAt, copied func(n int64)) (Digested, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	parts, err := b.download(ctx)
	if err != nil {
		return "", err
	}
	digested, err := b.unpack(ctx, parts, w, copied)
	var known *ami.Error
	switch {
	case parts.err != nil && !errors.Is(parts.err, io.EOF):
		err = parts.err // what the rest made of it matters less
	case err == nil || errors.As(err, &known) || errors.Is(err, ErrWrite) || ctx.Err() != nil:
	default:
		err = fault("The bundle's parts do not hold a gzipped tar of one image: %w", err).
			WithHint("The manifest's key, or the parts, may be another bundle's.")
	}
	return digested, err
}

// ErrWrite wraps what the destination of an image says.
var ErrWrite = errors.New("writing the image")

func (b *Bundle) unpack(ctx context.Context, parts io.Reader, w io.WriterAt, copied func(n int64)) (Digested, error) {
	zip, err := gzip.NewReader(parts)
	if err != nil {
		return "", err
	}
	defer zip.Close()
	ofTar := sha1.New()
	all := &bounded{r: io.TeeReader(zip, ofTar), left: b.Size + slack}
	members := tar.NewReader(all)
	h, err := members.Next()
	if err != nil {
		return "", err
	}
	if err := b.checkMember(h); err != nil {
		return "", err
	}
	if err := copyImage(ctx, w, members, b.Size, copied); err != nil {
		return "", err
	}
	if h, err := members.Next(); err == nil {
		return "", fault("The bundle's tar has another member, %s; it should be one image.", quoted(h.Name))
	} else if !errors.Is(err, io.EOF) {
		return "", err
	}
	if _, err := io.Copy(zeros{}, all); err != nil {
		return "", err
	}
	return b.checkDigest(ofTar, w)
}

func (b *Bundle) checkMember(h *tar.Header) error {
	switch {
	case h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse:
		return fault("The bundle's tar holds %s, which is no file.", quoted(h.Name))
	case strings.TrimPrefix(h.Name, "./") != b.Name:
		return fault("The bundle's tar holds %s; the manifest's image is %s.", quoted(h.Name), quoted(b.Name))
	case h.Size != b.Size:
		return fault("The image in the bundle is of %d bytes; the manifest says %d.", h.Size, b.Size)
	}
	return nil
}

// checkDigest looks for what the manifest's digest is of. The image is read again
// only where that is not the tar: hashing holes takes longer than all the rest.
func (b *Bundle) checkDigest(ofTar hash.Hash, image io.WriterAt) (Digested, error) {
	switch b.Digest {
	case [sha1.Size]byte(ofTar.Sum(nil)):
		return DigestOfTar, nil
	case sha1.Sum(nil):
		return DigestOfNothing, nil
	}
	if r, ok := image.(io.ReaderAt); ok {
		ofImage := sha1.New()
		if _, err := io.Copy(ofImage, io.NewSectionReader(r, 0, b.Size)); err != nil {
			return "", fmt.Errorf("%w: reading it again: %w", ErrWrite, err)
		}
		if b.Digest == [sha1.Size]byte(ofImage.Sum(nil)) {
			return DigestOfImage, nil
		}
	}
	return "", fault("The image in the bundle is damaged: its SHA-1 is not the manifest's.")
}

// copyImage copies size bytes and leaves zeros out.
func copyImage(ctx context.Context, w io.WriterAt, r io.Reader, size int64, copied func(n int64)) error {
	buf, zero := make([]byte, stretch), make([]byte, stretch)
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(stretch, size-at)]
		if _, err := io.ReadFull(r, b); err != nil {
			return fmt.Errorf("the image ends early: %w", err)
		}
		if string(b) != string(zero[:len(b)]) {
			if _, err := w.WriteAt(b, at); err != nil {
				return fmt.Errorf("%w: %w", ErrWrite, err)
			}
		}
		at += int64(len(b))
		copied(int64(len(b)))
	}
	return nil
}

// bounded ends a stream that is longer than it may be.
type bounded struct {
	r    io.Reader
	left int64
}

func (l *bounded) Read(b []byte) (int, error) {
	if l.left <= 0 {
		return 0, fault("The bundle unpacks to more than its manifest says.")
	}
	n, err := l.r.Read(b[:min(int64(len(b)), l.left)])
	l.left -= int64(n)
	return n, err
}

// zeros takes nothing but zeros, which is what follows the end of a tar.
type zeros struct{}

func (zeros) Write(b []byte) (int, error) {
	for _, c := range b {
		if c != 0 {
			return 0, fault("The bundle's tar is followed by something else.")
		}
	}
	return len(b), nil
}
