package guestfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

var errEnough = errors.New("enough")

// each calls do for every entry of a directory. Those with an index (htree) are
// the same to a reader that goes from block to block: the index looks like an
// empty block.
func (n *inode) each(ctx context.Context, do func(name string, num uint32) error) error {
	if n.flags&flagEncrypt != 0 {
		return fmt.Errorf("%w: the directory is encrypted (inode %d)", ErrUnsupported, n.num)
	}
	if n.flags&flagCasefold != 0 {
		return fmt.Errorf("%w: names in the directory are alike in upper and lower case (casefold, inode %d)", ErrUnsupported, n.num)
	}
	if n.bytes > maxDir {
		return fmt.Errorf("%w: a directory of %d bytes, at most %d are read", ErrTooLarge, n.bytes, maxDir)
	}
	seen := 0
	if n.flags&flagInline != 0 {
		return n.eachInline(&seen, do)
	}
	for i := range uint64(n.bytes / n.fs.blockSize) {
		at, _, err := n.run(ctx, i)
		if err == nil && at == 0 {
			err = fmt.Errorf("%w: a directory with a hole", ErrDamaged)
		}
		if err != nil {
			return fmt.Errorf("inode %d: %w", n.num, err)
		}
		if err := n.fs.dev.charge(int(n.fs.blockSize)); err != nil {
			return err
		}
		b, err := n.fs.block(ctx, at)
		if err != nil {
			return fmt.Errorf("inode %d: %w", n.num, err)
		}
		if err := n.entries(b, &seen, do); err != nil {
			return err
		}
	}
	return nil
}

// entries calls do for the entries of one block. Each says where the next begins.
func (n *inode) entries(b []byte, seen *int, do func(name string, num uint32) error) error {
	const head = 8
	for len(b) >= head {
		num, length, name := le32(b, 0), int(le16(b, 4)), int(b[6])
		// A block of 64 KiB does not fit into 16 bits.
		if length == 65535 || length == 0 && len(b) == 65536 {
			length = 65536
		}
		if length < head+name || length%4 != 0 || length > len(b) {
			return fmt.Errorf("%w: a directory entry of %d bytes (inode %d)", ErrDamaged, length, n.num)
		}
		if *seen++; *seen > maxDirEntries {
			return fmt.Errorf("%w: a directory of more than %d entries", ErrTooLarge, maxDirEntries)
		}
		if num != 0 && name != 0 {
			if err := do(string(b[head:head+name]), num); err != nil {
				return err
			}
		}
		b = b[length:]
	}
	return nil
}

func (n *inode) lookup(ctx context.Context, name string) (node, error) {
	var found uint32
	err := n.each(ctx, func(entry string, num uint32) error {
		if entry != name {
			return nil
		}
		found = num
		return errEnough
	})
	switch {
	case errors.Is(err, errEnough):
		return n.fs.inode(ctx, found)
	case err != nil:
		return nil, err
	}
	return nil, fs.ErrNotExist
}

func (n *inode) names(ctx context.Context) ([]string, error) {
	var out []string
	err := n.each(ctx, func(name string, _ uint32) error {
		if name != "." && name != ".." {
			out = append(out, name)
		}
		return nil
	})
	return out, err
}
