package region

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// MaxPage is how many objects are on a page at most.
const MaxPage = 1000

// Page is a page of a list; NextToken asks for the one behind it, "" is the last.
// What is made or deleted between two pages neither hides nor repeats anything else.
type Page[T any] struct {
	Items     []T
	NextToken string
}

// after is where the page that was asked for begins.
func (in DescribeInput) after(r *Region, noun string) (at catalog.Position, err error) {
	switch {
	case in.MaxResults < 0 || in.MaxResults > MaxPage:
		return at, ami.Errorf(ami.CodeInvalidParameterValue, "The value %d of maxResults is not from 1 to %d.", in.MaxResults, MaxPage)
	case len(in.IDs) > 0 && (in.MaxResults > 0 || in.NextToken != ""):
		return at, ami.Errorf(ami.CodeInvalidParameterCombination, "Objects that are asked for by their ids come all at once, not by pages.").
			WithHint("Leave out the ids, or the limit.")
	case in.NextToken == "":
		return at, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(in.NextToken)
	mark := in.mark(r, noun)
	if err == nil && bytes.HasPrefix(b, mark) && json.Unmarshal(b[len(mark):], &at) == nil {
		return at, nil
	}
	return at, ami.Errorf(ami.CodeInvalidNextToken, "The page token %q is not one of this list.", in.NextToken).
		WithHint("Give the token of the page before, with the same filters as there; or begin without one.")
}

// token asks for the page behind a place.
func (in DescribeInput) token(r *Region, noun string, at catalog.Position) string {
	b, err := json.Marshal(at)
	if err != nil {
		return "" // of a number and a text: it cannot fail
	}
	return base64.RawURLEncoding.EncodeToString(append(in.mark(r, noun), b...))
}

// mark is what a token is good for: a noun, a caller, and all that is asked but how
// much of it at once.
func (in DescribeInput) mark(r *Region, noun string) []byte {
	in.MaxResults, in.NextToken = 0, ""
	b, err := json.Marshal(struct {
		Noun, Account string
		In            DescribeInput
	}{noun, r.account, in})
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(b)
	return sum[:8:8]
}

// cut takes the page that was asked for out of a whole list.
func cut[T any](r *Region, in DescribeInput, noun string, all []T, err error, id func(T) string, created func(T) time.Time) (Page[T], error) {
	if err != nil {
		return Page[T]{}, err
	}
	after, err := in.after(r, noun)
	if err != nil {
		return Page[T]{}, err
	}
	if in.MaxResults == 0 && in.NextToken == "" {
		return Page[T]{Items: all}, nil
	}
	at := func(o T) catalog.Position {
		return catalog.Position{Created: created(o).UnixMicro(), Image: ami.ImageID(id(o))}
	}
	if in.NextToken != "" {
		all = slices.DeleteFunc(all, func(o T) bool { return !after.Before(at(o)) })
	}
	slices.SortStableFunc(all, func(a, b T) int {
		switch {
		case at(a).Before(at(b)):
			return -1
		case at(b).Before(at(a)):
			return 1
		}
		return 0
	})
	if in.MaxResults == 0 || len(all) <= in.MaxResults {
		return Page[T]{Items: all}, nil
	}
	all = all[:in.MaxResults]
	return Page[T]{Items: all, NextToken: in.token(r, noun, at(all[len(all)-1]))}, nil
}
