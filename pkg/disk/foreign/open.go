package foreign

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/qcow2"
)

const (
	// maxWrappings is how deep archives may lie in each other (a vmdk in an ova
	// in a gzip).
	maxWrappings = 4
	// maxDisks is how many disks an archive may have.
	maxDisks = 16
	// maxSize is how large an unpacked disk may be, in bytes: EC2's largest volume.
	maxSize = 1 << 46
)

// Disks are the disks of one file: of an archive all, in order, else one.
type Disks struct {
	Disks []Disk   // at least one
	Blank bool     // the first one has nothing but zeros
	Empty []string // disks that an archive describes and has no file of

	closers []io.Closer
}

// Disk is one disk for reading.
type Disk struct {
	Name string // in its archive; "" where it is in none
	qcow2.Source
}

// Close releases all that the disks are read from.
func (d *Disks) Close() error {
	var errs []error
	for _, c := range d.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Open opens the disks in the file at path for reading. Auto finds its format.
// Where the bytes have to be unpacked they lie in tmpDir, as sparse files. Close
// releases everything but tmpDir. It returns the package's sentinels.
func Open(ctx context.Context, path string, format Format, tmpDir string, step ami.Step) (*Disks, error) {
	o := opener{tmpDir: tmpDir, step: step, disks: &Disks{}}
	err := o.open(ctx, path, "", format, 0)
	if err == nil {
		o.disks.Blank, err = isBlank(ctx, o.disks.Disks[0])
	}
	if err != nil {
		o.disks.Close()
		return nil, err
	}
	return o.disks, nil
}

// opener unwraps one file.
type opener struct {
	tmpDir string
	step   ami.Step
	disks  *Disks
}

// open adds the disks in the file at path, which lies in wrapped others.
func (o *opener) open(ctx context.Context, path, name string, format Format, wrapped int) error {
	if wrapped == maxWrappings {
		return fmt.Errorf("%w: more than %d archives in each other", ErrUnsupported, maxWrappings)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	found, err := look(ctx, f, format)
	if err != nil {
		f.Close()
		return err
	}
	if found == Raw {
		src, err := qcow2.RawSource(f)
		return o.add(name, src, f, err)
	}
	defer f.Close()
	switch found {
	case QCOW2:
		img, err := qcow2.Open(path)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTruncated, err)
		}
		return o.add(name, qcow2.Flatten(img), img, nil)
	case VMDK, VHD, VHDX:
		src, closer, err := convert(ctx, path, found, o.tmpDir)
		return o.add(name, src, closer, errors.Join(err, o.used(path, wrapped)))
	case OVA:
		return o.openArchive(ctx, f, path, format, wrapped)
	}
	next, err := o.decompress(ctx, f, found)
	if err := errors.Join(err, o.used(path, wrapped)); err != nil {
		return err
	}
	return o.open(ctx, next, name, format, wrapped+1)
}

func (o *opener) add(name string, src qcow2.Source, closer io.Closer, err error) error {
	if closer != nil {
		o.disks.closers = append(o.disks.closers, closer)
	}
	if err == nil && len(o.disks.Disks) == maxDisks {
		err = fmt.Errorf("%w: an archive of more than %d disks", ErrUnsupported, maxDisks)
	}
	if err == nil {
		o.disks.Disks = append(o.disks.Disks, Disk{name, src})
	}
	return err
}

// used removes a file that was unpacked and is not needed any more.
func (o *opener) used(path string, wrapped int) error {
	if wrapped == 0 { // what was given
		return nil
	}
	return os.Remove(path)
}

// look finds the format of a file, refuses what is not what it was said to be,
// and looks into its header.
func look(ctx context.Context, f *os.File, format Format) (Format, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	found, err := Probe(f, st.Size())
	packed := found == GZ || found == XZ || found == ZST
	switch {
	case format == Raw && !packed:
		found, err = Raw, nil // as was said
	case errors.Is(err, ErrNotADisk) && st.Size() > 0 && format == Auto:
		// Nothing but zeros can only be raw.
		src, serr := qcow2.RawSource(f)
		if serr != nil {
			return "", serr
		}
		blank, berr := isBlank(ctx, src)
		if berr != nil {
			return "", berr
		}
		if blank {
			found, err = Raw, nil
		}
	case err == nil && format != Auto && found != format && !packed && found != OVA:
		err = fmt.Errorf("%w: it was said to be %s and is %s", ErrNotADisk, format, found)
	}
	if err != nil {
		return "", err
	}
	return found, check(f, st.Size(), found)
}

// qemuNames are the formats as qemu-img calls them.
var qemuNames = map[Format]string{VMDK: "vmdk", VHD: "vpc", VHDX: "vhdx"} //nolint:gochecknoglobals // never written

func convert(ctx context.Context, path string, format Format, tmpDir string) (qcow2.Source, io.Closer, error) {
	// A relative name with a colon in it would be a protocol to qemu-img.
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, nil, err
	}
	out, err := os.CreateTemp(tmpDir, "converted-*.raw")
	if err != nil {
		return nil, nil, err
	}
	args := []string{"convert", "-f", qemuNames[format], "-O", "raw", "-S", "64k", path, out.Name()}
	if text, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput(); err != nil {
		out.Close()
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		if strings.Contains(string(text), "No space left") {
			return nil, nil, fmt.Errorf("%w: %s", ErrNoSpace, strings.TrimSpace(string(text)))
		}
		return nil, nil, fmt.Errorf("%w: qemu-img: %s", ErrTruncated, strings.TrimSpace(string(text)))
	}
	src, err := qcow2.RawSource(out)
	return src, out, err
}

// decompress returns the path of what is in a compressed file.
func (o *opener) decompress(ctx context.Context, src *os.File, format Format) (string, error) {
	var r io.Reader
	switch format {
	case GZ:
		z, err := gzip.NewReader(src)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrTruncated, err)
		}
		r = z
	case XZ:
		z, err := xzReader(src)
		if err != nil {
			return "", err
		}
		r = z
	case ZST:
		z, err := zstd.NewReader(src, zstd.WithDecoderMaxWindow(256<<20))
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrTruncated, err)
		}
		defer z.Close()
		r = z
	}
	return o.unpack(ctx, r)
}

// unpack writes what r reads into a file of its own and returns its path.
func (o *opener) unpack(ctx context.Context, r io.Reader) (string, error) {
	f, err := os.CreateTemp(o.tmpDir, "unpacked-*")
	if err != nil {
		return "", err
	}
	err = copySparse(ctx, f, r, o.tmpDir, o.step)
	return f.Name(), errors.Join(err, f.Close())
}

// keepFree is what unpacking leaves of the disk's space, in bytes.
const keepFree = 128 << 20

// copySparse leaves zeros out and stops before the disk is full.
func copySparse(ctx context.Context, dst *os.File, r io.Reader, tmpDir string, step ami.Step) error {
	buf := make([]byte, 1<<20)
	zero := make([]byte, len(buf))
	size, sinceCheck := int64(0), int64(1<<62)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if sinceCheck > 64<<20 {
			if err := checkFree(tmpDir); err != nil {
				return err
			}
			sinceCheck = 0
		}
		n, err := io.ReadFull(r, buf)
		if n > 0 && string(buf[:n]) != string(zero[:n]) {
			if _, werr := dst.WriteAt(buf[:n], size); werr != nil {
				if errors.Is(werr, syscall.ENOSPC) {
					return fmt.Errorf("%w: %w", ErrNoSpace, werr)
				}
				return werr
			}
		}
		size, sinceCheck = size+int64(n), sinceCheck+int64(n)
		step.Add(int64(n))
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && n > 0 && atEnd(r) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTruncated, err)
		}
		if size > maxSize {
			return fmt.Errorf("%w: it unpacks to more than 64 TiB", ErrUnsupported)
		}
	}
	return dst.Truncate(size)
}

// atEnd tells a stream that ended well from one that is cut off: reading on
// gives EOF only from the former.
func atEnd(r io.Reader) bool {
	_, err := r.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

func checkFree(dir string) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < keepFree {
		return fmt.Errorf("%w: %d MiB free at %s", ErrNoSpace, free>>20, dir)
	}
	return nil
}
