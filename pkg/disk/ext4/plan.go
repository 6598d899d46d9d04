package ext4

import (
	"cmp"
	"fmt"
	"path"
	"slices"
)

// plan is a filesystem that is laid out.
type plan struct {
	o Options
	*shape
	space    *space
	seed     uint32 // of checksums
	files    []*File
	last     uint32  // inode in use
	folders  []int64 // in each group
	free     int64   // blocks
	resizeAt int64

	journalFile *File
	segments    []segment
}

// lostAndFound is the folder that e2fsck puts into what it finds, with room for it
// to begin with.
const (
	lostAndFound       = "lost+found"
	lostAndFoundBlocks = 4
)

// New lays out a filesystem of the tree under root, a folder, which it takes over.
// It returns ErrNoRoom or ErrUnfit. Nothing but the image's reads opens a file.
func New(root *File, o Options) (*Image, error) {
	if root.kind() != folder {
		return nil, fmt.Errorf("%w: a root that is no folder", ErrUnfit)
	}
	p := &plan{o: o, seed: castagnoli(^uint32(0), o.UUID[:])}
	p.number(root)
	var err error
	if p.shape, err = newShape(o, int64(p.last)); err != nil {
		return nil, err
	}
	p.space, p.folders = &space{shape: p.shape}, make([]int64, p.groups)
	if p.resizeAt, err = p.space.one(); err != nil {
		return nil, err
	}
	p.growing()
	// Content is behind all else, so that it is read in one go.
	for i, fn := range []func(*File) error{p.structure, p.content} {
		if err := p.walk(root, "/", i+1, fn); err != nil {
			return nil, err
		}
	}
	if err := p.log(); err != nil {
		return nil, err
	}
	p.supers(p.descriptors())
	slices.SortFunc(p.segments, func(a, b segment) int { return cmp.Compare(a.start, b.start) })
	return &Image{size: o.Size, segments: p.segments}, nil
}

// number gives every file its inode and counts its names.
func (p *plan) number(root *File) {
	p.last = firstInode - 1
	root.ino, root.parent, root.links = rootInode, rootInode, 2
	i := slices.IndexFunc(root.Entries, func(e Entry) bool { return e.Name == lostAndFound })
	if i < 0 {
		lost := &File{Mode: folder | 0o700, Time: p.o.Time}
		root.Entries, i = slices.Insert(root.Entries, 0, Entry{lostAndFound, lost}), 0
	}
	if lost := root.Entries[i].File; lost.kind() == folder {
		lost.least = lostAndFoundBlocks
		p.give(lost)
	}
	p.numberUnder(root)
}

func (p *plan) give(f *File) {
	p.last++
	f.ino = p.last
	p.files = append(p.files, f)
}

func (p *plan) numberUnder(dir *File) {
	for _, e := range dir.Entries {
		if e.File.ino == 0 {
			p.give(e.File)
		}
		e.File.links++
		if e.File.kind() == folder {
			e.File.links, e.File.parent = 2, dir.ino
			dir.links++
			p.numberUnder(e.File)
		}
	}
	if dir.ino == rootInode {
		p.files = append(p.files, dir)
	}
}

// file is the one that has an inode, nil for none.
func (p *plan) file(ino uint32) *File {
	switch {
	case ino == rootInode:
		return p.files[len(p.files)-1]
	case ino == journalInode:
		return p.journalFile
	case ino >= firstInode && ino <= p.last:
		return p.files[ino-firstInode]
	}
	return nil
}

// walk calls fn once with every file, in the order of the tree. pass tells this walk
// from those before.
func (p *plan) walk(f *File, name string, pass int, fn func(*File) error) error {
	if f.pass == pass { // another name of it
		return nil
	}
	f.pass = pass
	if err := fn(f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, e := range f.Entries {
		if err := p.walk(e.File, path.Join(name, e.Name), pass, fn); err != nil {
			return err
		}
	}
	return nil
}

// structure gives a file what it has beside its content: attributes, a folder's
// entries, a link's target.
func (p *plan) structure(f *File) error {
	if f.kind() == folder {
		p.folders[int64(f.ino-1)/p.inodes]++
	} else if f.links > mostLinks {
		return fmt.Errorf("%w: a file with %d names", ErrUnfit, f.links)
	}
	if err := p.attributes(f); err != nil {
		return err
	}
	switch f.kind() {
	case folder:
		if err := f.cut(); err != nil {
			return err
		}
		return p.fill(f, 0, f.least, blocksOfFolder{p, f}, true)
	case symlink:
		if n := len(f.Target); n == 0 || n >= Block {
			return fmt.Errorf("%w: a link to a path of %d bytes", ErrUnfit, n)
		}
		if f.fast() {
			copy(f.head[:], f.Target)
			return nil
		}
		return p.fill(f, 0, 1, blob(f.Target), true)
	case char, block:
		putDevice(f.head[:], f.Major, f.Minor)
	case regular, fifo, socket:
	default:
		return fmt.Errorf("%w: a file of the mode %o", ErrUnfit, f.Mode)
	}
	return nil
}

// content gives a regular file its blocks.
func (p *plan) content(f *File) error {
	if f.kind() != regular {
		return nil
	}
	if f.Size < 0 || blocksOf(f.Size) > 1<<32-1 {
		return fmt.Errorf("%w: a file of %d bytes", ErrUnfit, f.Size)
	}
	end := int64(0) // of the blocks that it has by now
	for _, r := range f.Runs {
		if r.Off < 0 || r.Len <= 0 || r.Off > f.Size || r.Len > f.Size-r.Off {
			return fmt.Errorf("%w: bytes %d+%d of %d", ErrUnfit, r.Off, r.Len, f.Size)
		}
		first, last := max(r.Off/Block, end), blocksOf(r.Off+r.Len)
		if first >= last {
			continue
		}
		if err := p.fill(f, first, last-first, nil, false); err != nil {
			return err
		}
		end = last
	}
	return p.treeOf(f)
}

// fill gives a file count blocks from its block logical on, with what is in from;
// nil is the file's content. whole is for the last of them.
func (p *plan) fill(f *File, logical, count int64, from source, whole bool) error {
	runs, err := p.space.take(count)
	if err != nil {
		return err
	}
	if from == nil {
		from = (*contentOf)(f)
	}
	at := logical
	for _, r := range runs {
		p.add(r.start, r.count, from, at)
		at += r.count
	}
	f.extents = mapped(f.extents, logical, runs)
	if whole {
		return p.treeOf(f)
	}
	return nil
}

// log makes the journal.
func (p *plan) log() error {
	if p.journal == 0 {
		return nil
	}
	j := &File{Mode: regular | 0o600, Time: p.o.Time, Size: p.journal * Block, ino: journalInode, links: 1}
	runs, err := p.space.take(p.journal)
	if err != nil {
		return err
	}
	j.extents = mapped(nil, 0, runs)
	p.bytes(runs[0].start, p.journalSuper()) // the rest of it is zeros
	p.journalFile = j
	return p.treeOf(j)
}

// add says what is in count blocks from start on: from's, from its block at on.
func (p *plan) add(start, count int64, from source, at int64) {
	p.segments = append(p.segments, segment{start, count, from, at})
}

func (p *plan) bytes(start int64, b []byte) { p.add(start, blocksOf(int64(len(b))), blob(b), 0) }
