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
	var text string
	err := tx.conn.QueryRowContext(tx.ctx, "SELECT doc FROM "+table+" WHERE "+where, args...).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return doc, fmt.Errorf("%w in %s: %v", ErrNotFound, table, args)
	}
	if err != nil {
		return doc, fmt.Errorf("reading %s: %w", table, err)
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		return doc, fmt.Errorf("decoding a record of %s: %w", table, err)
	}
	return doc, nil
}

// many reads the documents of the rows that where selects, oldest first.
func many[T any](tx *Tx, table, where string, args ...any) (docs []T, err error) {
	rows, err := tx.conn.QueryContext(tx.ctx, "SELECT doc FROM "+table+" WHERE "+where+" ORDER BY created, id", args...)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", table, err)
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, fmt.Errorf("reading %s: %w", table, err)
		}
		var doc T
		if err := json.Unmarshal([]byte(text), &doc); err != nil {
			return nil, fmt.Errorf("decoding a record of %s: %w", table, err)
		}
		docs = append(docs, doc)
	}
	return docs, rows.Err()
}

// remove deletes the rows that where selects. None is no error.
func remove(tx *Tx, table, where string, args ...any) error {
	if _, err := tx.conn.ExecContext(tx.ctx, "DELETE FROM "+table+" WHERE "+where, args...); err != nil {
		return fmt.Errorf("deleting from %s: %w", table, err)
	}
	return nil
}
