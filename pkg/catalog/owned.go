package catalog

import "fmt"

// Owned counts the records of one owner.
type Owned struct {
	Owner                                           string
	Images, Snapshots, Volumes, Instances, KeyPairs int
}

// Owned counts the records of each owner, in the order of their numbers. Images that
// are deregistered do not count.
func (tx *Tx) Owned() (out []Owned, err error) {
	rows, err := tx.conn.QueryContext(tx.ctx, `SELECT owner, sum(what = 1), sum(what = 2), sum(what = 3), sum(what = 4), sum(what = 5) FROM (
		SELECT owner, 1 AS what FROM images WHERE state != 'deregistered'
		UNION ALL SELECT owner, 2 FROM snapshots UNION ALL SELECT owner, 3 FROM volumes
		UNION ALL SELECT owner, 4 FROM instances UNION ALL SELECT owner, 5 FROM key_pairs
	) GROUP BY owner ORDER BY owner`)
	if err != nil {
		return nil, fmt.Errorf("reading owners: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var o Owned
		if err := rows.Scan(&o.Owner, &o.Images, &o.Snapshots, &o.Volumes, &o.Instances, &o.KeyPairs); err != nil {
			return nil, fmt.Errorf("reading owners: %w", err)
		}
		out = append(out, o)
	}
	return out, rows.Err()
}

// CountSnapshots counts all snapshots, whoever owns them.
func (tx *Tx) CountSnapshots() (n int, err error) {
	if err := tx.conn.QueryRowContext(tx.ctx, "SELECT count(*) FROM snapshots").Scan(&n); err != nil {
		return 0, fmt.Errorf("counting snapshots: %w", err)
	}
	return n, nil
}

// CountOwnSnapshots counts the snapshots of an owner, and of them those in a state.
func (tx *Tx) CountOwnSnapshots(owner, state string) (all, in int, err error) {
	row := tx.conn.QueryRowContext(tx.ctx, "SELECT count(*), coalesce(sum(state = ?), 0) FROM snapshots WHERE owner = ?", state, owner)
	if err := row.Scan(&all, &in); err != nil {
		return 0, 0, fmt.Errorf("counting the snapshots of %s: %w", owner, err)
	}
	return all, in, nil
}
