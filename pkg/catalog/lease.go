package catalog

import (
	"errors"
	"fmt"
	"time"

	"github.com/kamivm/kami/pkg/digest"
)

// Lease names an object that a process is working on. Whether the process is
// alive is known by its lock, not by the lease.
type Lease struct {
	ID      string
	Holder  string
	Layer   digest.Digest // kept from being collected; may be empty
	Created time.Time
}

// PutLease writes a lease.
func (tx *Tx) PutLease(l Lease) error {
	_, err := tx.conn.ExecContext(tx.ctx, "INSERT OR REPLACE INTO leases (id, holder, layer, created) VALUES (?, ?, ?, ?)",
		l.ID, l.Holder, string(l.Layer), stamp(l.Created))
	if err != nil {
		return fmt.Errorf("writing leases: %w", err)
	}
	return nil
}

// Leases reads all leases, newest first: what was begun last is undone first.
// Beside them it returns an ErrDamaged for each that cannot be read.
func (tx *Tx) Leases() (leases []Lease, err error) {
	rows, err := tx.conn.QueryContext(tx.ctx, "SELECT id, holder, layer, created FROM leases ORDER BY created DESC, id")
	if err != nil {
		return nil, fmt.Errorf("reading leases: %w", err)
	}
	defer rows.Close()
	var damaged []error
	for rows.Next() {
		var l Lease
		var created string
		if err := rows.Scan(&l.ID, &l.Holder, &l.Layer, &created); err != nil {
			return nil, fmt.Errorf("reading leases: %w", err)
		}
		if l.Created, err = time.Parse(time.RFC3339Nano, created); err != nil {
			damaged = append(damaged, fmt.Errorf("%w: %s in leases: %w", ErrDamaged, l.ID, err))
			continue
		}
		leases = append(leases, l)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading leases: %w", err)
	}
	return leases, errors.Join(damaged...)
}

// HasLease says whether there is a lease of that id.
func (tx *Tx) HasLease(id string) (has bool, err error) {
	err = tx.conn.QueryRowContext(tx.ctx, "SELECT EXISTS (SELECT 1 FROM leases WHERE id = ?)", id).Scan(&has)
	if err != nil {
		return false, fmt.Errorf("reading leases: %w", err)
	}
	return has, nil
}

// DeleteLease deletes a lease. One that is not there is no error.
func (tx *Tx) DeleteLease(id string) error { return remove(tx, "leases", "id = ?", id) }

// GonePrefix begins the lease that the delete of a volume or an instance leaves:
// its files are still to be removed. It goes when they are. Only what such a
// lease names is ever removed for want of a record, so that a catalog which was
// lost or brought back from a backup takes nothing with it.
const GonePrefix = "gone-"

func (tx *Tx) putGone(id string) error {
	return tx.PutLease(Lease{ID: GonePrefix + id, Created: time.Now().UTC()})
}

// LayerRefs counts the records that name each layer.
func (tx *Tx) LayerRefs() (map[digest.Digest]int, error) {
	rows, err := tx.conn.QueryContext(tx.ctx, `SELECT layer, count(*) FROM (
		SELECT layer FROM snapshots UNION ALL SELECT layer FROM volumes
		UNION ALL SELECT layer FROM leases UNION ALL SELECT layer FROM cached_layers
	) WHERE layer != '' GROUP BY layer`)
	if err != nil {
		return nil, fmt.Errorf("reading layers: %w", err)
	}
	defer rows.Close()
	refs := map[digest.Digest]int{}
	for rows.Next() {
		var d digest.Digest
		var n int
		if err := rows.Scan(&d, &n); err != nil {
			return nil, fmt.Errorf("reading layers: %w", err)
		}
		refs[d] = n
	}
	return refs, rows.Err()
}
