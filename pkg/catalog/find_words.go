package catalog

import (
	"math"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// span is a time from and to, in microseconds since 1970, both of it.
type span struct{ from, to int64 }

func (s span) and(o span) span { return span{max(s.from, o.from), min(s.to, o.to)} }

// datesOf is the span that a pattern of creation dates such as 2026-03-* is, or nil
// for another term.
func datesOf(t Term) *span {
	prefix, whole, ok := ami.ParsePattern(t.Pattern)
	if t.Name != "creation-date" || !ok || whole || prefix == "" || ami.EscapePattern(prefix)+"*" != t.Pattern {
		return nil
	}
	// Dates as filters have them are in the order of time.
	milli := func(n int) int64 { return time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli() + int64(n) }
	upTo := int(time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli() - milli(0))
	first := func(from string) int {
		return sort.Search(upTo, func(n int) bool { return ami.Date(time.UnixMilli(milli(n))) >= from })
	}
	from, to := first(prefix), first(prefix+"\xff")
	if from == to {
		return &span{math.MaxInt64, math.MinInt64}
	}
	return &span{milli(from) * 1000, milli(to)*1000 - 1}
}

func list(terms []int64) string {
	out := make([]string, len(terms))
	for n, t := range terms {
		out[n] = strconv.FormatInt(t, 10)
	}
	return strings.Join(out, ",")
}

// binder numbers the values of a query, which may stand in it several times.
type binder struct{ args []any }

func (b *binder) bind(v any) string {
	b.args = append(b.args, v)
	return "?" + strconv.Itoa(len(b.args))
}

// glob is EC2's pattern in SQLite's words.
func glob(pattern string) string {
	var b strings.Builder
	for rest := []rune(pattern); len(rest) > 0; rest = rest[1:] {
		switch c := rest[0]; c {
		case '*', '?':
			b.WriteRune(c)
			continue
		case '\\':
			rest = rest[1:]
		}
		if strings.ContainsRune("*?[", rest[0]) {
			b.WriteString("[" + string(rest[0]) + "]")
		} else {
			b.WriteRune(rest[0])
		}
	}
	return b.String()
}

// escaped are texts as patterns that only they fit.
func escaped(texts []string) (out []string) {
	for _, t := range texts {
		out = append(out, ami.EscapePattern(t))
	}
	return out
}
