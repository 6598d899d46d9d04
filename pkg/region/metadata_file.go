package region

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// The files in an instance's folder that its metadata are told from.
const (
	metadataName = "metadata.json" // an ami.Metadata
	secretName   = "metadata.key"  // what its tokens are signed with
)

// secretBytes is the length of that key.
const secretBytes = 32

// maxMetadata bounds a metadata file, in bytes: user data, tags and keys have
// limits of their own.
const maxMetadata = 1 << 20

var errNoMetadata = errors.New("no metadata were written for the instance")

func (r *Region) metadataPath(id ami.InstanceID) string {
	return filepath.Join(r.instanceDir(id), metadataName)
}

// readMetadata returns errNoMetadata where there is no file.
func readMetadata(path string) (md ami.Metadata, err error) {
	text, err := readBounded(path, maxMetadata)
	if errors.Is(err, fs.ErrNotExist) {
		return md, errNoMetadata
	}
	if err != nil {
		return md, err
	}
	if err := json.Unmarshal(text, &md); err != nil {
		return md, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return md, nil
}

func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// startMetadata writes down what the guest of inst is told from this start on.
// What the launch said, which edit may add, stays from start to start.
func (r *Region) startMetadata(ctx context.Context, driver hypervisor.Driver, inst ami.Instance, edit func(*ami.Metadata)) (ami.Metadata, error) {
	unlock, err := r.lockMetadata(ctx, inst.InstanceID)
	if err != nil {
		return ami.Metadata{}, err
	}
	md, err := r.facts(ctx, driver, inst)
	if err == nil {
		err = r.putMetadata(ctx, driver, inst, &md, edit)
	}
	unlock(err == nil)
	return md, storeError(err, "The metadata of %s cannot be written.", inst.InstanceID)
}

func (r *Region) putMetadata(ctx context.Context, driver hypervisor.Driver, inst ami.Instance, md *ami.Metadata, edit func(*ami.Metadata)) error {
	path := r.metadataPath(inst.InstanceID)
	old, err := readMetadata(path)
	switch {
	case err == nil:
		md.PublicKeys, md.UserData, md.Identity = old.PublicKeys, old.UserData, old.Identity
	case !errors.Is(err, errNoMetadata):
		return err
	}
	if edit != nil {
		edit(md)
	}
	if servesMetadata(driver, inst) {
		if err := r.identify(ctx, md); err != nil {
			return err
		}
		if err := makeSecret(filepath.Join(r.instanceDir(inst.InstanceID), secretName)); err != nil {
			return err
		}
	}
	return writeMetadata(path, *md)
}

// writeMetadata writes a file that does not hold md yet.
func writeMetadata(path string, md ami.Metadata) error {
	text, err := json.Marshal(md)
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, text) {
		return nil
	}
	err = durable.WriteFile(path, 0o600, func(f *os.File) error {
		_, err := f.Write(text)
		return err
	})
	durable.Step("metadata.written")
	return err
}

// makeSecret makes the key that signs an instance's tokens, if it has none.
func makeSecret(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	secret := make([]byte, secretBytes)
	rand.Read(secret) // never fails
	return durable.WriteFile(path, 0o600, func(f *os.File) error {
		_, err := f.Write(secret)
		return err
	})
}

// tellLimit is how long a command waits for another one to tell a guest something,
// which takes milliseconds.
const tellLimit = 10 * time.Second

func (r *Region) metadataLock(id ami.InstanceID) string {
	return r.path("tmp", "metadata-"+string(id)+".lock")
}

// lockMetadata takes the sole right to change what a guest is told. A lock whose
// file outlives its holder (unlock was not called, or with false) tells the next
// command that the guest may not have been told what the records say.
func (r *Region) lockMetadata(ctx context.Context, id ami.InstanceID) (unlock func(told bool), err error) {
	path := r.metadataLock(id)
	waiting, cancel := context.WithTimeout(ctx, tellLimit)
	defer cancel()
	lock, err := durable.AcquireLock(waiting, path)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil, ami.Errorf(ami.CodeIncorrectInstanceState, "Another command is changing what the guest of '%s' is told.", id).
			WithHint("Wait until it has finished.")
	}
	if err != nil {
		return nil, storeError(err, "The metadata of %s cannot be locked.", id)
	}
	return func(told bool) {
		if told {
			os.Remove(path)
		}
		lock.Unlock()
	}, nil
}

// tellingGuests runs change, which changes the records of instances, and then
// tells their guests. Ids of other things are nothing to it.
func (r *Region) tellingGuests(ctx context.Context, ids []string, change func() error) error {
	var guests []ami.InstanceID
	for _, s := range ids {
		if id, err := ami.ParseInstanceID(s); err == nil {
			guests = append(guests, id)
		}
	}
	slices.Sort(guests) // two commands take the same locks in the same order
	return r.tellingEach(ctx, slices.Compact(guests), change)
}

// tellingEach holds the locks of all guests around change.
func (r *Region) tellingEach(ctx context.Context, guests []ami.InstanceID, change func() error) (err error) {
	if len(guests) == 0 {
		return change()
	}
	unlock, err := r.lockMetadata(ctx, guests[0])
	if err != nil {
		return err
	}
	changed := false
	defer func() { unlock(!changed || err == nil) }()
	if err := r.tellingEach(ctx, guests[1:], change); err != nil {
		return err
	}
	changed = true
	durable.Step("metadata.changed")
	return r.retell(context.WithoutCancel(ctx), guests[0])
}

// retell brings what a guest is told up to date with its record. One that was
// told nothing yet is told when it starts. The caller has its lock.
func (r *Region) retell(ctx context.Context, id ami.InstanceID) error {
	inst, err := r.instanceRecord(ctx, id)
	if err != nil || inst.State.Name == ami.InstanceTerminated {
		return err
	}
	md, err := readMetadata(r.metadataPath(id))
	if errors.Is(err, errNoMetadata) {
		return nil
	}
	if err == nil {
		tell(&md, inst)
		err = writeMetadata(r.metadataPath(id), md)
	}
	return storeError(err, "The guest of %s cannot be told of the change.", id)
}

// sweepMetadata tells the guests of what a killed command had changed.
func (r *Region) sweepMetadata(ctx context.Context) error {
	left, err := names(r.path("tmp"), "metadata-", ".lock")
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range left {
		id := ami.InstanceID(name)
		lock, free, err := durable.TryLock(r.metadataLock(id))
		if err != nil || !free {
			errs = append(errs, err)
			continue
		}
		state, err := r.lastState(ctx, id)
		if err == nil && state != "" {
			err = r.retell(ctx, id)
		}
		if err == nil {
			os.Remove(r.metadataLock(id))
		}
		errs = append(errs, err, lock.Unlock())
	}
	return errors.Join(errs...)
}

// GuestMetadata reads what one guest is told, without opening the region: the
// metadata service does so once for each of the guest's connections.
type GuestMetadata struct{ dir string }

// OpenMetadata finds the metadata of an instance. It looks at names alone, and
// returns InvalidInstanceID.Malformed or InvalidParameterValue.
func OpenMetadata(home, name string, id ami.InstanceID) (GuestMetadata, error) {
	if !regionName.MatchString(name) {
		return GuestMetadata{}, badRegionName(name)
	}
	if _, err := ami.ParseInstanceID(string(id)); err != nil {
		return GuestMetadata{}, err
	}
	return GuestMetadata{filepath.Join(home, "regions", name, "instances", string(id))}, nil
}

// Facts reads what the guest is told now.
func (g GuestMetadata) Facts() (ami.Metadata, error) {
	return readMetadata(filepath.Join(g.dir, metadataName))
}

// Secret reads the key that signs the guest's tokens.
func (g GuestMetadata) Secret() ([]byte, error) {
	secret, err := readBounded(filepath.Join(g.dir, secretName), secretBytes+1)
	if err == nil && len(secret) != secretBytes {
		err = fmt.Errorf("the key of the tokens has %d bytes, not %d", len(secret), secretBytes)
	}
	return secret, err
}

// maxAnswering is how many processes answer one guest at a time.
const maxAnswering = 16

// Seat takes one of the places that a guest's connections have on the host. ok
// is false when all are taken; a place is given back at the end of the process
// at the latest.
func (g GuestMetadata) Seat() (leave func(), ok bool, err error) {
	for i := range maxAnswering {
		lock, free, err := durable.TryLock(filepath.Join(g.dir, "metadata."+strconv.Itoa(i)+".lock"))
		if err != nil {
			return nil, false, err
		}
		if free {
			return func() { lock.Unlock() }, true, nil
		}
	}
	return nil, false, nil
}
