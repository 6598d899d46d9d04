package pvgrub

import (
	"strings"
	"unicode"
)

// shown is a guest's text as a person may see it: nothing in it moves a cursor or
// turns the writing round.
func shown(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, strings.ToValidUTF8(s, string(unicode.ReplacementChar)))
}

// shownError is an error with a guest's words in it.
type shownError struct{ error }

func (e shownError) Error() string { return shown(e.error.Error()) }
func (e shownError) Unwrap() error { return e.error }
