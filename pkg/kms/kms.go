// Package kms keeps the keys that encrypt a region's volumes. A key is named by
// its id, a UUID, or by an alias; what it is made of never leaves the store but
// as the passphrase that opens a disk. Every disk has a data key of its own,
// which is kept in the disk's LUKS header, wrapped by such a passphrase.
package kms

import (
	"context"
	"errors"
	"regexp"
	"time"
)

// Sentinels, wrapped by what the methods return.
var (
	ErrNotFound = errors.New("no such key")
	ErrExists   = errors.New("a key has that alias")
	ErrDamaged  = errors.New("damaged key")
)

// Key describes a key.
type Key struct {
	ID          string    // a UUID
	Alias       string    // "alias/…", or "" for none
	Description string    // in the user's words
	Created     time.Time // in UTC
}

// Store keeps keys. It is safe for concurrent use, also by several processes.
type Store interface {
	// Create makes a key of 256 random bits, durably. alias is "" or one for
	// which ValidAlias holds; ErrExists when a key has it.
	Create(ctx context.Context, alias, description string) (Key, error)
	// Find returns the key with that id or alias, or ErrNotFound.
	Find(ctx context.Context, name string) (Key, error)
	// List returns all keys, the oldest first. One that is damaged is left out,
	// and told of in the error, which is ErrDamaged.
	List(ctx context.Context) ([]Key, error)
	// Passphrase returns what opens the disks of the key with that id, as text
	// without spaces. It returns ErrNotFound or ErrDamaged.
	Passphrase(ctx context.Context, id string) ([]byte, error)
	// Delete destroys a key. What it encrypts is lost. It returns ErrNotFound.
	Delete(ctx context.Context, id string) error
}

// DefaultAlias is the alias of the key that a region makes for itself when
// something is to be encrypted and no key is named, as EC2's alias/aws/ebs.
const DefaultAlias = "alias/kami/ebs"

var alias = regexp.MustCompile(`^alias/[A-Za-z0-9/_-]{1,240}$`)

// ValidAlias says whether a name can be an alias.
func ValidAlias(name string) bool { return alias.MatchString(name) }
