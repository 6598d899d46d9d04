package catalog

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/kamivm/kami/pkg/ami"
)

// stamp is a time as text that sorts.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000000Z") }

// put writes a row: columns and values in pairs, then the document.
func put(tx *Tx, table string, doc any, cols []string, vals ...any) error {
	text, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("encoding a record of %s: %w", table, err)
	}
	cols, vals = append(cols, "doc"), append(vals, string(text))
	var set []string
	for _, c := range cols[1:] {
		set = append(set, c+" = excluded."+c)
	}
	query := fmt.Sprintf("INSERT INTO %s (%s) VALUES (?%s) ON CONFLICT (id) DO UPDATE SET %s",
		table, strings.Join(cols, ", "), strings.Repeat(", ?", len(cols)-1), strings.Join(set, ", "))
	_, err = tx.conn.ExecContext(tx.ctx, query, vals...)
	var se *sqlite.Error
	if errors.As(err, &se) && se.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE {
		return fmt.Errorf("%w in %s", ErrExists, table)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", table, err)
	}
	return nil
}

// one reads the document of the row that where selects.
func one[T any](tx *Tx, table, where string, args ...any) (T, error) {
	var doc T
	var id, text string
	err := tx.conn.QueryRowContext(tx.ctx, "SELECT id, doc FROM "+table+" WHERE "+where, args...).Scan(&id, &text)
	if errors.Is(err, sql.ErrNoRows) {
		return doc, fmt.Errorf("%w in %s: %v", ErrNotFound, table, args)
	}
	if err != nil {
		return doc, fmt.Errorf("reading %s: %w", table, err)
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		return doc, fmt.Errorf("%w: %s in %s: %w", ErrDamaged, id, table, err)
	}
	return doc, nil
}

// many reads the documents of the rows that where selects, oldest first. Those
// that cannot be decoded are left out, and the error beside the others is an
// ErrDamaged for each.
func many[T any](tx *Tx, table, where string, args ...any) ([]T, error) {
	return documents[T](tx, table, "SELECT id, doc FROM "+table+" WHERE "+where+" ORDER BY created, id", args...)
}

// documents is many of a query for ids and documents of a table.
func documents[T any](tx *Tx, table, query string, args ...any) (docs []T, err error) {
	rows, err := tx.conn.QueryContext(tx.ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", table, err)
	}
	defer rows.Close()
	var damaged []error
	for rows.Next() {
		var id, text string
		if err := rows.Scan(&id, &text); err != nil {
			return nil, fmt.Errorf("reading %s: %w", table, err)
		}
		var doc T
		if err := json.Unmarshal([]byte(text), &doc); err != nil {
			damaged = append(damaged, fmt.Errorf("%w: %s in %s: %w", ErrDamaged, id, table, err))
			continue
		}
		docs = append(docs, doc)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading %s: %w", table, err)
	}
	return docs, errors.Join(damaged...)
}

// Verify reads every record, and returns an ErrDamaged for each that cannot be
// read.
func (tx *Tx) Verify() (damage []error, err error) {
	var errs [13]error
	_, errs[0] = tx.Images()
	_, errs[1] = tx.Snapshots()
	_, errs[2] = tx.Volumes()
	_, errs[3] = tx.Instances()
	_, errs[4] = tx.KeyPairs()
	_, errs[5] = tx.Leases()
	_, errs[6] = tx.CachedLayers()
	_, errs[7] = many[json.RawMessage](tx, "settings", "TRUE")
	_, errs[8] = tx.Usages(time.Time{}, time.Time{})
	_, errs[9] = tx.Offers()
	_, errs[10] = tx.Subscriptions()
	_, errs[11] = many[ami.LaunchTemplate](tx, "launch_templates", "TRUE")
	_, errs[12] = many[ami.Group](tx, "instance_groups", "TRUE")
	for _, err := range errs {
		if err != nil && !errors.Is(err, ErrDamaged) {
			return nil, err
		}
		if joined, ok := err.(interface{ Unwrap() []error }); ok { // what many returned
			damage = append(damage, joined.Unwrap()...)
		}
	}
	return damage, nil
}

// remove deletes the rows that where selects. None is no error.
func remove(tx *Tx, table, where string, args ...any) error {
	if _, err := tx.conn.ExecContext(tx.ctx, "DELETE FROM "+table+" WHERE "+where, args...); err != nil {
		return fmt.Errorf("deleting from %s: %w", table, err)
	}
	return nil
}
