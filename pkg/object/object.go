// Package object keeps what travels: named bytes that never change once they are
// written, such as the parts of a bundle, its chunks and its manifest. A Store is
// a local directory, a bucket of any S3, or a directory of another host over
// SFTP; all of them pass objecttest.
package object

import (
	"context"
	"errors"
	"io"
	"time"
)

// Sentinels that stores return, wrapped.
var (
	ErrNotFound    = errors.New("no such object")
	ErrExists      = errors.New("object exists")
	ErrDenied      = errors.New("access to the object store is denied")
	ErrUnreachable = errors.New("object store cannot be reached")
	ErrBadName     = errors.New("not a name of an object")
)

// MaxName is the longest name of an object, in bytes (S3's limit).
const MaxName = 1024

// Info is what a store says of an object without reading it.
type Info struct {
	Name     string // clean and relative, with slashes
	Size     int64  // bytes
	Modified time.Time
}

// Store keeps objects by name. Names are relative and clean, with slashes between
// their parts; any other is ErrBadName. All methods are safe for concurrent use,
// also by several processes, and return when ctx ends; what failed for a passing
// reason was tried again before an error is returned.
type Store interface {
	// URL says where the objects lie, for records and people; it holds no secret.
	URL() string
	// Put writes an object of size bytes from r. It is there as a whole or not at
	// all, also when the process is killed, and replaces one of that name. r is
	// read from its beginning again where a part has to be sent again.
	Put(ctx context.Context, name string, r io.ReadSeeker, size int64) error
	// PutNew is Put for a name that must be free; it returns ErrExists otherwise,
	// also to all but one of those that write at once.
	PutNew(ctx context.Context, name string, r io.ReadSeeker, size int64) error
	// Get opens an object. It returns ErrNotFound at once. A connection that breaks
	// is taken up again where it broke; bytes that are lacking at the end are
	// io.ErrUnexpectedEOF, never a short object. The caller closes it.
	Get(ctx context.Context, name string) (io.ReadCloser, Info, error)
	// Stat describes an object. It returns ErrNotFound.
	Stat(ctx context.Context, name string) (Info, error)
	// List calls fn with the objects whose names begin with prefix, in the order of
	// their names. It ends with fn's error.
	List(ctx context.Context, prefix string, fn func(Info) error) error
	// Delete deletes an object. Idempotent.
	Delete(ctx context.Context, name string) error
	// Close releases connections.
	Close() error
}
