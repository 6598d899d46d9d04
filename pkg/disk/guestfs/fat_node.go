package guestfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf16"
)

const direntSize = 32

// fatNode is a file or a directory. Only files say how long they are; a directory
// ends with its chain.
type fatNode struct {
	fs    *fat
	dir   bool
	fixed bool // the root of FAT12 and FAT16, which is no chain
	first uint32
	bytes int64
	// Where the last read came to: the cluster and its place in the chain. A file
	// is mostly read on.
	cluster uint32
	index   int64
}

func (n *fatNode) kind() kind {
	if n.dir {
		return directory
	}
	return regular
}

func (n *fatNode) size() int64 { return n.bytes }

func (n *fatNode) target(context.Context) (string, error) { return "", errors.New("FAT has no links") }

// seek goes to the cluster with the place index in the chain. It fails with
// errEnough where the chain ends before.
func (n *fatNode) seek(ctx context.Context, index int64) error {
	if n.cluster == 0 || index < n.index {
		if err := n.fs.check(n.first); err != nil {
			return err
		}
		n.cluster, n.index = n.first, 0
	}
	for n.index < index {
		next, err := n.fs.next(ctx, n.cluster)
		if err != nil {
			return err
		}
		// A chain that is longer than there are clusters bites its own tail.
		if next == 0 || n.index >= int64(n.fs.clusters) {
			return errEnough
		}
		n.cluster, n.index = next, n.index+1
	}
	return nil
}

func (n *fatNode) readAt(ctx context.Context, p []byte, off int64) error {
	size := n.fs.cluster
	for len(p) > 0 {
		err := n.seek(ctx, off/size)
		if errors.Is(err, errEnough) {
			err = fmt.Errorf("%w: a FAT chain of %d clusters ends too early", ErrDamaged, n.index+1)
		}
		if err != nil {
			return err
		}
		// Clusters that follow each other are read at once.
		first, have := n.cluster, size-off%size
		for have < int64(len(p)) {
			if err := n.seek(ctx, n.index+1); errors.Is(err, errEnough) || err == nil && n.cluster != first+uint32((have+off%size)/size) {
				break
			} else if err != nil {
				return err
			}
			have += size
		}
		have = min(have, int64(len(p)))
		if err := n.fs.dev.read(ctx, p[:have], n.fs.data+int64(first-2)*size+off%size); err != nil {
			return err
		}
		p, off = p[have:], off+have
	}
	return nil
}

// entry is what a directory has of a file.
type entry struct {
	long, short string
	volume, dir bool
	first       uint32
	size        int64
}

func (e entry) name() string {
	if e.long != "" {
		return e.long
	}
	return e.short
}

// each calls do for every entry of a directory but . and ..
func (n *fatNode) each(ctx context.Context, do func(entry) error) error {
	var long longName
	for off := int64(0); off < maxDir; {
		b, err := n.part(ctx, off)
		if errors.Is(err, errEnough) {
			return nil
		}
		if err != nil {
			return err
		}
		off += int64(len(b))
		for d := b; len(d) >= direntSize; d = d[direntSize:] {
			if d[0] == 0 {
				return nil
			}
			e, ok := long.add(d[:direntSize], n.fs.bits)
			if !ok {
				continue
			}
			if err := do(e); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%w: a directory of more than %d bytes", ErrTooLarge, maxDir)
}

// part is the piece of a directory at off; errEnough behind its end.
func (n *fatNode) part(ctx context.Context, off int64) ([]byte, error) {
	const sector = 512
	if n.fixed {
		if off >= n.bytes {
			return nil, errEnough
		}
		return n.fs.dev.metadata(ctx, n.fs.rootAt+off, int(min(sector, n.bytes-off)))
	}
	if err := n.seek(ctx, off/n.fs.cluster); err != nil {
		return nil, err
	}
	if err := n.fs.dev.charge(int(n.fs.cluster)); err != nil {
		return nil, err
	}
	return n.fs.dev.metadata(ctx, n.fs.data+int64(n.cluster-2)*n.fs.cluster, int(n.fs.cluster))
}

// longName gathers a name from the entries before its file's, the last part first.
type longName struct {
	units []uint16
	want  byte // the number of the part that comes next
	sum   byte
}

// add takes one directory entry; it returns an entry where a file is complete.
func (l *longName) add(d []byte, bits int) (entry, bool) {
	const (
		deleted, isVolume, isDir, isLong = 0xe5, 0x08, 0x10, 0x0f
		lastPart                         = 0x40
	)
	if d[0] == deleted {
		*l = longName{}
		return entry{}, false
	}
	if d[11]&0x3f == isLong {
		part := d[0] &^ lastPart
		if d[0]&lastPart != 0 {
			*l = longName{want: part, sum: d[13]}
		}
		if part == 0 || part > 20 || part != l.want || d[13] != l.sum {
			*l = longName{}
			return entry{}, false
		}
		var units []uint16
		for _, field := range [][]byte{d[1:11], d[14:26], d[28:32]} {
			for i := 0; i < len(field); i += 2 {
				units = append(units, le16(field, i))
			}
		}
		l.units, l.want = append(units, l.units...), part-1
		return entry{}, false
	}
	e := entry{short: shortName(d), volume: d[11]&isVolume != 0, dir: d[11]&isDir != 0, size: int64(le32(d, 28)), first: uint32(le16(d, 26))}
	if bits == 32 {
		e.first |= uint32(le16(d, 20)) << 16
	}
	if e.volume {
		e.short = strings.TrimRight(string(d[:11]), " ")
	}
	if len(l.units) > 0 && l.want == 0 && l.sum == shortSum(d) {
		units := l.units
		for i, u := range units {
			if u == 0 {
				units = units[:i]
				break
			}
		}
		e.long = string(utf16.Decode(units))
	}
	*l = longName{}
	return e, e.short != "." && e.short != ".."
}

// shortName is the 8.3 name of an entry.
func shortName(d []byte) string {
	const lowerBase, lowerExt = 0x08, 0x10
	base, ext := strings.TrimRight(string(d[:8]), " "), strings.TrimRight(string(d[8:11]), " ")
	if strings.HasPrefix(base, "\x05") {
		base = "\xe5" + base[1:]
	}
	if d[12]&lowerBase != 0 {
		base = strings.ToLower(base)
	}
	if d[12]&lowerExt != 0 {
		ext = strings.ToLower(ext)
	}
	if ext != "" {
		base += "." + ext
	}
	return base
}

// shortSum ties a long name to the short one behind it.
func shortSum(d []byte) byte {
	var sum byte
	for _, c := range d[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// lookup takes names alike in upper and lower case, as FAT does.
func (n *fatNode) lookup(ctx context.Context, name string) (node, error) {
	var found *fatNode
	err := n.each(ctx, func(e entry) error {
		if e.volume || !strings.EqualFold(e.long, name) && !strings.EqualFold(e.short, name) {
			return nil
		}
		found = &fatNode{fs: n.fs, dir: e.dir, first: e.first, bytes: e.size}
		return errEnough
	})
	switch {
	case errors.Is(err, errEnough):
		return found, nil
	case err != nil:
		return nil, err
	}
	return nil, fs.ErrNotExist
}

func (n *fatNode) names(ctx context.Context) ([]string, error) {
	var out []string
	err := n.each(ctx, func(e entry) error {
		if !e.volume {
			out = append(out, e.name())
		}
		return nil
	})
	return out, err
}
