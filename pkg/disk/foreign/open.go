package foreign

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/qcow2"
)

// maxWrappings is how deep archives may lie in each other (a vmdk in an ova in
// a gzip).
const maxWrappings = 4

// Open opens the disk at path for reading. Auto finds its format. Where the
// bytes have to be unpacked they lie in tmpDir, as a sparse file. The closer
// releases everything but tmpDir. It returns the package's sentinels.
func Open(ctx context.Context, path string, format Format, tmpDir string, step ami.Step) (qcow2.Source, io.Closer, error) {
	for range maxWrappings {
		f, err := os.Open(path)
		if err != nil {
			return nil, nil, err
		}
		st, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, nil, err
		}
		found, err := Probe(f, st.Size())
		switch {
		case format == Raw && found != GZ && found != XZ && found != ZST:
			found, err = Raw, nil // as was said
		case err == nil && format != Auto && found != format && found != GZ && found != XZ && found != ZST && found != OVA:
			err = fmt.Errorf("%w: it was said to be %s and is %s", ErrNotADisk, format, found)
		}
		if err == nil {
			err = check(f, st.Size(), found)
		}
		if err != nil {
			f.Close()
			return nil, nil, err
		}
		switch found {
		case Raw:
			src, err := qcow2.RawSource(f)
			return src, f, err
		case QCOW2:
			f.Close()
			img, err := qcow2.Open(path)
			if err != nil {
				return nil, nil, fmt.Errorf("%w: %w", ErrTruncated, err)
			}
			return qcow2.Flatten(img), img, nil
		case VMDK, VHD, VHDX:
			f.Close()
			return convert(ctx, path, found, tmpDir)
		}
		next, err := os.CreateTemp(tmpDir, "unpacked-*")
		if err != nil {
			f.Close()
			return nil, nil, err
		}
		err = unpack(ctx, next, f, found, tmpDir, step)
		f.Close()
		if cerr := next.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return nil, nil, err
		}
		path = next.Name()
	}
	return nil, nil, fmt.Errorf("%w: more than %d archives in each other", ErrUnsupported, maxWrappings)
}

// qemuNames are the formats as qemu-img calls them.
var qemuNames = map[Format]string{VMDK: "vmdk", VHD: "vpc", VHDX: "vhdx"} //nolint:gochecknoglobals // never written

func convert(ctx context.Context, path string, format Format, tmpDir string) (qcow2.Source, io.Closer, error) {
	// A relative name with a colon in it would be a protocol to qemu-img.
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, nil, err
	}
	out := filepath.Join(tmpDir, "converted.raw")
	args := []string{"convert", "-f", qemuNames[format], "-O", "raw", "-S", "64k", path, out}
	if text, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		if strings.Contains(string(text), "No space left") {
			return nil, nil, fmt.Errorf("%w: %s", ErrNoSpace, strings.TrimSpace(string(text)))
		}
		return nil, nil, fmt.Errorf("%w: qemu-img: %s", ErrTruncated, strings.TrimSpace(string(text)))
	}
	f, err := os.Open(out)
	if err != nil {
		return nil, nil, err
	}
	src, err := qcow2.RawSource(f)
	return src, f, err
}

func unpack(ctx context.Context, dst *os.File, src *os.File, format Format, tmpDir string, step ami.Step) error {
	var r io.Reader
	switch format {
	case GZ:
		z, err := gzip.NewReader(src)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTruncated, err)
		}
		r = z
	case XZ:
		z, err := xzReader(src)
		if err != nil {
			return err
		}
		r = z
	case ZST:
		z, err := zstd.NewReader(src, zstd.WithDecoderMaxWindow(256<<20))
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTruncated, err)
		}
		defer z.Close()
		r = z
	case OVA:
		member, err := findDisk(src)
		if err != nil {
			return err
		}
		r = member
	}
	return copySparse(ctx, dst, r, tmpDir, step)
}

// findDisk goes to the one disk in an archive. Names are looked at only for
// their ending: nothing is ever written under them.
func findDisk(src io.Reader) (io.Reader, error) {
	tr := tar.NewReader(src)
	for range 1000 {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: an archive without a disk", ErrNotADisk)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrTruncated, err)
		}
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse {
			continue
		}
		switch ext := strings.ToLower(path.Ext(h.Name)); ext {
		case ".vmdk", ".vhd", ".vhdx", ".img", ".raw", ".qcow2", ".gz":
			return tr, nil
		}
	}
	return nil, fmt.Errorf("%w: an archive of more than 1000 members", ErrUnsupported)
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
		if size > 1<<46 {
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
