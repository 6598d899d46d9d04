package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ExtentState says what one file knows of a run of the disk.
type ExtentState int

// The states. Unallocated is defined by the layer underneath; where there is
// none it reads as zeros.
const (
	Unallocated ExtentState = iota
	Zero
	Data
)

// Source is what a layer is written from. ReadAt returns what the guest sees,
// also where Extents says Unallocated ("as in the parent"). Both are safe for
// concurrent use.
type Source interface {
	io.ReaderAt
	// Size is the virtual size in bytes.
	Size() int64
	// Extents calls fn with consecutive runs that cover [off, off+length).
	Extents(ctx context.Context, off, length int64, fn func(off, length int64, state ExtentState) error) error
}

// Finisher is a Source that is told when all that is wanted of it has been read,
// so that it need not be held while that is laid out and made durable.
type Finisher interface{ Finish() }

// Image is an open chain of qcow2 files: a top and what it stands on.
type Image struct{ files []*file } // top first

// Open is OpenKeyed without keys: of an encrypted file it returns ErrNoKey.
func Open(path string, backing ...string) (*Image, error) {
	return OpenKeyed(nil, path, backing...)
}

// OpenKeyed opens the chain of the file at path and the given backing files,
// nearest first. Names inside the headers are not followed. Each file may be
// encrypted, and is asked for by the id of its key. It returns ErrNoKey,
// ErrWrongKey, ErrNotQCOW2, ErrUnsupported or ErrCorrupt.
func OpenKeyed(keys Keys, path string, backing ...string) (*Image, error) {
	img := &Image{}
	var known []*Encryption // a lineage has one: it is unlocked once
	for _, p := range append([]string{path}, backing...) {
		f, err := openFile(p)
		if err == nil {
			img.files = append(img.files, f)
			f.cached = img.files[0].cached
			if f.info.Encrypted {
				f.enc, err = readEncryption(keys, f.f, f.info, known...)
				known = append(known, f.enc)
			}
		}
		if err != nil {
			img.Close()
			return nil, fmt.Errorf("opening %s: %w", p, err)
		}
	}
	return img, nil
}

// Encryption is what the top file is encrypted with; nil if it is not.
func (img *Image) Encryption() *Encryption { return img.files[0].enc }

// Close closes all files of the chain.
func (img *Image) Close() error {
	var errs []error
	for _, f := range img.files {
		errs = append(errs, f.f.Close())
	}
	return errors.Join(errs...)
}

// Size is the virtual size in bytes.
func (img *Image) Size() int64 { return img.files[0].info.Size }

// Info is what the top file's header says.
func (img *Image) Info() Info { return img.files[0].info }

// ReadAt reads what the guest sees.
func (img *Image) ReadAt(p []byte, off int64) (int, error) {
	return readChain(img.files, p[:len(p):len(p)], off, img.Size())
}

// readChain reads p. What p has room for behind its end may be written over.
func readChain(files []*file, p []byte, off, size int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	if off >= size {
		return 0, io.EOF
	}
	want := len(p)
	if int64(len(p)) > size-off {
		p = p[:size-off]
	}
	done := 0
	for done < len(p) {
		n, err := readRun(files, p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	if done < want {
		return done, io.EOF
	}
	return done, nil
}

// readRun reads up to the end of one cluster of the topmost file that knows it.
func readRun(files []*file, p []byte, off int64) (int, error) {
	limit := int64(len(p))
	for _, f := range files {
		if off >= f.info.Size { // a shorter file underneath reads as zeros
			break
		}
		cluster := int64(1) << f.info.ClusterBits
		limit = min(limit, cluster-off%cluster, f.info.Size-off)
		entry, err := f.entry(off)
		if err != nil {
			return 0, err
		}
		switch f.state(entry) {
		case Unallocated:
			continue
		case Zero:
			clear(p[:limit])
			return int(limit), nil
		}
		return int(limit), f.readCluster(p[:limit], entry, off%cluster)
	}
	clear(p[:limit])
	return int(limit), nil
}

// Extents says what the top file knows, cluster by cluster, in merged runs.
func (img *Image) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state ExtentState) error) error {
	if len(img.files) == 1 { // nothing underneath: unallocated is zero
		return Flatten(img).Extents(ctx, off, length, fn)
	}
	return extents(ctx, img.files[:1], img.Size(), off, length, Unallocated, fn)
}

// extents says what files know together; what none of them does has the state
// unknown.
func extents(ctx context.Context, files []*file, size, off, length int64, unknown ExtentState, fn func(off, length int64, state ExtentState) error) error {
	end := min(off+length, size)
	run, state := off, ExtentState(-1)
	flush := func(to int64) error {
		if state < 0 || to == run {
			return nil
		}
		return fn(run, to-run, state)
	}
	for at := off; at < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		now, next, err := known(files, at)
		if err != nil {
			return err
		}
		if now == Unallocated {
			now = unknown
		}
		if now != state {
			if err := flush(at); err != nil {
				return err
			}
			run, state = at, now
		}
		at = min(next, end)
	}
	return flush(end)
}

// known says what files know of the place at, and where that knowledge ends. A
// missing L2 table in all of them is skipped over whole.
func known(files []*file, at int64) (ExtentState, int64, error) {
	next := int64(1) << 62
	for _, f := range files {
		if at >= f.info.Size {
			continue
		}
		table, span, err := f.l2(at)
		if err != nil {
			return 0, 0, err
		}
		cluster := int64(1) << f.info.ClusterBits
		if table == nil {
			next = min(next, at-at%span+span)
			continue
		}
		next = min(next, at-at%cluster+cluster)
		if s := f.state(binary.BigEndian.Uint64(table[at%span/cluster*8:])); s != Unallocated {
			return s, next, nil
		}
	}
	return Unallocated, next, nil
}

// Flat is the whole chain as one source.
func (img *Image) Flat() Source { return Flatten(img) }

// Flatten is the whole chain as one source: what no file knows is zero.
func Flatten(img *Image) Source { return flat{img} }

type flat struct{ *Image }

func (s flat) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state ExtentState) error) error {
	return extents(ctx, s.files, s.Size(), off, length, Zero, fn)
}
