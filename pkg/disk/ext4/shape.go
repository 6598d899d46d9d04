package ext4

import (
	"fmt"
	"slices"
)

const (
	perGroup    = 8 * Block // blocks
	perFlex     = 16        // groups whose bitmaps and tables are together
	logPerFlex  = 4
	inodeSize   = 256
	inodesBlock = Block / inodeSize // inodes in a block
	descSize    = 64
	descsBlock  = Block / descSize
	addrsBlock  = Block / 4
	maxBlocks   = 1<<32 - 1 // as the inode for growing can say

	rootInode    = 2
	resizeInode  = 7
	journalInode = 8
	firstInode   = 11
)

// span is a run of blocks.
type span struct{ start, count int64 }

func (s span) end() int64 { return s.start + s.count }

// shape is where what a filesystem has beside its files is.
type shape struct {
	blocks   int64
	groups   int64
	inodes   int64 // in each group
	table    int64 // blocks of each group's inodes
	descs    int64 // blocks of group descriptors
	spare    int64 // blocks that are kept for more of them, for growing
	journal  int64 // blocks, 0 for none
	bitmaps  []int64
	ibitmaps []int64
	tables   []int64
	taken    []span // all of these, and the superblocks; in order
}

// newShape plans a filesystem of so many bytes with at least so many inodes.
func newShape(o Options, inodes int64) (*shape, error) {
	s := &shape{blocks: o.Size / Block}
	if s.blocks > maxBlocks {
		return nil, fmt.Errorf("%w: a filesystem of %d bytes is too large", ErrUnfit, o.Size)
	}
	ratio := o.BytesPerInode
	if ratio <= 0 {
		ratio = 16384
	}
	for {
		inodes := max(inodes, s.blocks*Block/ratio)
		s.groups = (s.blocks + perGroup - 1) / perGroup
		if s.groups == 0 {
			return nil, fmt.Errorf("%w of %d bytes", ErrNoRoom, o.Size)
		}
		s.inodes = ((inodes+s.groups-1)/s.groups + inodesBlock - 1) / inodesBlock * inodesBlock
		if s.inodes*s.groups > maxBlocks {
			return nil, fmt.Errorf("%w: a filesystem with %d inodes", ErrUnfit, s.inodes*s.groups)
		}
		if s.inodes > perGroup {
			return nil, fmt.Errorf("%w: it has %d files, and %d blocks have inodes for %d", ErrNoRoom, inodes, s.blocks, s.groups*perGroup)
		}
		s.table = s.inodes / inodesBlock
		s.descs = (s.groups + descsBlock - 1) / descsBlock
		most := min(s.blocks*1024, maxBlocks) // as mke2fs has it
		groups := (most + perGroup - 1) / perGroup
		s.spare = min((groups+descsBlock-1)/descsBlock-s.descs, addrsBlock)
		// The last group is left out if there would be little in it.
		rest := s.blocks % perGroup
		if rest == 0 || rest >= s.head(s.groups-1)+2+s.table+50 {
			break
		}
		s.blocks -= rest
	}
	s.journal = journalBlocks(s.blocks)
	return s, s.place()
}

// head is how many blocks a group has in front: copies of the superblock and of
// the descriptors.
func (s *shape) head(group int64) int64 {
	if !hasSuper(group) {
		return 0
	}
	return 1 + s.descs + s.spare
}

// hasSuper says whether a group has a copy of the superblock (sparse_super).
func hasSuper(group int64) bool {
	if group <= 1 {
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

// backups are the groups with copies of the superblock, without the first.
func (s *shape) backups() (all []int64) {
	for g := int64(1); g < s.groups; g++ {
		if hasSuper(g) {
			all = append(all, g)
		}
	}
	return all
}

// journalBlocks is the size of the journal that mke2fs would make.
func journalBlocks(blocks int64) int64 {
	if blocks < 2048 {
		return 0
	}
	for _, of := range []struct{ below, size int64 }{
		{32 << 10, 1024}, {256 << 10, 4096}, {512 << 10, 8192}, {4 << 20, 16384}, {8 << 20, 32768}, {16 << 20, 65536}, {32 << 20, 131072},
	} {
		if blocks < of.below {
			return of.size
		}
	}
	return 262144
}

// place gives the groups' bitmaps and tables their blocks: those of sixteen groups
// together, where the first of these begins.
func (s *shape) place() error {
	var heads []span
	for g := range s.groups {
		if n := s.head(g); n > 0 {
			heads = append(heads, span{g * perGroup, n})
		}
	}
	s.taken = slices.Clone(heads)
	at, next := int64(0), 0 // heads before next end before at
	take := func(count int64) int64 {
		for next < len(heads) && heads[next].start < at+count {
			at = max(at, heads[next].end())
			next++
		}
		start := at
		at += count
		s.taken = append(s.taken, span{start, count})
		return start
	}
	for first := int64(0); first < s.groups; first += perFlex {
		n := min(perFlex, s.groups-first)
		at = max(at, first*perGroup)
		for range n {
			s.bitmaps = append(s.bitmaps, take(1))
		}
		for range n {
			s.ibitmaps = append(s.ibitmaps, take(1))
		}
		for range n {
			s.tables = append(s.tables, take(s.table))
		}
	}
	slices.SortFunc(s.taken, func(a, b span) int { return int(a.start - b.start) })
	if last := s.taken[len(s.taken)-1]; last.end() > s.blocks {
		return fmt.Errorf("%w of %d blocks", ErrNoRoom, s.blocks)
	}
	return nil
}

// groupSize is how many blocks a group has.
func (s *shape) groupSize(g int64) int64 { return min(perGroup, s.blocks-g*perGroup) }

// space hands out the blocks that nothing has, from the first to the last.
type space struct {
	*shape
	at   int64
	next int // of taken
}

// take returns count blocks, in as few runs as there can be.
func (s *space) take(count int64) (all []span, err error) {
	for count > 0 {
		for s.next < len(s.taken) && s.taken[s.next].start <= s.at {
			s.at = max(s.at, s.taken[s.next].end())
			s.next++
		}
		end := s.blocks
		if s.next < len(s.taken) {
			end = s.taken[s.next].start
		}
		n := min(count, end-s.at)
		if n <= 0 {
			return nil, fmt.Errorf("%w of %d blocks", ErrNoRoom, s.blocks)
		}
		all = append(all, span{s.at, n})
		s.at += n
		count -= n
	}
	return all, nil
}

// one returns one block.
func (s *space) one() (int64, error) {
	all, err := s.take(1)
	if err != nil {
		return 0, err
	}
	return all[0].start, nil
}

// bitmap is that of the blocks of a group that are in use, and how many are free.
func (s *space) bitmap(g int64) (bits []byte, free int64) {
	bits = make([]byte, Block)
	first, size := g*perGroup, s.groupSize(g)
	setBits(bits, 0, s.at-first)
	from, _ := slices.BinarySearchFunc(s.taken, first, func(t span, at int64) int { return int(t.end() - at - 1) })
	for _, t := range s.taken[from:] {
		if t.start >= first+size {
			break
		}
		setBits(bits, t.start-first, t.end()-first)
	}
	return bits, size - countBits(bits, size)
}
