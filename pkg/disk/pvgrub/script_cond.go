package pvgrub

import (
	"context"
	"fmt"
	"slices"
	"strconv"
)

// tester works out what stands between [ and ].
type tester struct {
	s     *script
	args  []string
	depth int
}

func (s *script) test(ctx context.Context, name string, args []string) (bool, error) {
	if name == "[" {
		if len(args) == 0 || args[len(args)-1] != "]" {
			return false, nil
		}
		args = args[:len(args)-1]
	}
	t := &tester{s: s, args: args}
	return t.or(ctx)
}

func (t *tester) peek(words ...string) bool {
	return len(t.args) > 0 && slices.Contains(words, t.args[0])
}

func (t *tester) take() (word string) {
	if len(t.args) > 0 {
		word, t.args = t.args[0], t.args[1:]
	}
	return word
}

func (t *tester) or(ctx context.Context) (bool, error) {
	out, err := t.and(ctx)
	for err == nil && t.peek("-o") {
		t.take()
		var next bool
		next, err = t.and(ctx)
		out = out || next
	}
	return out, err
}

func (t *tester) and(ctx context.Context) (bool, error) {
	out, err := t.one(ctx)
	for err == nil && len(t.args) > 0 && !t.peek("-o", ")") {
		if t.peek("-a") {
			t.take()
		}
		var next bool
		next, err = t.one(ctx)
		out = out && next
	}
	return out, err
}

func (t *tester) one(ctx context.Context) (bool, error) {
	const maxDepth = 64
	if t.depth++; t.depth > maxDepth {
		return false, fmt.Errorf("%w: more than %d tests in each other", ErrTooLarge, maxDepth)
	}
	defer func() { t.depth-- }()
	first := t.take()
	if len(t.args) >= 2 && slices.Contains([]string{"=", "==", "!=", "<", ">", "<=", ">=", "-eq", "-ne", "-lt", "-le", "-gt", "-ge"}, t.args[0]) {
		operator := t.take()
		return compare(first, operator, t.take()), nil
	}
	switch {
	case first == "!":
		ok, err := t.one(ctx)
		return !ok, err
	case first == "(":
		ok, err := t.or(ctx)
		if t.peek(")") {
			t.take()
		}
		return ok, err
	case len(t.args) == 0:
		return first != "", nil
	}
	switch first {
	case "-n":
		return t.take() != "", nil
	case "-z":
		return t.take() == "", nil
	case "-e", "-f", "-d", "-s":
		at, err := t.s.locate(t.take())
		if err != nil {
			return false, nil // no such device: nothing is there
		}
		return exists(ctx, at, first)
	}
	return first != "", nil
}

func compare(a, operator, b string) bool {
	switch operator {
	case "=", "==":
		return a == b
	case "!=":
		return a != b
	case "<":
		return a < b
	case "<=":
		return a <= b
	case ">":
		return a > b
	case ">=":
		return a >= b
	}
	x, errX := strconv.ParseInt(a, 0, 64)
	y, errY := strconv.ParseInt(b, 0, 64)
	if errX != nil || errY != nil {
		return false
	}
	switch operator {
	case "-eq":
		return x == y
	case "-ne":
		return x != y
	case "-lt":
		return x < y
	case "-le":
		return x <= y
	case "-gt":
		return x > y
	}
	return x >= y
}
