package catalog

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
)

// limits are what a plan is made by.
type limits struct {
	merged   int   // lists, at most
	lookedUp int   // terms of a pattern beforehand, at most
	sorted   int64 // images, at most
	tried    int   // images that are looked at, before resorted are sorted
	resorted int64
}

func usual() limits {
	return limits{merged: 32, lookedUp: 1000, sorted: 4000, tried: 1000, resorted: 30000}
}

// clause is an AnyOf in the words of the index: lists of postings, patterns of more
// terms than are worth to be looked up, or a span of time.
type clause struct {
	terms  []int64
	wide   []widePattern
	images int64 // on the lists at most; math.MaxInt64 is too many to count
	dates  *span
	// ordered says that the lists can be merged as they are.
	ordered bool
}

// widePattern is a pattern and the text that all it fits begins with.
type widePattern struct{ name, prefix, glob string }

func (c clause) none() bool { return len(c.terms) == 0 && len(c.wide) == 0 && c.dates == nil }

// resolve looks the terms of a clause up.
func (tx *Tx) resolve(of AnyOf, most limits) (c clause, err error) {
	if len(of) == 1 {
		if c.dates = datesOf(of[0]); c.dates != nil {
			return c, nil
		}
	}
	for _, t := range of {
		prefix, whole, ok := ami.ParsePattern(t.Pattern)
		if !ok {
			continue
		}
		w := widePattern{t.Name, prefix, glob(t.Pattern)}
		b := binder{args: []any{t.Name, prefix}}
		where := "name = ?1 AND value = ?2"
		if !whole {
			b = binder{}
			where = w.where(&b, "image_terms")
		}
		rows, err := tx.pairs("SELECT id, n FROM image_terms WHERE "+where+" LIMIT "+strconv.Itoa(most.lookedUp+1), b.args...)
		if err != nil {
			return c, err
		}
		if len(rows) > most.lookedUp {
			c.wide = append(c.wide, w)
			c.images = math.MaxInt64
			continue
		}
		for _, r := range rows {
			c.terms = append(c.terms, r[0])
			if c.images < math.MaxInt64 {
				c.images += r[1]
			}
		}
	}
	c.ordered = len(c.wide) == 0 && len(c.terms) <= most.merged
	return c, nil
}

// pairs reads rows of two numbers.
func (tx *Tx) pairs(query string, args ...any) (out [][2]int64, err error) {
	rows, err := tx.conn.QueryContext(tx.ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("reading the index of images: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var p [2]int64
		if err := rows.Scan(&p[0], &p[1]); err != nil {
			return nil, fmt.Errorf("reading the index of images: %w", err)
		}
		out = append(out, p)
	}
	return out, rows.Err()
}

// places finds where the images are that all clauses hold for, one more than the
// query's limit. The shortest list leads, and what is on it is looked for on the
// others: a filter that few images pass makes all others cheap.
func (tx *Tx) places(q ImageQuery, clauses []clause, most limits) ([]Position, error) {
	lead := 0 // the viewers', which is always there
	for n, c := range clauses {
		switch least := clauses[lead]; {
		case c.dates != nil || !c.ordered && c.images > most.sorted:
			// To sort all that would cost more than to follow another.
		case c.images < least.images, c.images == least.images && len(c.terms) < len(least.terms):
			lead = n
		case c.images > most.sorted && least.images > most.sorted && len(c.terms) == 1 && len(least.terms) > 1:
			// Of two lists that are merged the longer may have nothing of what is
			// looked for, and would be read to its end for the next of the other.
			lead = n
		}
	}
	// What fits a pattern of many terms may be anywhere, or all late. It is looked for
	// where it would be soon, before all of it is sorted.
	wide := slices.IndexFunc(clauses, func(c clause) bool { return !c.ordered && c.dates == nil })
	if wide < 0 || wide == lead || clauses[lead].images <= most.sorted {
		return tx.follow(q, clauses, lead, most, 0)
	}
	if q.Limit > 0 {
		found, err := tx.follow(q, clauses, lead, most, most.tried)
		if err != nil || len(found) > q.Limit {
			return found, err
		}
	}
	var b binder
	few, err := tx.pairs(fmt.Sprintf("SELECT count(*), 0 FROM (SELECT 1 FROM image_postings f WHERE %s LIMIT %d)", clauses[wide].on(&b), most.resorted), b.args...)
	if err != nil {
		return nil, err
	}
	if few[0][0] < most.resorted {
		lead = wide
	}
	return tx.follow(q, clauses, lead, most, 0)
}

// follow finds places by the lists of one clause; tried is how many of them are looked
// at, 0 for all.
func (tx *Tx) follow(q ImageQuery, clauses []clause, lead int, most limits, tried int) ([]Position, error) {
	var b binder
	bounds, err := tx.bounds(&b, q, clauses, lead, most)
	if err != nil || bounds == "" {
		return nil, err
	}
	also := ""
	for n, c := range clauses {
		if n != lead && c.dates == nil {
			also += " AND " + c.holds(&b)
		}
	}
	if !q.Deprecated {
		also += " AND NOT EXISTS (SELECT 1 FROM image_deprecations d WHERE d.image = f.image AND d.at <= " +
			b.bind(q.Now.UnixMicro()) + " AND d.owner != " + b.bind(q.Account) + ")"
	}
	last := ""
	if tried == 0 {
		last = also
	}
	var arms []string
	for _, on := range clauses[lead].lists(&b) {
		arms = append(arms, "SELECT DISTINCT f.created, f.image FROM image_postings f WHERE "+on+bounds+last)
	}
	query := strings.Join(arms, " UNION ") + " ORDER BY 1, 2"
	if tried > 0 {
		query = "SELECT f.created, f.image FROM (" + query + " LIMIT " + strconv.Itoa(tried) + ") f WHERE TRUE" + also + " ORDER BY 1, 2"
	}
	if q.Limit > 0 {
		query += " LIMIT " + strconv.Itoa(q.Limit+1)
	}
	rows, err := tx.conn.QueryContext(tx.ctx, query, b.args...)
	if err != nil {
		return nil, fmt.Errorf("finding images: %w", err)
	}
	defer rows.Close()
	var places []Position
	for rows.Next() {
		var p Position
		if err := rows.Scan(&p.Created, &p.Image); err != nil {
			return nil, fmt.Errorf("finding images: %w", err)
		}
		places = append(places, p)
	}
	return places, rows.Err()
}

// bounds is the condition of the time in which all clauses have images: a list of the
// past, or of late, keeps a longer one that leads from being read in vain. It is ""
// where there is no such time.
func (tx *Tx) bounds(b *binder, q ImageQuery, clauses []clause, lead int, most limits) (string, error) {
	all := span{math.MinInt64, math.MaxInt64}
	if q.After != (Position{}) {
		all.from = q.After.Created
	}
	for _, c := range clauses {
		if c.dates != nil {
			all = all.and(*c.dates)
		}
	}
	for n, c := range clauses {
		if n == lead || !c.ordered || c.dates != nil || clauses[lead].images <= most.sorted {
			continue
		}
		var ends []string
		for _, t := range c.terms {
			on := fmt.Sprintf("FROM image_postings WHERE term = %d AND created >= %d", t, all.from)
			ends = append(ends, fmt.Sprintf("SELECT (SELECT min(created) %s) AS first, (SELECT max(created) %s) AS last", on, on))
		}
		found, err := tx.pairs("SELECT * FROM (" + strings.Join(ends, " UNION ALL ") + ") WHERE first IS NOT NULL")
		if err != nil {
			return "", err
		}
		has := span{math.MaxInt64, math.MinInt64}
		for _, f := range found {
			has = span{min(has.from, f[0]), max(has.to, f[1])}
		}
		all = all.and(has)
	}
	if all.from > all.to {
		return "", nil
	}
	cond := " AND f.created >= " + b.bind(all.from) + " AND f.created <= " + b.bind(all.to)
	if q.After != (Position{}) {
		cond += " AND (f.created, f.image) > (" + b.bind(q.After.Created) + ", " + b.bind(string(q.After.Image)) + ")"
	}
	return cond, nil
}

// lists are the conditions of the lists that c leads by: one for each term, to be
// merged in order, or one of them all, to be sorted.
func (c clause) lists(b *binder) (out []string) {
	if !c.ordered {
		return []string{c.on(b)}
	}
	for _, t := range c.terms {
		out = append(out, "f.term = "+strconv.FormatInt(t, 10))
	}
	return out
}

// on is the condition that the posting f is on one of c's lists.
func (c clause) on(b *binder) string {
	lists := []string{"f.term IN (" + list(c.terms) + ")"}
	for _, w := range c.wide {
		lists = append(lists, "f.term IN (SELECT t.id FROM image_terms t WHERE "+w.where(b, "t")+")")
	}
	return "(" + strings.Join(lists, " OR ") + ")"
}

// holds is the condition that the image of the posting f fits c.
func (c clause) holds(b *binder) string {
	if c.ordered {
		return "EXISTS (SELECT 1 FROM image_postings p WHERE p.term IN (" + list(c.terms) + ") AND p.created = f.created AND p.image = f.image)"
	}
	// More lists than are worth to be looked at: the image's own terms are fewer, and
	// its name, which is what people give patterns of, is in its row.
	var fits []string
	if len(c.terms) == 0 && !slices.ContainsFunc(c.wide, func(w widePattern) bool { return w.name != "name" }) {
		for _, w := range c.wide {
			fits = append(fits, "i.name GLOB "+b.bind(w.glob))
		}
		return "EXISTS (SELECT 1 FROM images i WHERE i.id = f.image AND i.name != '' AND (" + strings.Join(fits, " OR ") + "))"
	}
	if len(c.terms) > 0 {
		fits = append(fits, "j.value IN ("+list(c.terms)+")")
	}
	for _, w := range c.wide {
		fits = append(fits, "EXISTS (SELECT 1 FROM image_terms t WHERE t.id = j.value AND t.name = "+b.bind(w.name)+" AND t.value GLOB "+b.bind(w.glob)+")")
	}
	return "EXISTS (SELECT 1 FROM images i, json_each(i.terms) j WHERE i.id = f.image AND (" + strings.Join(fits, " OR ") + "))"
}

// where is the condition that a term, of a table, is one of w's, by its index.
func (w widePattern) where(b *binder, table string) string {
	cond := table + ".name = " + b.bind(w.name)
	if w.prefix != "" {
		// No text goes on with the byte 0xff.
		cond += " AND " + table + ".value >= " + b.bind(w.prefix) + " AND " + table + ".value < " + b.bind(w.prefix+"\xff")
	}
	return cond + " AND " + table + ".value GLOB " + b.bind(w.glob)
}
