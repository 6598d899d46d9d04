package region

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// RestoreImageInput asks for an image of a file that StoreImage wrote.
type RestoreImageInput struct {
	From   string // a path or the address of an object
	Name   string // "" is the stored image's
	Tags   []ami.Tag
	DryRun bool
}

// RestoreStoredImage makes an image of a stored one: with another id, and the caller's.
// The file is hostile until its bytes have come to the digests that it names, and
// what they hold to be layers. Layers that the region has are read for that alone:
// who knows no more than a layer's name does not get it.
func (r *Region) RestoreStoredImage(ctx context.Context, in RestoreImageInput) (CopiedImage, error) {
	scratch, err := durable.NewScratch(r.path("tmp"), "restore")
	if err != nil {
		return CopiedImage{}, storeError(err, "No work folder can be made.")
	}
	defer scratch.Close()
	body, size, closed, err := openStored(ctx, in.From)
	if err != nil {
		return CopiedImage{}, err
	}
	defer closed()
	from := &unpacker{r: r, tar: tar.NewReader(body), scratch: scratch, seen: map[string]bool{}}
	p, err := from.parcel(ctx, in.From)
	if err != nil {
		return CopiedImage{}, restoreError(err, in.From)
	}
	p.Image.OwnerID = r.account // what is restored is the caller's
	if in.Name == "" {
		in.Name = p.Image.Name
	}
	what := CopyImageInput{Name: in.Name, Description: p.Image.Description, CopyImageTags: true, Tags: in.Tags, DryRun: in.DryRun}
	if what.Description == "" {
		what.Description = fmt.Sprintf("[Restored %s from %s]", p.Image.ImageID, p.Region)
	}
	from.step = r.progress.Step("restoring "+string(p.Image.ImageID), size)
	done, err := r.receive(ctx, what, from, p, func(ami.ImageID) error { return nil })
	from.step.Done(err)
	return done, restoreError(err, in.From)
}

// openStored opens a stored image, to be read once.
func openStored(ctx context.Context, from string) (body io.Reader, size int64, closed func(), err error) {
	if !strings.Contains(from, "://") {
		f, err := os.Open(from)
		if err != nil {
			return nil, 0, nil, ami.Errorf(ami.CodeInvalidParameterValue, "%s cannot be read: %w.", from, err)
		}
		st, err := f.Stat()
		if err == nil && !st.Mode().IsRegular() && st.Mode()&fs.ModeNamedPipe == 0 {
			err = errors.New("it is no file")
		}
		if err != nil {
			f.Close()
			return nil, 0, nil, ami.Errorf(ami.CodeInvalidParameterValue, "%s cannot be read: %w.", from, err)
		}
		return f, st.Size(), func() { f.Close() }, nil
	}
	at, name := placeOf(from, "")
	if name == "" {
		return nil, 0, nil, ami.Errorf(ami.CodeInvalidParameterValue, "%s is not the address of a stored image, which ends with %s.", from, storedSuffix)
	}
	store, err := object.Open(ctx, at, object.Options{})
	if err != nil {
		return nil, 0, nil, objectError(err, at)
	}
	got, info, err := store.Get(ctx, name)
	if err != nil {
		store.Close()
		if errors.Is(err, object.ErrNotFound) {
			return nil, 0, nil, ami.Errorf(ami.CodeInvalidParameterValue, "There is no %s in %s.", name, at)
		}
		return nil, 0, nil, objectError(err, at)
	}
	return got, info.Size, func() { got.Close(); store.Close() }, nil
}

// restoreError is what went wrong with a stored image, for a person.
func restoreError(err error, from string) error {
	var known *ami.Error
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &known) && known.Code != ami.CodeInternalError:
		return err
	case errors.Is(err, errParcel), errors.Is(err, snapshot.ErrCorrupt), errors.Is(err, snapshot.ErrPlain), errors.Is(err, snapshot.ErrNotFound), errors.Is(err, qcow2.ErrCorrupt), errors.Is(err, qcow2.ErrNotQCOW2),
		errors.Is(err, qcow2.ErrUnsupported), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, tar.ErrHeader):
		if known != nil {
			err = known.Err
		}
		return ami.Errorf(ami.CodeInvalidParameterValue, "%s cannot be restored: %w.", from, err).
			WithHint("Fetch it again, or store the image again where it comes from; nothing was made of it.")
	}
	return storeError(err, "%s cannot be restored.", from)
}

// unpacker is a stored image as the origin of one image: a stream, of which each
// layer comes behind those that it stands on.
type unpacker struct {
	r       *Region
	tar     *tar.Reader
	scratch *durable.Scratch
	step    ami.Step
	p       parcel
	seen    map[string]bool // layers whose bytes were right
}

func (u *unpacker) close(context.Context) {}

// same: its layers are encrypted with keys that this region has to have.
func (u *unpacker) same(*Region) bool { return true }

func (u *unpacker) parcel(context.Context, string) (parcel, error) {
	h, err := u.tar.Next()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return u.p, fmt.Errorf("%w: %w", errParcel, err)
	}
	if h.Name != storedRecord || h.Typeflag != tar.TypeReg || h.Size > maxParcel {
		return u.p, fmt.Errorf("%w: it begins with %.64q of %d bytes", errParcel, h.Name, h.Size)
	}
	b, err := io.ReadAll(u.tar)
	if err != nil {
		return u.p, fmt.Errorf("%w: %w", errParcel, err)
	}
	u.p, err = parseParcel(b)
	if err == nil && u.p.Image.VirtualizationType != ami.VirtualizationHVM {
		err = fmt.Errorf("%w: its virtualization type is %.20q", errParcel, u.p.Image.VirtualizationType)
	}
	return u.p, err
}

// next goes forward to an entry, which has to have that size (-1 for one that is
// small), verifying the layers that it passes over. It returns io.EOF at the end.
func (u *unpacker) next(ctx context.Context, name string, size int64) (io.Reader, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := u.tar.Next()
		if errors.Is(err, io.EOF) {
			return nil, err
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errParcel, err)
		}
		if h.Typeflag != tar.TypeReg {
			return nil, fmt.Errorf("%w: %.64q in it is no file", errParcel, h.Name)
		}
		if h.Name == name {
			if size >= 0 && h.Size != size || size < 0 && h.Size > maxObject {
				return nil, fmt.Errorf("%w: %.80q in it has %d bytes", errParcel, name, h.Size)
			}
			return u.tar, nil
		}
		i := slices.IndexFunc(u.p.Layers, func(l parcelLayer) bool { return storedLayer(l.Digest) == h.Name && l.FileSize == h.Size })
		if i < 0 {
			return nil, fmt.Errorf("%w: %.80q of %d bytes is not to be in it, or not there", errParcel, h.Name, h.Size)
		}
		if err := u.verified(ctx, u.p.Layers[i], io.Discard, u.tar); err != nil {
			return nil, err
		}
	}
}

// verified copies the bytes of a layer and verifies them.
func (u *unpacker) verified(ctx context.Context, l parcelLayer, to io.Writer, from io.Reader) error {
	h := sha256.New()
	if err := copyStep(ctx, io.MultiWriter(to, h), from, u.step); err != nil {
		return err
	}
	if got := digest.FromSum([sha256.Size]byte(h.Sum(nil))); got != l.Digest {
		return fmt.Errorf("%w: the bytes of %s have the digest %s", snapshot.ErrCorrupt, l.Digest.Short(), got.Short())
	}
	u.seen[storedLayer(l.Digest)] = true
	return nil
}

func (u *unpacker) end(ctx context.Context) error {
	if _, err := u.next(ctx, "", -1); !errors.Is(err, io.EOF) {
		return err
	}
	for _, l := range u.p.Layers {
		if !u.seen[storedLayer(l.Digest)] {
			return missingEntry(storedLayer(l.Digest))
		}
	}
	return nil
}

func missingEntry(name string) error {
	return fmt.Errorf("%w: %.80q is missing, or not in its place", errParcel, name)
}

// unpack writes a layer to the scratch folder, verified by its digest.
func (u *unpacker) unpack(ctx context.Context, l parcelLayer) (path string, err error) {
	from, err := u.next(ctx, storedLayer(l.Digest), l.FileSize)
	if errors.Is(err, io.EOF) {
		err = missingEntry(storedLayer(l.Digest))
	}
	if err != nil {
		return "", err
	}
	path = u.scratch.Path(l.Digest.Hex() + ".qcow2")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", err
	}
	return path, errors.Join(u.verified(ctx, l, f, from), f.Close())
}

func (u *unpacker) bring(ctx context.Context, to *Region, id ami.SnapshotID, l parcelLayer, parent digest.Digest, done *CopiedImage) (snapshot.Layer, error) {
	path, err := u.unpack(ctx, l)
	if err != nil {
		return snapshot.Layer{}, err
	}
	defer os.Remove(path)
	if parent == l.Parent {
		return to.adoptLayer(ctx, id, path, l, done)
	}
	// The region has the parent's content in another file.
	chain, err := to.layers.Chain(parent)
	if err != nil {
		return snapshot.Layer{}, err
	}
	img, err := qcow2.OpenKeyed(to.passphrase, path, chain...)
	if err != nil {
		return snapshot.Layer{}, err
	}
	defer img.Close()
	return to.rewriteLayer(ctx, id, img, l, parent, done)
}

func (u *unpacker) flat(context.Context, *Region, parcel, ami.Snapshot) (qcow2.Source, func() error, error) {
	return nil, nil, ami.Errorf(ami.CodeUnsupportedOperation, "The snapshots of the stored image need several keys, and only one of them would be theirs.")
}

func (u *unpacker) object(ctx context.Context, d digest.Digest) ([]byte, error) {
	from, err := u.next(ctx, objectRecord(d), -1)
	if errors.Is(err, io.EOF) {
		err = missingEntry(objectRecord(d))
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(from)
	if err == nil && digest.Of(b) != d {
		err = fmt.Errorf("%w: the object %s", snapshot.ErrCorrupt, d.Short())
	}
	return b, err
}
