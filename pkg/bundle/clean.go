package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/disk"
	"github.com/kamivm/kami/pkg/qcow2"
)

// ErrNotCleaned is returned for a disk that the safety filter cannot look into.
var ErrNotCleaned = errors.New("the safety filter cannot look into the disk")

// Clean takes out of a guest's disk, in the raw file f, what the filter says: the
// files, what was in them, and what the blocks that no file has still hold. The
// disk is one ext2, ext3 or ext4, or has one partition that is; else it returns
// ErrNotCleaned.
//
// The filesystem is hostile. It is first brought into order by e2fsck, bounded, and
// then read by our own code; files are taken out by debugfs, in a copy that nobody
// else uses.
func Clean(ctx context.Context, f *os.File, fl Filter) (Left, error) {
	c, err := fl.compile()
	if err != nil {
		return Left{}, err
	}
	st, err := f.Stat()
	if err != nil {
		return Left{}, err
	}
	rep, err := disk.Inspect(ctx, f, st.Size())
	if err != nil {
		return Left{}, err
	}
	parts := []disk.Partition{{Size: st.Size()}}
	if rep.Table != "none" {
		parts = slices.DeleteFunc(rep.Partitions, func(p disk.Partition) bool { return p.ESP || p.BIOSBoot })
	}
	if len(parts) == 0 {
		return Left{}, fmt.Errorf("%w: it has no partition with files", ErrNotCleaned)
	}
	for _, p := range parts {
		if err := cleanPart(ctx, f, p, st.Size(), c); err != nil {
			if errors.Is(err, errExt) || errors.Is(err, errNotExt) {
				err = fmt.Errorf("%w: the filesystem at byte %d: %w", ErrNotCleaned, p.Start, err)
			}
			return Left{}, err
		}
	}
	return c.left, nil
}

// cleanPart cleans one partition: in a file of its own, since e2fsck forgets where
// in a disk a filesystem begins once it has replayed its journal.
func cleanPart(ctx context.Context, f *os.File, p disk.Partition, size int64, fl *filter) error {
	if _, err := openExt(io.NewSectionReader(f, p.Start, p.Size), p.Size); err != nil { // before anybody else looks
		return err
	}
	if p.Size == size {
		return cleanFile(ctx, f, fl)
	}
	part, err := os.CreateTemp(filepath.Dir(f.Name()), "part-")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name())
	defer part.Close()
	whole, err := qcow2.RawSource(f)
	if err != nil {
		return err
	}
	if err := qcow2.WriteRaw(ctx, part, section{whole, p.Start, p.Size}, func(int64) {}); err != nil {
		return err
	}
	if err := cleanFile(ctx, part, fl); err != nil {
		return err
	}
	if err := punch(f, p.Start, p.Size); err != nil {
		return err
	}
	clean, err := qcow2.RawSource(part)
	if err != nil {
		return err
	}
	return clean.Extents(ctx, 0, p.Size, func(off, length int64, state qcow2.ExtentState) error {
		if state != qcow2.Data {
			return nil
		}
		_, err := io.Copy(io.NewOffsetWriter(f, p.Start+off), io.NewSectionReader(part, off, length))
		return err
	})
}

// cleanFile cleans a filesystem in a file.
func cleanFile(ctx context.Context, f *os.File, fl *filter) error {
	if err := mend(ctx, f.Name()); err != nil {
		return err
	}
	if err := takeOut(ctx, f, fl); err != nil {
		return err
	}
	return mend(ctx, f.Name())
}

// takeOut takes files out of a filesystem that is in order.
func takeOut(ctx context.Context, f *os.File, fl *filter) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	x, err := openExt(f, st.Size())
	if err != nil {
		return err
	}
	gone, err := x.pick(ctx, fl)
	if err != nil {
		return err
	}
	if err := x.blank(f, gone); err != nil {
		return err
	}
	if _, err := bounded(ctx, []byte(unlink(gone)), "debugfs", "-w", "-f", "-", f.Name()); err != nil {
		return fmt.Errorf("%w: %w", errExt, err)
	}
	if x, err = openExt(f, st.Size()); err != nil {
		return err
	}
	return x.punchFree(f)
}

// mend runs e2fsck: it replays the journal, and mends what a power cut left.
func mend(ctx context.Context, path string) error {
	text, err := bounded(ctx, nil, "e2fsck", "-f", "-y", path)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode()&^3 == 0 { // mended
		return nil
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: e2fsck: %w\n%s", errExt, err, lastLines(text))
	}
	return err
}

// bounded runs one of e2fsprogs on what a guest has written: with so much memory
// and time and no more.
func bounded(ctx context.Context, stdin []byte, name string, args ...string) (string, error) {
	if _, err := exec.LookPath("prlimit"); err != nil {
		return tool(ctx, stdin, name, args...)
	}
	return tool(ctx, stdin, "prlimit", append([]string{"--as=4294967296", "--cpu=1800", "--core=0", "--", programPath(name)}, args...)...)
}

// taken is a file that goes.
type taken struct {
	found
	whole bool // with its content: it has no other name that stays
}

// pick finds what goes, folders behind what is in them.
func (x *ext) pick(ctx context.Context, fl *filter) ([]taken, error) {
	var gone []taken
	names := map[uint32]int{}
	take := func(f *found) error {
		if err := x.load(f); err != nil {
			return err
		}
		gone = append(gone, taken{found: *f})
		names[f.inode]++
		if len(gone) > maxMembers {
			return fmt.Errorf("%w: more than %d files would go", errExt, maxMembers)
		}
		return nil
	}
	err := x.walk(ctx, func(f *found) (bool, error) {
		if f.path == "lost+found" {
			return false, nil
		}
		var head func() ([]byte, error)
		if f.kind == extRegular {
			head = func() ([]byte, error) {
				if err := x.load(f); err != nil {
					return nil, err
				}
				return x.head(f.raw)
			}
		}
		skip, err := fl.skips(f.path, head)
		if err != nil || !skip {
			return false, err
		}
		return true, take(f)
	}, func(f *found) error {
		fl.left.add(f.path)
		return take(f)
	})
	if err != nil {
		return nil, err
	}
	slices.Reverse(gone)
	for i := range gone {
		g := &gone[i]
		g.whole = inodeMode(g.raw) != extDir && names[g.inode] >= inodeLinks(g.raw)
	}
	return gone, nil
}

// head reads the beginning of a file.
func (x *ext) head(raw []byte) ([]byte, error) {
	b := make([]byte, min(max(inodeBytes(raw), 0), peeked))
	if inodeFlags(raw)&flagInline != 0 {
		return raw[0x28:0x64], nil
	}
	err := x.runs(raw, func(logical, physical, count int64) error {
		for i := range count {
			at := (logical + i) * x.block
			if at >= int64(len(b)) {
				return nil
			}
			if err := x.read(b[at:min(at+x.block, int64(len(b)))], (physical+i)*x.block); err != nil {
				return err
			}
		}
		return nil
	})
	return b, err
}

// blank overwrites the content of what goes.
func (x *ext) blank(f *os.File, gone []taken) error {
	for _, g := range gone {
		if !g.whole {
			continue
		}
		err := x.runs(g.raw, func(_, physical, count int64) error {
			return punch(f, physical*x.block, count*x.block)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// punch makes zeros of a part of a file: a hole where the filesystem can.
func punch(f *os.File, off, n int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == nil || !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zero := make([]byte, min(n, 1<<20))
	for ; n > 0; off, n = off+int64(len(zero)), n-int64(len(zero)) {
		if _, err := f.WriteAt(zero[:min(n, int64(len(zero)))], off); err != nil {
			return err
		}
	}
	return nil
}

// unlink is the script by which debugfs takes files out. A name that its language
// cannot say stays, with nothing in it.
func unlink(gone []taken) string {
	var b, wipe strings.Builder
	wiped := map[uint32]bool{}
	for _, g := range gone {
		if strings.ContainsFunc(g.path, func(c rune) bool { return control(c) || c == '"' || c == '�' }) || len(g.path) > 4000 {
			continue
		}
		verb := "rm"
		if inodeMode(g.raw) == extDir {
			verb = "rmdir"
		}
		fmt.Fprintf(&b, "%s \"/%s\"\n", verb, g.path)
		if g.whole && !wiped[g.inode] { // once all of its names are gone
			wiped[g.inode] = true
			fmt.Fprintf(&wipe, "clri <%d>\n", g.inode)
		}
	}
	return b.String() + wipe.String()
}

// punchFree makes zeros of the blocks that no file has.
func (x *ext) punchFree(f *os.File) error {
	bitmap := make([]byte, x.block)
	for g, d := range x.groups {
		start := x.first + int64(g)*x.perGroup
		count := min(x.perGroup, x.blocks-start)
		used := func(i int64) bool { return bitmap[i/8]&(1<<(i%8)) != 0 }
		if d.uninit {
			meta := x.metadataIn(start, count)
			used = func(i int64) bool { return meta[i] }
		} else if err := x.read(bitmap, d.blockBitmap*x.block); err != nil {
			return err
		}
		for i := int64(0); i < count; {
			n := int64(0)
			for i+n < count && !used(i+n) {
				n++
			}
			if n > 0 {
				if err := punch(f, (start+i)*x.block, n*x.block); err != nil {
					return err
				}
			}
			i += n + 1
		}
	}
	return nil
}

// metadataIn says which of the blocks of a group that has no bitmap the filesystem
// itself has.
func (x *ext) metadataIn(start, count int64) map[int64]bool {
	meta := map[int64]bool{}
	add := func(from, n int64) {
		for b := max(from, start); b < min(from+n, start+count); b++ {
			meta[b-start] = true
		}
	}
	for g, d := range x.groups {
		add(d.blockBitmap, 1)
		add(d.inodeBitmap, 1)
		add(d.table, (x.inodesPer*x.inodeSize+x.block-1)/x.block)
		if at := x.first + int64(g)*x.perGroup; at == start && x.hasSuper(int64(g)) {
			add(at, 1+(int64(len(x.groups))*64+x.block-1)/x.block+x.reserved)
		}
	}
	return meta
}

// hasSuper says whether a group has a copy of the superblock.
func (x *ext) hasSuper(g int64) bool {
	if g <= 1 || !x.sparse {
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		n := base
		for n < g {
			n *= base
		}
		if n == g {
			return true
		}
	}
	return false
}
