package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// A draft is a snapshot that is being put together block by block, for hours and
// by several processes. It is a folder with two files:
//
//	drafts/snap-…/blocks   the blocks, one behind the other as they came
//	drafts/snap-…/journal  a header, then a record of each block that was put
//
// A block is synced before its record is written, and it is put when the record
// is synced as well. Nothing is written over: a block that is put again is
// another record, and the last one counts. So a process that dies takes nothing
// with it that was put, and what it has left half done no record knows of.
//
// Who puts blocks has a share of the draft (a flock on the journal); who makes a
// layer of it has it alone. Who waits for that has locked the folder, which all
// come by who want a share: so shares that are always taken anew keep no one out.

// Sentinels of drafts, wrapped by what the methods return.
var (
	ErrNoDraft      = errors.New("no such draft")
	ErrDraftBusy    = errors.New("another process has the draft alone")
	ErrDraftDamaged = errors.New("damaged draft")
)

var draftMagic = [8]byte{'k', 'a', 'm', 'i', 'd', 'r', 'f', '1'}

// entry is one entry of a journal, the header or a record: its content, and the
// first half of that one's SHA-256. It never crosses a page, nor a sector.
const (
	entrySize = 64
	entryBody = 48
)

type entry [entrySize]byte

// seal makes the check of an entry.
func (e *entry) seal() {
	sum := sha256.Sum256(e[:entryBody])
	copy(e[entryBody:], sum[:])
}

// sound says whether an entry was written whole.
func (e *entry) sound() bool {
	sum := sha256.Sum256(e[:entryBody])
	return [entrySize - entryBody]byte(e[entryBody:]) == [entrySize - entryBody]byte(sum[:])
}

// Draft is an open draft. It is for one goroutine: each that puts blocks opens
// its own.
type Draft struct {
	Size    int64         // of the disk, in bytes
	Timeout time.Duration // how long it waits for the next block

	store           *Store
	journal, blocks *os.File
	gate            *os.File // the folder
}

func (s *Store) draftsDir() string                 { return filepath.Join(s.root, "drafts") }
func (s *Store) draftDir(id ami.SnapshotID) string { return filepath.Join(s.draftsDir(), string(id)) }

func (s *Store) journal(id ami.SnapshotID) string { return filepath.Join(s.draftDir(id), "journal") }

func (s *Store) blockFile(id ami.SnapshotID) string { return filepath.Join(s.draftDir(id), "blocks") }

// CreateDraft makes the draft of a snapshot of size bytes, without blocks. It is
// there whole or not at all.
func (s *Store) CreateDraft(id ami.SnapshotID, size int64, timeout time.Duration) error {
	err := os.Mkdir(s.draftsDir(), 0o700)
	if err == nil {
		err = durable.SyncDir(s.root)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return noSpace(err)
	}
	scratch, err := durable.NewScratch(s.tmp(), "draft")
	if err != nil {
		return noSpace(err)
	}
	defer scratch.Close()
	work := scratch.Path("draft")
	if err := os.Mkdir(work, 0o700); err != nil {
		return noSpace(err)
	}
	var head entry
	copy(head[:], draftMagic[:])
	binary.BigEndian.PutUint64(head[8:], uint64(size))
	binary.BigEndian.PutUint64(head[16:], uint64(timeout))
	head.seal()
	for name, content := range map[string][]byte{"journal": head[:], "blocks": nil} {
		err := durable.WriteFile(filepath.Join(work, name), 0o600, func(f *os.File) error {
			_, err := f.Write(content)
			return err
		})
		if err != nil {
			return noSpace(err)
		}
	}
	return noSpace(durable.Rename(work, s.draftDir(id)))
}

// OpenDraft opens the draft of a snapshot. It returns ErrNoDraft, or
// ErrDraftDamaged.
func (s *Store) OpenDraft(id ami.SnapshotID) (*Draft, error) {
	d := &Draft{store: s}
	var err error
	if d.journal, err = os.OpenFile(s.journal(id), os.O_RDWR, 0); err == nil {
		if d.blocks, err = os.OpenFile(s.blockFile(id), os.O_RDWR, 0); err == nil {
			if d.gate, err = os.Open(s.draftDir(id)); err == nil {
				err = d.readHeader()
			}
		}
	}
	if err != nil {
		d.Close()
		return nil, draftError(id, err)
	}
	return d, nil
}

func draftError(id ami.SnapshotID, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNoDraft, id)
	}
	return fmt.Errorf("draft of %s: %w", id, err)
}

func (d *Draft) readHeader() error {
	var head entry
	if _, err := d.journal.ReadAt(head[:], 0); err != nil || !head.sound() || [8]byte(head[:8]) != draftMagic {
		return fmt.Errorf("%w: its header cannot be read", ErrDraftDamaged)
	}
	d.Size = int64(binary.BigEndian.Uint64(head[8:]))
	d.Timeout = time.Duration(binary.BigEndian.Uint64(head[16:]))
	return nil
}

// Close lets go of the draft.
func (d *Draft) Close() error {
	var err error
	if d.journal != nil {
		err = flock(d.journal, unix.LOCK_UN) // first, as durable.Lock does
	}
	return errors.Join(err, d.journal.Close(), d.blocks.Close(), d.gate.Close())
}

// Touch lets the time that the draft waits for its next block begin anew, also
// where it has been removed meanwhile.
func (d *Draft) Touch() error { return unix.Futimes(int(d.journal.Fd()), nil) }

// Deadline is when the draft has waited long enough for its next block. The
// journal's time is that of the last one, or of the last Touch.
func (d *Draft) Deadline() (time.Time, error) {
	info, err := d.journal.Stat()
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime().Add(d.Timeout), nil
}

// DraftDeadline is the deadline of a draft that is not open. It returns
// ErrNoDraft, or ErrDraftDamaged.
func (s *Store) DraftDeadline(id ami.SnapshotID) (time.Time, error) {
	f, err := os.Open(s.journal(id)) // also where nothing can be written
	if err != nil {
		return time.Time{}, draftError(id, err)
	}
	defer f.Close()
	d := &Draft{journal: f}
	if err := d.readHeader(); err != nil {
		return time.Time{}, draftError(id, err)
	}
	return d.Deadline()
}

// Drafts lists the snapshots that have a draft.
func (s *Store) Drafts() (ids []ami.SnapshotID, err error) {
	entries, err := os.ReadDir(s.draftsDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "snap-") {
			ids = append(ids, ami.SnapshotID(e.Name()))
		}
	}
	return ids, nil
}

// HasDraft says whether a snapshot has a draft.
func (s *Store) HasDraft(id ami.SnapshotID) (bool, error) {
	_, err := os.Lstat(s.draftDir(id))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// RemoveDraft removes the draft of a snapshot, also one that is half removed. One
// that is not there is no error. Who has it open goes on with what is nobody's.
func (s *Store) RemoveDraft(id ami.SnapshotID) error {
	if has, err := s.HasDraft(id); err != nil || !has {
		return err
	}
	durable.Step("draft.remove")
	// The journal first: what is half removed is no draft any more.
	for _, path := range []string{s.journal(id), s.blockFile(id)} {
		if err := durable.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.RemoveAll(s.draftDir(id)); err != nil {
		return err
	}
	durable.Step("draft.removed")
	return durable.SyncDir(s.draftsDir())
}

// Share takes a share of the draft until it is closed. It returns ErrDraftBusy
// where somebody has it alone, or waits for that.
func (d *Draft) Share() error {
	if err := flock(d.gate, unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return err
	}
	return errors.Join(flock(d.journal, unix.LOCK_SH|unix.LOCK_NB), flock(d.gate, unix.LOCK_UN))
}

// TryTake takes the draft for its caller alone until it is closed. It returns
// ErrDraftBusy where somebody has it, or a share of it.
func (d *Draft) TryTake() error { return flock(d.journal, unix.LOCK_EX|unix.LOCK_NB) }

// Take is TryTake, but waits until ctx ends. Meanwhile nobody gets a share, so it
// waits for those alone that there are.
func (d *Draft) Take(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, flock(d.gate, unix.LOCK_UN)) }()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		// Busy where another one waits, or for the moment in which a share is taken.
		err := flock(d.gate, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || errors.Is(err, ErrDraftBusy) {
			err = d.TryTake()
		}
		if !errors.Is(err, ErrDraftBusy) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until others are done with the draft: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

// flock changes the lock that an open file has. It returns ErrDraftBusy where it
// is not to wait and would have to.
func flock(f *os.File, how int) error {
	for {
		switch err := unix.Flock(int(f.Fd()), how); {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrDraftBusy
		case err != nil:
			return fmt.Errorf("locking %s: %w", f.Name(), err)
		default:
			return nil
		}
	}
}
