package pvgrub

import (
	"cmp"
	"strings"
)

// compareVersions orders as the UAPI group's Version Format Specification says:
// digits by number, letters by the alphabet, ~ before anything, even the end.
func compareVersions(a, b string) int {
	for {
		a, b = strings.TrimLeftFunc(a, noVersion), strings.TrimLeftFunc(b, noVersion)
		if order := mark(&a, &b, '~'); order != 0 {
			return order
		}
		if a == "" || b == "" {
			return cmp.Compare(len(a), len(b))
		}
		for _, c := range []byte{'-', '^', '.'} {
			if order := mark(&a, &b, c); order != 0 {
				return order
			}
		}
		var order int
		if digit(a) || digit(b) {
			order = numbers(&a, &b)
		} else {
			order = letters(&a, &b)
		}
		if order != 0 {
			return order
		}
	}
}

func noVersion(r rune) bool {
	return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("~-^.", r))
}

func digit(s string) bool { return s != "" && s[0] >= '0' && s[0] <= '9' }

// mark takes c off both; the one that has it alone is the older.
func mark(a, b *string, c byte) int {
	inA, inB := strings.HasPrefix(*a, string(c)), strings.HasPrefix(*b, string(c))
	if inA && inB {
		*a, *b = (*a)[1:], (*b)[1:]
		return 0
	}
	return boolCompare(inB, inA)
}

// take cuts what all satisfies off the beginning.
func take(s *string, all string) string {
	rest := strings.TrimLeft(*s, all)
	out := (*s)[:len(*s)-len(rest)]
	*s = rest
	return out
}

func numbers(a, b *string) int {
	const digits = "0123456789"
	x, y := strings.TrimLeft(take(a, digits), "0"), strings.TrimLeft(take(b, digits), "0")
	return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y))
}

func letters(a, b *string) int {
	const abc = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	return cmp.Compare(take(a, abc), take(b, abc))
}
