package region

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sort"

	"github.com/kamivm/kami/pkg/qcow2"
)

// A layer travels as a blob: the data that its file itself has, one run behind the
// other in the disk's order, and as the list of where on the disk these runs lie.
// What is in no run is as in the parent, or zero without one.
type run struct {
	off, length int64 // on the disk
	at          int64 // in the blob; -1 for zeros
}

// sector is what the offsets of runs are multiples of, in bytes.
const sector = 512

// runsOf lists the runs of the top file of a chain.
func runsOf(ctx context.Context, img *qcow2.Image, base bool) (runs []run, blob int64, err error) {
	err = img.Extents(ctx, 0, img.Size(), func(off, length int64, state qcow2.ExtentState) error {
		switch {
		case state == qcow2.Data:
			runs = append(runs, run{off, length, blob})
			blob += length
		case state == qcow2.Zero && !base:
			runs = append(runs, run{off, length, -1})
		}
		return nil
	})
	return runs, blob, err
}

// encodeRuns is the list as bytes: for each run how far it is behind the one
// before, and twice its length, one more for zeros; all in sectors, as varints.
func encodeRuns(runs []run) (b []byte) {
	end := int64(0)
	for _, r := range runs {
		b = binary.AppendUvarint(b, uint64(r.off-end)/sector)
		length := uint64(r.length) / sector << 1
		if r.at < 0 {
			length |= 1
		}
		b = binary.AppendUvarint(b, length)
		end = r.off + r.length
	}
	return b
}

// maxRuns bounds a list, and with it the memory for it.
const maxRuns = 32 << 20 // bytes, as it is encoded

// decodeRuns reads the list of a disk of size bytes, whose blob has blob bytes.
func decodeRuns(b []byte, size, blob int64) ([]run, error) {
	var runs []run
	end, at := int64(0), int64(0)
	next := func() (uint64, error) {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > math.MaxInt64/sector/2 {
			return 0, errors.New("its list of runs cannot be read")
		}
		b = b[n:]
		return v, nil
	}
	if len(b) > maxRuns {
		return nil, fmt.Errorf("its list of runs has %d bytes", len(b))
	}
	for len(b) > 0 {
		gap, err := next()
		if err != nil {
			return nil, err
		}
		length, err := next()
		if err != nil {
			return nil, err
		}
		r := run{off: end + int64(gap)*sector, length: int64(length>>1) * sector, at: at}
		if r.length == 0 || r.off > size || r.length > size-r.off {
			return nil, fmt.Errorf("it has a run of %d bytes at %d on a disk of %d bytes", r.length, r.off, size)
		}
		if length&1 != 0 {
			r.at = -1
		} else {
			at += r.length
		}
		end = r.off + r.length
		runs = append(runs, r)
	}
	if at != blob {
		return nil, fmt.Errorf("its runs have %d bytes of data, and its blob %d", at, blob)
	}
	return runs, nil
}

// dataRuns are those that are in the blob, in its order.
func dataRuns(runs []run) (data []run) {
	for _, r := range runs {
		if r.at >= 0 {
			data = append(data, r)
		}
	}
	return data
}

// layerBytes is the blob of a layer, read from the layer.
type layerBytes struct {
	disk io.ReaderAt
	data []run
	size int64
}

func (l layerBytes) Size() int64 { return l.size }

func (l layerBytes) Extents(_ context.Context, off, length int64, fn func(off, length int64, state qcow2.ExtentState) error) error {
	if n := min(length, l.size-off); n > 0 {
		return fn(off, n, qcow2.Data)
	}
	return nil
}

func (l layerBytes) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	i := sort.Search(len(l.data), func(i int) bool { return l.data[i].at+l.data[i].length > off })
	for ; n < len(p) && i < len(l.data); i++ {
		r := l.data[i]
		skip := off + int64(n) - r.at
		to := p[n:min(len(p), n+int(min(r.length-skip, int64(len(p)))))]
		got, err := l.disk.ReadAt(to, r.off+skip)
		n += got
		if err != nil && !(errors.Is(err, io.EOF) && got == len(to)) {
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// layerDisk is what a guest sees of a layer of which the blob and the parent, nil
// for none, are there.
type layerDisk struct {
	size   int64
	runs   []run
	blob   io.ReaderAt
	parent *qcow2.Image
}

func (d layerDisk) Size() int64 { return d.size }

// at finds the first run that does not end before off.
func (d layerDisk) at(off int64) int {
	return sort.Search(len(d.runs), func(i int) bool { return d.runs[i].off+d.runs[i].length > off })
}

func (d layerDisk) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state qcow2.ExtentState) error) error {
	end := min(off+length, d.size)
	other := qcow2.Unallocated
	if d.parent == nil {
		other = qcow2.Zero
	}
	for i := d.at(off); off < end; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		next := run{off: end}
		if i < len(d.runs) {
			next = d.runs[i]
		}
		if to := min(next.off, end); to > off {
			if err := fn(off, to-off, other); err != nil {
				return err
			}
			off = to
		}
		if to := min(next.off+next.length, end); to > off {
			state := qcow2.Data
			if next.at < 0 {
				state = qcow2.Zero
			}
			if err := fn(off, to-off, state); err != nil {
				return err
			}
			off = to
		}
	}
	return nil
}

func (d layerDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= d.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > d.size-off
	p = p[:min(int64(len(p)), d.size-off)]
	n := 0
	err := d.Extents(context.Background(), off, int64(len(p)), func(from, length int64, state qcow2.ExtentState) error {
		to := p[n : n+int(length)]
		n += int(length)
		switch state {
		case qcow2.Zero:
			clear(to)
			return nil
		case qcow2.Unallocated:
			got, err := d.parent.ReadAt(to, from)
			if errors.Is(err, io.EOF) { // a shorter disk reads as zeros
				clear(to[got:])
				err = nil
			}
			return err
		}
		r := d.runs[d.at(from)]
		got, err := d.blob.ReadAt(to, r.at+from-r.off)
		if errors.Is(err, io.EOF) && got == len(to) {
			err = nil
		}
		return err
	})
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

// stacked are the disks of a chain's layers, the nearest first, as one.
type stacked struct {
	disks []layerDisk
	of    *far
}

func (s stacked) Size() int64 { return s.disks[0].size }

// state says which disk defines the byte at off, -1 for zeros, and up to where.
func (s stacked) state(off, end int64) (disk int, zero bool, to int64) {
	for i, d := range s.disks {
		if off >= d.size {
			return -1, true, end
		}
		end = min(end, d.size)
		at := d.at(off)
		if at == len(d.runs) {
			continue
		}
		r := d.runs[at]
		if r.off > off {
			end = min(end, r.off)
			continue
		}
		return i, r.at < 0, min(end, r.off+r.length)
	}
	return -1, true, end
}

func (s stacked) Extents(ctx context.Context, off, length int64, fn func(off, length int64, state qcow2.ExtentState) error) error {
	end := min(off+length, s.Size())
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, zero, to := s.state(off, end)
		state := qcow2.Data
		if zero {
			state = qcow2.Zero
		}
		if err := fn(off, to-off, state); err != nil {
			return err
		}
		off = to
	}
	return nil
}

func (s stacked) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && off < s.Size() {
		disk, zero, to := s.state(off, min(off+int64(len(p)-n), s.Size()))
		part := p[n : n+int(to-off)]
		if zero {
			clear(part)
		} else if got, err := s.disks[disk].ReadAt(part, off); got < len(part) {
			return n + got, s.of.damaged(err)
		}
		n, off = n+len(part), to
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
