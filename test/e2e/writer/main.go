// Writer runs inside a guest. It counts, at a gentle pace, and writes each number
// down in a file and then on a disk, durably. It stamps when each write is done:
// what its disks keep it waiting is the largest gap between two stamps.
//
//	writer MARK FILE DISK
//
// A number is a block that begins with MARK, and then the number in 64 bits, least
// significant byte first.
//
// For each line "look" on its standard input it prints the largest gap since the
// last one and, to compare with, by how much it overslept at most in a thread
// that does nothing else: both in microseconds of the guest's steady clock. For
// each line "fill" it writes data that does not compress to the disk.
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	block = 4 << 10 // bytes
	// The places are a cluster of 64 KiB apart, so that while a disk is read
	// each first write to one has to be copied away before.
	apart, places = 64 << 10, 256

	pace = 2 * time.Millisecond

	filled, fills = 16 << 20, 8 // bytes, and how many times until the first is overwritten
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(mark, file, disk string) error {
	debug.SetGCPercent(-1) // nothing of its own may keep it waiting
	if err := allocate(file); err != nil {
		return err
	}
	var to [2]*os.File
	for i, path := range []string{file, disk} {
		var err error
		if to[i], err = os.OpenFile(path, os.O_RDWR|syscall.O_DIRECT|syscall.O_DSYNC, 0); err != nil {
			return err
		}
	}
	var gap, overslept most
	failed := make(chan error, 1)
	go func() { failed <- write(mark, to, &gap) }()
	go sleep(&overslept)
	in, noise := bufio.NewScanner(os.Stdin), rand.NewChaCha8([32]byte{1})
	for n := int64(0); in.Scan(); {
		switch in.Text() {
		case "look":
			fmt.Println(gap.take().Microseconds(), overslept.take().Microseconds())
		case "fill":
			if err := fill(disk, apart*places+n%fills*filled, noise); err != nil {
				return err
			}
			n++
			fmt.Println("filled")
		}
		select {
		case err := <-failed:
			return err
		default:
		}
	}
	return in.Err()
}

// most is the largest of some durations.
type most struct{ atomic.Int64 }

func (m *most) add(d time.Duration) {
	for {
		old := m.Load()
		if int64(d) <= old || m.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

func (m *most) take() time.Duration { return time.Duration(m.Swap(0)) }

// allocate makes the file with all its blocks, so that writing to it changes
// nothing else.
func allocate(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := f.Write(make([]byte, apart*places)); err != nil {
		return err
	}
	syscall.Sync()
	return f.Close()
}

// write counts for good, and tells of the time from the end of one write to the
// end of the next.
func write(mark string, to [2]*os.File, gap *most) error {
	runtime.LockOSThread()
	b := aligned()
	at := copy(b, mark)
	last := time.Now()
	for n := uint64(1); ; n++ {
		binary.LittleEndian.PutUint64(b[at:], n)
		for _, f := range to {
			if _, err := f.WriteAt(b, int64(n%places)*apart); err != nil {
				return err
			}
			now := time.Now()
			gap.add(now.Sub(last))
			last = now
		}
		time.Sleep(pace)
	}
}

// aligned is a block that can be written past the guest's cache.
func aligned() []byte {
	b := make([]byte, 2*block)
	at := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (block - 1)
	return b[at : at+block]
}

func sleep(overslept *most) {
	runtime.LockOSThread()
	for {
		start := time.Now()
		time.Sleep(pace)
		overslept.add(time.Since(start) - pace)
	}
}

// fill writes noise to the disk at a place in bytes, and returns when it is
// durable.
func fill(disk string, at int64, noise io.Reader) error {
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(at, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.CopyN(f, noise, filled); err != nil {
		return err
	}
	return f.Sync()
}
