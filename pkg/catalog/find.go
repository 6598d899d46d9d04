package catalog

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// ImageQuery asks for images, in the order of their creation and then of their ids.
type ImageQuery struct {
	// Viewers are all that the caller is in the words of launch permissions: its
	// account, its organisations and units, ami.GroupAll.
	Viewers []string
	Where   []AnyOf // all of them have to hold
	// Disabled has images found also while they are disabled.
	Disabled bool
	// Deprecated has images found also where they are out of date at Now, and
	// Account's are at all times.
	Deprecated bool
	Account    string
	Now        time.Time

	After Position // where the page before ended; the zero Position begins
	Limit int      // images on the page; 0 is all
}

// AnyOf holds for an image that fits one of its terms, and for none where it has none.
type AnyOf []Term

// Term is a name of ami.ImageFields and EC2's pattern of a value.
type Term struct{ Name, Pattern string }

// Filter is the term of each value of a filter.
func Filter(name string, patterns ...string) AnyOf {
	var of AnyOf
	for _, p := range patterns {
		of = append(of, Term{name, p})
	}
	return of
}

// ExecutableBy holds for images that name a user, or ami.GroupAll, in their launch
// permissions; owner is whose images these are, "" for anybody's.
func ExecutableBy(owner, user string) AnyOf {
	if owner != "" {
		user = owner + "/" + user
	}
	return Filter(termExecutable, ami.EscapePattern(user))
}

// Position is a place in the order of images.
type Position struct {
	Created int64       `json:"c"` // microseconds since 1970
	Image   ami.ImageID `json:"i"`
}

// PositionOf is the place of an image.
func PositionOf(i ami.Image) Position { return Position{i.CreationDate.UnixMicro(), i.ImageID} }

// Before says whether p is nearer to the beginning than q.
func (p Position) Before(q Position) bool {
	return p.Created < q.Created || p.Created == q.Created && p.Image < q.Image
}

// Fits says whether all of q.Where holds for an image that need not be in a catalog.
func (q ImageQuery) Fits(i ami.Image) bool {
	terms := imageTerms(i)
	return !slices.ContainsFunc(q.Where, func(of AnyOf) bool {
		return !slices.ContainsFunc(of, func(want Term) bool {
			return slices.ContainsFunc(terms, func(t [2]string) bool { return t[0] == want.Name && ami.Match(want.Pattern, t[1]) })
		})
	})
}

// FindImages reads a page of the images that a query asks for; end is where it ends,
// nil for the last one. Images that were added or deleted since the page before
// neither hide nor repeat others. Beside those that it can read it returns ErrDamaged.
func (tx *Tx) FindImages(q ImageQuery) (images []ami.Image, end *Position, err error) {
	return tx.find(q, usual())
}

func (tx *Tx) find(q ImageQuery, most limits) (images []ami.Image, end *Position, err error) {
	clauses := make([]clause, 0, len(q.Where)+1)
	who := Filter(termAudience, escaped(q.Viewers)...)
	if q.Disabled {
		who = append(who, Filter(termDisabled, escaped(q.Viewers)...)...)
	}
	for _, of := range append([]AnyOf{who}, q.Where...) {
		c, err := tx.resolve(of, most)
		if err != nil || c.none() {
			return nil, nil, err
		}
		clauses = append(clauses, c)
	}
	places, err := tx.places(q, clauses, most)
	if err != nil {
		return nil, nil, err
	}
	if q.Limit > 0 && len(places) > q.Limit {
		places = places[:q.Limit]
		end = &places[q.Limit-1]
	}
	images, err = tx.imagesAt(places)
	return images, end, err
}

// imagesAt reads the images at places, in their order.
func (tx *Tx) imagesAt(places []Position) ([]ami.Image, error) {
	ids := make([]string, len(places))
	for n, p := range places {
		ids[n] = string(p.Image)
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	return documents[ami.Image](tx, "images", "SELECT i.id, i.doc FROM json_each(?) j CROSS JOIN images i ON i.id = j.value ORDER BY j.key", string(list))
}
