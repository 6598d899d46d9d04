// Package catalog keeps a region's records in one SQLite file: images, snapshots,
// volumes, instances, key pairs, launch templates and groups, what is offered and
// subscribed to, what was used, and the leases of work under way.
//
// A record is stored as the JSON of its ami struct, beside the few columns that
// are looked up or must be unique. The catalog says what was asked for and what
// is finished; its commit is the truth, and what it does not name is garbage.
package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Sentinels, wrapped by what the methods return.
var (
	ErrNotFound = errors.New("no such record")
	ErrExists   = errors.New("a record of that name exists")
	ErrNewer    = errors.New("the catalog was written by a newer kami")
	ErrDamaged  = errors.New("a record cannot be read")
)

// Store is an open catalog. It is safe for concurrent use, also by several
// processes.
type Store struct {
	db    *sql.DB
	meter Meter
}

// Open opens the catalog at path, making it when it is not there and bringing
// an older one up to date. It returns ErrNewer for one of a later version.
func Open(ctx context.Context, path string) (*Store, error) {
	if err := keepPrivate(path); err != nil {
		return nil, fmt.Errorf("opening catalog: %w", err)
	}
	q := url.Values{"_pragma": {
		"journal_mode(WAL)", "synchronous(FULL)", "busy_timeout(10000)", "foreign_keys(1)",
	}}
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
	// The busy timeout does not cover the switch of a new file to WAL: of several
	// processes that make a catalog at once, all but one are turned away.
	for wait := time.Millisecond; ; wait *= 2 {
		s, err := openOnce(ctx, dsn)
		if !isBusy(err) || wait > maxBusy {
			return s, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// keepPrivate makes the catalog, which holds what guests were told, a file that
// nobody else can read. SQLite gives the files beside it the same mode; those of
// an older catalog may have another.
func keepPrivate(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			err = os.Chmod(path+suffix, 0o600)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// maxBusy is the longest wait between two tries to open a catalog; all waits
// together are twice that.
const maxBusy = 4 * time.Second

func isBusy(err error) bool {
	const primary = 0xff // the rest says more closely what kind of busy
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code()&primary == sqlite3.SQLITE_BUSY
}

func openOnce(ctx context.Context, dsn string) (*Store, error) {
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("opening catalog: %w", err)
	}
	s := &Store{db: db}
	if err := s.migrate(ctx); err != nil {
		db.Close()
		return nil, err
	}
	return s, nil
}

// Close releases the catalog.
func (s *Store) Close() error { return s.db.Close() }

// migrations take the schema from one version to the next; a migration that was
// released never changes. user_version is how many have been applied.
//
// A field that images are to be found by is new in an old catalog too: what adds
// one to ami.ImageFields adds a migration, an empty one will do, and raises
// reindexed to its number.
var migrations = [...]string{
	`
	CREATE TABLE images (
		id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
		created TEXT NOT NULL, doc TEXT NOT NULL
	) STRICT;
	CREATE UNIQUE INDEX image_names ON images (owner, name) WHERE state IN ('pending', 'available');
	CREATE TABLE snapshots (
		id TEXT PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL, layer TEXT NOT NULL,
		created TEXT NOT NULL, doc TEXT NOT NULL
	) STRICT;
	CREATE INDEX snapshot_layers ON snapshots (layer);
	CREATE TABLE image_snapshots (
		image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
		snapshot TEXT NOT NULL, PRIMARY KEY (snapshot, image)
	) STRICT, WITHOUT ROWID;
	CREATE TABLE volumes (
		id TEXT PRIMARY KEY, owner TEXT NOT NULL, instance TEXT NOT NULL, layer TEXT NOT NULL,
		created TEXT NOT NULL, doc TEXT NOT NULL
	) STRICT;
	CREATE INDEX volume_instances ON volumes (instance);
	CREATE TABLE instances (
		id TEXT PRIMARY KEY, owner TEXT NOT NULL, image TEXT NOT NULL, state TEXT NOT NULL,
		created TEXT NOT NULL, doc TEXT NOT NULL
	) STRICT;
	CREATE TABLE key_pairs (
		id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL,
		created TEXT NOT NULL, doc TEXT NOT NULL, UNIQUE (owner, name)
	) STRICT;
	CREATE TABLE leases (
		id TEXT PRIMARY KEY, holder TEXT NOT NULL, layer TEXT NOT NULL, created TEXT NOT NULL
	) STRICT;`,
	`
	CREATE TABLE cached_layers (
		id TEXT PRIMARY KEY, layer TEXT NOT NULL, created TEXT NOT NULL, doc TEXT NOT NULL
	) STRICT;`,
	`
	CREATE TABLE settings (
		id TEXT PRIMARY KEY, created TEXT NOT NULL, doc TEXT NOT NULL
	) STRICT;`,
	indexSchema,
	meterSchema,
	offerSchema,
	scaleSchema,
	meterIndex,
}

// reindexed is the last migration after which all images have to be indexed anew.
const reindexed = 4

func (s *Store) migrate(ctx context.Context) error {
	var have int
	if err := s.db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&have); err != nil {
		return fmt.Errorf("reading the catalog's version: %w", err)
	}
	switch {
	case have == len(migrations):
		return nil
	case have > len(migrations):
		return fmt.Errorf("%w: its version is %d, this kami knows up to %d", ErrNewer, have, len(migrations))
	}
	return s.Update(ctx, func(tx *Tx) error {
		// Another process may have been quicker.
		if err := tx.conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&have); err != nil {
			return err
		}
		stale := have < reindexed
		for ; have < len(migrations); have++ {
			if _, err := tx.conn.ExecContext(ctx, migrations[have]); err != nil {
				return fmt.Errorf("bringing the catalog to version %d: %w", have+1, err)
			}
		}
		if stale {
			if err := tx.reindex(); err != nil {
				return err
			}
		}
		_, err := tx.conn.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", have))
		return err
	})
}

// Tx reads and, in Update, writes records, all at one instant.
type Tx struct {
	ctx   context.Context //nolint:containedctx // lives no longer than the call that made it
	conn  *sql.Conn
	meter Meter
}

// View calls fn with a consistent view of the catalog. It waits for no writer.
func (s *Store) View(ctx context.Context, fn func(*Tx) error) error {
	return s.run(ctx, "BEGIN DEFERRED", fn)
}

// Update calls fn and commits what it wrote, durably, unless it fails. One
// update runs at a time.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	return s.run(ctx, "BEGIN IMMEDIATE", fn)
}

func (s *Store) run(ctx context.Context, begin string, fn func(*Tx) error) (err error) {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("opening catalog: %w", err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, begin); err != nil {
		return fmt.Errorf("beginning: %w", err)
	}
	defer func() {
		if err != nil {
			if _, rerr := conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK"); rerr != nil {
				err = errors.Join(err, rerr)
			}
		}
	}()
	if err := fn(&Tx{ctx, conn, s.meter}); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	return nil
}
