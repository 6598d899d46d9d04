package catalog

import (
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
func (tx *Tx) Leases() (leases []Lease, err error) {
	rows, err := tx.conn.QueryContext(tx.ctx, "SELECT id, holder, layer, created FROM leases ORDER BY created DESC, id")
	if err != nil {
		return nil, fmt.Errorf("reading leases: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var l Lease
		var created string
		if err := rows.Scan(&l.ID, &l.Holder, &l.Layer, &created); err != nil {
			return nil, fmt.Errorf("reading leases: %w", err)
		}
		if l.Created, err = time.Parse(time.RFC3339Nano, created); err != nil {
			return nil, fmt.Errorf("reading leases: %w", err)
		}
		leases = append(leases, l)
	}
	return leases, rows.Err()
}

// DeleteLease deletes a lease. One that is not there is no error.
func (tx *Tx) DeleteLease(id string) error { return remove(tx, "leases", "id = ?", id) }

// LayerRefs counts the records that name each layer.
func (tx *Tx) LayerRefs() (map[digest.Digest]int, error) {
	rows, err := tx.conn.QueryContext(tx.ctx, `SELECT layer, count(*) FROM (
		SELECT layer FROM snapshots UNION ALL SELECT layer FROM volumes UNION ALL SELECT layer FROM leases
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
