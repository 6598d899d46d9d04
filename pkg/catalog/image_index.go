package catalog

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kamivm/kami/pkg/ami"
)

// Images are found by an inverted index, as texts are by a search engine. A term is
// a name and a value, such as architecture and x86_64; a term's postings are the
// images that have it, in the order of lists: by their creation, then by their ids.
// So what a filter asks for is a list that is there already and in order, and a page
// of a long one costs what is on the page. The index is written with the record; an
// image's row names its terms, so that a change costs what it changes.
//
// A deregistered image has no terms: nothing finds it.
const indexSchema = `
	ALTER TABLE images ADD COLUMN terms TEXT NOT NULL DEFAULT '[]'; -- ids, as JSON
	ALTER TABLE images ADD COLUMN at INTEGER NOT NULL DEFAULT 0; -- what the postings have as created
	CREATE TABLE image_terms (
		id INTEGER PRIMARY KEY, name TEXT NOT NULL, value TEXT NOT NULL,
		n INTEGER NOT NULL DEFAULT 0, -- its postings
		UNIQUE (name, value)
	) STRICT;
	CREATE TABLE image_postings (
		term INTEGER NOT NULL, created INTEGER NOT NULL, image TEXT NOT NULL, -- created in microseconds
		PRIMARY KEY (term, created, image)
	) STRICT, WITHOUT ROWID;
	CREATE TABLE image_deprecations (
		image TEXT PRIMARY KEY, owner TEXT NOT NULL, at INTEGER NOT NULL
	) STRICT, WITHOUT ROWID;
	CREATE INDEX snapshots_of_images ON image_snapshots (image);`

// Names of terms that are no filters': who may find an image, and who may launch it
// by being named in its launch permissions. As only its owner knows whom else it
// names, there is "OWNER/USER" beside "USER".
const (
	termAudience   = "(audience)"
	termDisabled   = "(audience of disabled)"
	termExecutable = "(executable)"
)

// imageTerms are all terms of an image.
func imageTerms(i ami.Image) [][2]string {
	if i.State == ami.ImageDeregistered {
		return nil
	}
	audience := termAudience
	if i.State == ami.ImageDisabled {
		audience = termDisabled
	}
	var out [][2]string
	seen := map[[2]string]bool{}
	add := func(name, value string) {
		if t := [2]string{name, value}; !seen[t] {
			seen[t] = true
			out = append(out, t)
		}
	}
	for n, who := range i.Audience() {
		add(audience, who)
		if n > 0 { // beside the owner
			add(termExecutable, who)
			add(termExecutable, i.OwnerID+"/"+who)
		}
	}
	for _, f := range ami.ImageFields(i) {
		add(f.Name, f.Value)
	}
	return out
}

// indexImage brings the index up to an image's record, which is written already.
func (tx *Tx) indexImage(i ami.Image) error {
	id, at := string(i.ImageID), i.CreationDate.UnixMicro()
	if err := tx.deprecate(i); err != nil {
		return err
	}
	terms, err := json.Marshal(imageTerms(i))
	if err != nil {
		return fmt.Errorf("indexing %s: %w", id, err)
	}
	_, err = tx.conn.ExecContext(tx.ctx, `INSERT OR IGNORE INTO image_terms (name, value)
		SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)`, string(terms))
	if err != nil {
		return fmt.Errorf("indexing %s: %w", id, err)
	}
	var ids, had string
	var was int64
	err = tx.conn.QueryRowContext(tx.ctx, `SELECT json_group_array(t.id), (SELECT terms FROM images WHERE id = ?2), (SELECT at FROM images WHERE id = ?2)
		FROM json_each(?1) j CROSS JOIN image_terms t ON t.name = json_extract(j.value, '$[0]') AND t.value = json_extract(j.value, '$[1]')`,
		string(terms), id).Scan(&ids, &had, &was)
	if err != nil {
		return fmt.Errorf("indexing %s: %w", id, err)
	}
	stay := ids
	if was != at {
		stay = "[]"
	}
	if err := tx.dropPostings(id, was, had, stay); err != nil {
		return err
	}
	for _, q := range []struct {
		text string
		args []any
	}{
		{"INSERT OR IGNORE INTO image_postings (term, created, image) SELECT value, ?, ? FROM json_each(?)", []any{at, id, ids}},
		{"UPDATE image_terms SET n = n + 1 WHERE id IN (SELECT value FROM json_each(?) EXCEPT SELECT value FROM json_each(?))", []any{ids, had}},
		{"UPDATE images SET terms = ?, at = ? WHERE id = ?", []any{ids, at, id}},
	} {
		if err == nil {
			_, err = tx.conn.ExecContext(tx.ctx, q.text, q.args...)
		}
	}
	if err == nil {
		err = tx.forgetTerms(had, ids)
	}
	if err != nil {
		return fmt.Errorf("indexing %s: %w", id, err)
	}
	return nil
}

// deprecate notes since when an image is out of date.
func (tx *Tx) deprecate(i ami.Image) error {
	if i.DeprecationTime.IsZero() || i.State == ami.ImageDeregistered {
		return remove(tx, "image_deprecations", "image = ?", string(i.ImageID))
	}
	_, err := tx.conn.ExecContext(tx.ctx, "INSERT OR REPLACE INTO image_deprecations (image, owner, at) VALUES (?, ?, ?)",
		string(i.ImageID), i.OwnerID, i.DeprecationTime.UnixMicro())
	if err != nil {
		return fmt.Errorf("writing image_deprecations: %w", err)
	}
	return nil
}

// unindexImage takes an image out of the index, before its record goes.
func (tx *Tx) unindexImage(id ami.ImageID) error {
	var had string
	var was int64
	err := tx.conn.QueryRowContext(tx.ctx, "SELECT coalesce(max(terms), '[]'), coalesce(max(at), 0) FROM images WHERE id = ?", string(id)).Scan(&had, &was)
	if err != nil {
		return fmt.Errorf("reading images: %w", err)
	}
	return errors.Join(tx.dropPostings(string(id), was, had, "[]"), tx.forgetTerms(had, "[]"),
		remove(tx, "image_deprecations", "image = ?", string(id)))
}

// dropPostings removes those of an image's postings that do not stay.
func (tx *Tx) dropPostings(id string, at int64, had, stay string) error {
	if had == "[]" {
		return nil
	}
	return remove(tx, "image_postings", `created = ? AND image = ? AND term IN
		(SELECT value FROM json_each(?) EXCEPT SELECT value FROM json_each(?))`, at, id, had, stay)
}

// forgetTerms counts the postings that are gone, and removes those terms that no image
// has any more.
func (tx *Tx) forgetTerms(had, stay string) error {
	if had == "[]" {
		return nil
	}
	_, err := tx.conn.ExecContext(tx.ctx, `UPDATE image_terms SET n = n - 1 WHERE id IN
		(SELECT value FROM json_each(?) EXCEPT SELECT value FROM json_each(?))`, had, stay)
	if err != nil {
		return fmt.Errorf("writing image_terms: %w", err)
	}
	return remove(tx, "image_terms", "n = 0 AND id IN (SELECT value FROM json_each(?))", had)
}

// reindex indexes all images anew.
func (tx *Tx) reindex() error {
	images, err := tx.Images()
	if err != nil && !errors.Is(err, ErrDamaged) {
		return err
	}
	for _, q := range []string{
		"DELETE FROM image_postings", "DELETE FROM image_terms", "DELETE FROM image_deprecations",
		"UPDATE images SET terms = '[]', at = 0",
	} {
		if _, err := tx.conn.ExecContext(tx.ctx, q); err != nil {
			return fmt.Errorf("indexing images: %w", err)
		}
	}
	for _, i := range images {
		if err := tx.indexImage(i); err != nil {
			return err
		}
	}
	return nil
}
