package foreign

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

// What bounds a look over an archive.
const (
	maxMembers = 1000
	maxText    = 1 << 20 // of a description and of a manifest, in bytes
	maxHoles   = 2 << 40 // that a member has more than its archive, in bytes: reading them takes minutes
)

// archive is what a look over an OVA ([DSP0243]: a tar of a description, a
// manifest and disks) found. A plain tar of disks will do.
type archive struct {
	disks []string // names of members
	empty []string // names of disks without one
	sums  map[string]sum
}

// sum is a digest of a manifest.
type sum struct{ kind, want string }

// openArchive adds the disks of an archive.
func (o *opener) openArchive(ctx context.Context, f *os.File, path string, format Format, wrapped int) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	a, err := lookOver(f)
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	paths, err := o.unpackArchive(ctx, f, st.Size(), a)
	if err := errors.Join(err, o.used(path, wrapped)); err != nil {
		return err
	}
	if format == OVA { // as it is; what is in it was not said
		format = Auto
	}
	o.disks.Empty = append(o.disks.Empty, a.empty...)
	for i, name := range a.disks {
		err := o.open(ctx, paths[i], name, format, wrapped+1)
		if errors.Is(err, ErrNotADisk) { // to say that it is raw would be to say it of the archive
			return fmt.Errorf("%w: %q: %s", ErrUnsupported, name, err.Error())
		}
		if err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	return nil
}

// unpackArchive writes the disks of an archive into files of their own, and
// holds all that its manifest lists against that.
func (o *opener) unpackArchive(ctx context.Context, src io.Reader, size int64, a archive) ([]string, error) {
	paths := make([]string, len(a.disks))
	return paths, walk(src, func(h *tar.Header, r io.Reader) (err error) {
		name := memberName(h)
		i := slices.Index(a.disks, name)
		sum, listed := a.sums[name]
		digest := sum.hash()
		if listed {
			r = io.TeeReader(r, digest)
		}
		switch {
		case i >= 0 && h.Size > maxSize: // before hours of zeros
			err = fmt.Errorf("%w: the archive's %q has %d bytes; at most 64 TiB are taken", ErrUnsupported, name, h.Size)
		case i >= 0 && h.Size-size > maxHoles:
			err = fmt.Errorf("%w: the archive's %q has %d bytes, nearly all of them holes; import the disk without the archive", ErrUnsupported, name, h.Size)
		case i >= 0:
			paths[i], err = o.unpack(ctx, r)
		case listed && h.Size > size: // holes without end, to no purpose
			err = fmt.Errorf("%w: the archive's %q has %d bytes", ErrUnsupported, name, h.Size)
		case listed:
			err = drain(ctx, r)
		}
		if err != nil || !listed {
			return err
		}
		if got := hex.EncodeToString(digest.Sum(nil)); got != sum.want {
			return fmt.Errorf("%w: %q has the %s %s, and %s in its manifest", ErrDamaged, name, sum.kind, got, sum.want)
		}
		return nil
	})
}

// walk goes over the files in an archive. Nothing is ever written under their
// names.
func walk(src io.Reader, visit func(h *tar.Header, r io.Reader) error) error {
	tr := tar.NewReader(src)
	for range maxMembers {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTruncated, err)
		}
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse {
			continue
		}
		if err := visit(h, tr); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: an archive of more than %d members", ErrUnsupported, maxMembers)
}

func memberName(h *tar.Header) string { return path.Clean(h.Name) }

// lookOver finds the disks of an archive, without unpacking anything: those that
// its description names, or else all whose names end as a disk's.
func lookOver(src io.Reader) (archive, error) {
	var ovf, mf []byte
	var images []string
	members := map[string]bool{}
	err := walk(src, func(h *tar.Header, r io.Reader) (err error) {
		name := memberName(h)
		if members[name] {
			return fmt.Errorf("%w: an archive with two members %q", ErrUnsupported, name)
		}
		members[name] = true
		switch ext := strings.ToLower(path.Ext(name)); {
		case ext == ".ovf" && ovf == nil:
			ovf, err = text(r, name)
		case ext == ".mf" && mf == nil:
			mf, err = text(r, name)
		case strings.HasPrefix(path.Base(name), "."): // what file managers leave
		case slices.Contains([]string{".vmdk", ".vhd", ".vhdx", ".img", ".raw", ".qcow2", ".gz"}, ext):
			images = append(images, name)
		}
		return err
	})
	if err != nil {
		return archive{}, err
	}
	var a archive
	if a.sums, err = sums(mf, members); err != nil {
		return archive{}, err
	}
	if len(ovf) > 0 {
		if err := a.describe(ovf, members); err != nil {
			return archive{}, err
		}
	}
	if len(a.disks) == 0 {
		a.disks = images
	}
	switch {
	case len(a.disks) == 0:
		return archive{}, fmt.Errorf("%w: an archive without a disk", ErrUnsupported)
	case len(a.disks) > maxDisks:
		return archive{}, fmt.Errorf("%w: an archive of %d disks; at most %d are taken", ErrUnsupported, len(a.disks), maxDisks)
	}
	return a, nil
}

// describe takes the disks from an archive's description.
func (a *archive) describe(ovf []byte, members map[string]bool) error {
	var envelope struct {
		Files []struct {
			ID    string `xml:"id,attr"`
			Href  string `xml:"href,attr"`
			Chunk string `xml:"chunkSize,attr"`
		} `xml:"References>File"`
		Disks []struct {
			ID     string `xml:"diskId,attr"`
			File   string `xml:"fileRef,attr"`
			Parent string `xml:"parentRef,attr"`
		} `xml:"DiskSection>Disk"`
	}
	dec := xml.NewDecoder(bytes.NewReader(ovf))
	// What is looked for is ASCII in all that is written.
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	if err := dec.Decode(&envelope); err != nil {
		return fmt.Errorf("%w: its description: %w", ErrDamaged, err)
	}
	files, chunked := map[string]string{}, map[string]bool{}
	for _, f := range envelope.Files {
		files[f.ID], chunked[f.ID] = f.Href, f.Chunk != ""
	}
	for _, d := range envelope.Disks {
		name := listedName(files[d.File], members)
		switch {
		case d.Parent != "":
			return fmt.Errorf("%w: the disk %q stands on another", ErrUnsupported, d.ID)
		case d.File == "":
			a.empty = append(a.empty, d.ID)
		case !members[name] && chunked[d.File]:
			return fmt.Errorf("%w: %q is in pieces; make the archive anew without chunkSize", ErrUnsupported, name)
		case !members[name]:
			return fmt.Errorf("%w: %q, which its description names for the disk %q, is not in the archive", ErrDamaged, name, d.ID)
		case slices.Contains(a.disks, name):
			return fmt.Errorf("%w: two disks of the one file %q", ErrUnsupported, name)
		default:
			a.disks = append(a.disks, name)
		}
	}
	return nil
}

var manifestLine = regexp.MustCompile(`^(?i:SHA-?(1|256|512)) ?\((.+)\) ?= ?([0-9A-Fa-f]+)$`)

// sums reads a manifest, whose lines are as "SHA256(disk.vmdk)= 0f3a…". A line
// that cannot be checked is refused: who wrote it counts on it.
func sums(manifest []byte, members map[string]bool) (map[string]sum, error) {
	out := map[string]sum{}
	for line := range strings.SplitSeq(string(manifest), "\n") {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		m := manifestLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("%w: its manifest's line %.200q; only SHA-1, SHA-256 and SHA-512 can be checked", ErrUnsupported, line)
		}
		name := listedName(m[2], members)
		if !members[name] {
			return nil, fmt.Errorf("%w: %.200q, which its manifest lists, is not in the archive", ErrDamaged, name)
		}
		if _, ok := out[name]; ok {
			return nil, fmt.Errorf("%w: its manifest lists %.200q twice", ErrDamaged, name)
		}
		out[name] = sum{"SHA-" + m[1], strings.ToLower(m[3])}
	}
	return out, nil
}

// listedName is the member that a description or a manifest means; they may
// write it as a URL.
func listedName(name string, members map[string]bool) string {
	name = path.Clean(name)
	if plain, err := url.PathUnescape(name); err == nil && !members[name] {
		return plain
	}
	return name
}

func (s sum) hash() hash.Hash {
	switch s.kind {
	case "SHA-1":
		return sha1.New()
	case "SHA-256":
		return sha256.New()
	}
	return sha512.New()
}

// text reads a member that is to be understood.
func text(r io.Reader, name string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTruncated, err)
	}
	if len(b) > maxText {
		return nil, fmt.Errorf("%w: the archive's %q has more than %d bytes", ErrUnsupported, name, maxText)
	}
	return b, nil
}

// drain reads to the end.
func drain(ctx context.Context, r io.Reader) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := io.CopyN(io.Discard, r, 1<<20)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTruncated, err)
		}
	}
}
