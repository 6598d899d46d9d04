package region

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/object"
)

// A stored image is one file: a tar with the parcel, then the layers as they are,
// which are compressed, and the objects, in the order in which the parcel names
// them. Nothing else may be in it.
const (
	storedRecord = "kami-image.json"
	storedSuffix = ".bin"
)

// StoreImageInput asks for an image as one file.
type StoreImageInput struct {
	Image  string // id or name
	To     string // a folder or object store, where it is ami-….bin; or the file, which ends with .bin
	DryRun bool
}

// StoredImage is an image that was stored.
type StoredImage struct {
	ImageID ami.ImageID `json:"ImageId"`
	At      string      `json:"ObjectKey"` // path, or address of the object
	Bytes   int64       `json:"SizeInBytes"`
}

// StoreImage writes an image, with its tags and all that its snapshots stand on, to
// one file or object. It has its name when it is complete. Encrypted layers stay so,
// and are of no use without their key. Who may use the image is not in it.
func (r *Region) StoreImage(ctx context.Context, in StoreImageInput) (StoredImage, error) {
	from := &near{r: r}
	defer from.letGo(ctx)
	p, err := from.parcel(ctx, in.Image)
	if err != nil {
		return StoredImage{}, err
	}
	if err := checkSold(p.Image, r.account); err != nil {
		return StoredImage{}, err
	}
	if err := r.checkGiven(ctx, p.Image.ImageID); err != nil {
		return StoredImage{}, err
	}
	if p.Image.VirtualizationType == ami.VirtualizationParavirtual {
		return StoredImage{}, ami.Errorf(ami.CodeUnsupportedOperation, "The image %s is paravirtual: it starts with a kernel of this region, which is not in it.", p.Image.ImageID).
			WithHint("Copy it to the region where it is wanted: kami image copy.")
	}
	to, name := placeOf(in.To, string(p.Image.ImageID)+storedSuffix)
	done := StoredImage{ImageID: p.Image.ImageID, At: strings.TrimSuffix(to, "/") + "/" + name}
	if strings.Contains(to, "://") {
		done.At = in.To
	}
	if in.DryRun {
		return done, dryRun("store %s as %s in %s", p.Image.ImageID, name, to)
	}
	text, err := p.encode()
	if err != nil {
		return done, err
	}
	if _, err := parseParcel(text); err != nil {
		return done, storeError(err, "The image %s cannot be stored.", p.Image.ImageID)
	}
	if err := r.verifyParcel(ctx, p); err != nil {
		return done, copyError(err, p)
	}
	file := &stored{}
	defer file.close()
	if err := r.layOut(file, p, text); err != nil {
		return done, storeError(err, "The image %s cannot be stored.", p.Image.ImageID)
	}
	done.Bytes = file.size
	step := r.progress.Step("storing "+string(p.Image.ImageID), file.size)
	err = r.writeStored(ctx, to, name, file, step)
	step.Done(err)
	return done, err
}

// checkGiven refuses to store an image that is neither the caller's nor shared with him
// by name: as with EC2, that it is everybody's to launch is not enough.
func (r *Region) checkGiven(ctx context.Context, id ami.ImageID) error {
	image, err := r.image(ctx, id) // with the permissions, which its owner alone is shown
	if err != nil || image.OwnerID == r.account || image.SharedWith(r.account, r.organizations()...) {
		return err
	}
	return ami.Errorf(ami.CodeAuthFailure, "Not authorized for image:%s", id).
		WithHint("It is public, and stored by its owner and those whom it is shared with by name. It can be launched, and copied.")
}

// placeOf splits where a stored image is to be into a folder or store and its name.
func placeOf(to, name string) (dir, base string) {
	if !strings.Contains(to, "://") {
		if strings.HasSuffix(to, storedSuffix) {
			return filepath.Dir(to), filepath.Base(to)
		}
		return to, name
	}
	u, err := url.Parse(to)
	if err != nil || !strings.HasSuffix(u.Path, storedSuffix) {
		return to, name // who opens the store says what is wrong with it
	}
	base = path.Base(u.Path)
	u.Path, u.RawPath = path.Dir(u.Path), ""
	return u.String(), base
}

// verifyParcel reads all layers of a parcel: what is damaged is not handed on.
func (r *Region) verifyParcel(ctx context.Context, p parcel) error {
	var all []digest.Digest
	var size int64
	for _, l := range p.Layers {
		all, size = append(all, l.Digest), size+l.FileSize
	}
	step := r.progress.Step("verifying "+string(p.Image.ImageID), size)
	errs := make(chan error, len(all))
	err := r.layers.VerifyLayers(ctx, all, step, func(_ digest.Digest, err error) { errs <- err })
	close(errs)
	for e := range errs {
		err = errors.Join(err, e)
	}
	step.Done(err)
	return err
}

func (r *Region) writeStored(ctx context.Context, to, name string, file *stored, step ami.Step) error {
	if !strings.Contains(to, "://") {
		at := filepath.Join(to, name)
		if err := checkNewFile(at); err != nil {
			return err
		}
		err := durable.WriteFile(at, 0o600, func(f *os.File) error {
			return copyStep(ctx, f, io.NewSectionReader(file, 0, file.size), step)
		})
		return storeError(err, "%s cannot be written.", at)
	}
	store, err := object.Open(ctx, to, object.Options{})
	if err != nil {
		return objectError(err, to)
	}
	defer store.Close()
	err = store.PutNew(ctx, name, io.NewSectionReader(told{file, step}, 0, file.size), file.size)
	if errors.Is(err, object.ErrExists) {
		return ami.Errorf(ami.CodeInvalidParameterValue, "%s exists in %s.", name, store.URL()).WithHint("An image is stored in a place once; choose another, or remove that one.")
	}
	return objectError(err, to)
}

// told tells of what is read.
type told struct {
	io.ReaderAt
	step ami.Step
}

func (t told) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.ReaderAt.ReadAt(p, off)
	t.step.Add(int64(n))
	return n, err
}

// stored is a stored image that is nowhere as a whole: parts, one behind the other.
type stored struct {
	parts []part
	size  int64
	files []*os.File
}

type part struct {
	at, size int64
	from     io.ReaderAt
}

func (s *stored) add(from io.ReaderAt, size int64) {
	s.parts = append(s.parts, part{s.size, size, from})
	s.size += size
}

func (s *stored) close() {
	for _, f := range s.files {
		f.Close()
	}
}

func (s *stored) ReadAt(p []byte, off int64) (n int, err error) {
	i := sort.Search(len(s.parts), func(i int) bool { return s.parts[i].at+s.parts[i].size > off })
	for ; n < len(p) && i < len(s.parts); i++ {
		skip := off + int64(n) - s.parts[i].at
		want := min(s.parts[i].size-skip, int64(len(p)-n))
		got, err := s.parts[i].from.ReadAt(p[n:n+int(want)], skip)
		n += got
		if int64(got) < want {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// layOut puts the parts of a stored image together.
func (r *Region) layOut(s *stored, p parcel, text []byte) error {
	const block = 512 // tar's
	entry := func(name string, from io.ReaderAt, size int64) error {
		var head bytes.Buffer
		// No time and no owner: the same image is the same file.
		if err := tar.NewWriter(&head).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600}); err != nil {
			return err
		}
		s.add(bytes.NewReader(head.Bytes()), int64(head.Len()))
		s.add(from, size)
		if pad := (block - size%block) % block; pad > 0 {
			s.add(bytes.NewReader(make([]byte, pad)), pad)
		}
		return nil
	}
	if err := entry(storedRecord, bytes.NewReader(text), int64(len(text))); err != nil {
		return err
	}
	for _, l := range p.Layers {
		chain, err := r.layers.Chain(l.Digest)
		if err != nil {
			return err
		}
		f, err := os.Open(chain[0])
		if err != nil {
			return err
		}
		s.files = append(s.files, f)
		if err := entry(storedLayer(l.Digest), f, l.FileSize); err != nil {
			return err
		}
	}
	for _, d := range p.objects() {
		b, err := r.object(d)
		if err != nil {
			return err
		}
		if err := entry(objectRecord(d), bytes.NewReader(b), int64(len(b))); err != nil {
			return err
		}
	}
	s.add(bytes.NewReader(make([]byte, 2*block)), 2*block)
	return nil
}

func storedLayer(d digest.Digest) string { return fmt.Sprintf("layers/%s.qcow2", d.Hex()) }
