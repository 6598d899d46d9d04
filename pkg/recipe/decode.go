package recipe

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// faults gathers what is wrong with a recipe.
type faults struct {
	errs  []error
	lines map[string]int  // where a field stands, from 1
	told  map[string]bool // fields that could not be read: their values are not judged
}

// maxTold bounds how many faults are told: a file with more is no recipe.
const maxTold = 200

func (f *faults) err() error {
	if more := len(f.errs) - maxTold; more > 0 {
		f.errs = append(f.errs[:maxTold:maxTold], fmt.Errorf("and %d faults more", more))
	}
	return errors.Join(f.errs...)
}

// value adds a fault of a field's value.
func (f *faults) value(field string, value any, format string, args ...any) {
	outer, _, _ := strings.Cut(field, ".")
	if f.told[field] || f.told[outer] {
		return
	}
	at := field + ": "
	if text := fmt.Sprint(value); text != "" { // what is empty, or is not there, is not shown
		at += plain(cut(text, maxLine)) + ": "
	}
	err := errors.New(at + fmt.Sprintf(format, args...))
	if line := f.lines[field]; line > 0 {
		err = fmt.Errorf("%w (line %d)", err, line)
	}
	f.errs = append(f.errs, err)
}

// unread adds a fault of a field that cannot be read.
func (f *faults) unread(field string, n ast.Node, needed string) {
	f.value(field, shown(n), "%s is needed", needed)
	f.told[field] = true
}

// decode reads YAML into r. The library's own strict decoding ends at the first
// fault, so it only parses, and the tree that it makes is walked here.
func decode(data []byte, r *Recipe) (*faults, error) {
	tokens := lexer.Tokenize(string(data))
	if err := checkNesting(tokens); err != nil {
		return nil, err
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey()) // told below
	if err != nil {
		return nil, errors.New(excerpt(yaml.FormatError(err, false, true)))
	}
	f := &faults{lines: map[string]int{}, told: map[string]bool{}}
	documents := 0
	for _, d := range file.Docs {
		if d.Body == nil { // nothing at all has its faults told by who judges the values
			continue
		}
		if documents++; documents > 1 {
			return nil, errors.New("the recipe's file holds more than one document")
		}
		if _, ok := d.Body.(ast.MapNode); !ok {
			return nil, fmt.Errorf("the recipe is %s, not fields with their values", shown(d.Body))
		}
		f.fields("", d.Body, reflect.ValueOf(r).Elem())
	}
	return f, nil
}

// maxNesting bounds how deep values lie in each other; a recipe's lie three deep.
const maxNesting = 64

// checkNesting refuses what the parser, which takes memory by the square of the
// depth, must not get. Depth by indentation costs the file's own bytes by the
// square, so its size bounds it; brackets, and dashes in one line, do not.
func checkNesting(tokens token.Tokens) error {
	lists, mappings, entries, line := 0, 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			entries, line = 0, t.Position.Line
		}
		switch t.Type {
		case token.SequenceStartType:
			lists++
		case token.SequenceEndType:
			lists = max(lists-1, 0)
		case token.MappingStartType:
			mappings++
		case token.MappingEndType:
			mappings = max(mappings-1, 0)
		case token.SequenceEntryType, token.MappingKeyType:
			entries++
		}
		if lists+mappings+entries > maxNesting {
			return fmt.Errorf("the recipe is nested too deep: more than %d values lie in each other (line %d)", maxNesting, line)
		}
	}
	return nil
}

const (
	maxLines = 12  // of an excerpt of a file that is no YAML
	maxLine  = 200 // of such a line and of a value, in characters
)

// excerpt makes the library's excerpt fit to be shown, line by line.
func excerpt(text string) string {
	lines := strings.Split(text, "\n")
	if len(lines) > maxLines {
		lines = append(lines[:maxLines], "…")
	}
	for i, line := range lines {
		lines[i] = plain(cut(line, maxLine))
	}
	return strings.Join(lines, "\n")
}

// plain is text that does nothing to a terminal: with anything in it that cannot
// be shown it is quoted.
func plain(text string) string {
	if utf8.ValidString(text) && !strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return text
	}
	return strconv.Quote(text)
}

// read reads the value of a field, as far as it is of the field's kind.
func (f *faults) read(field string, n ast.Node, into reflect.Value) {
	if _, ok := n.(*ast.NullNode); ok { // as if it were not there
		return
	}
	switch into.Kind() {
	case reflect.String:
		if text, ok := textOf(n); ok {
			into.SetString(text)
			return
		}
		f.unread(field, n, "text")
	case reflect.Int, reflect.Int64:
		if number, ok := numberOf(n); ok {
			into.SetInt(number)
			return
		}
		f.unread(field, n, "a whole number")
	case reflect.Bool:
		if b, ok := n.(*ast.BoolNode); ok {
			into.SetBool(b.Value)
			return
		}
		f.unread(field, n, "true or false")
	case reflect.Slice:
		list, ok := n.(*ast.SequenceNode)
		if !ok {
			f.unread(field, n, "a list")
			return
		}
		into.Set(reflect.MakeSlice(into.Type(), len(list.Values), len(list.Values)))
		for i, n := range list.Values {
			at := fmt.Sprintf("%s[%d]", field, i)
			f.lines[at] = n.GetToken().Position.Line
			f.read(at, n, into.Index(i))
		}
	case reflect.Struct:
		if _, ok := n.(ast.MapNode); !ok {
			f.unread(field, n, "a mapping of fields")
			return
		}
		f.fields(field+".", n, into)
	}
}

// fields reads a mapping into a struct, whose yaml tags name the fields.
func (f *faults) fields(at string, n ast.Node, into reflect.Value) {
	known := map[string]reflect.Value{}
	var names []string
	for i := range into.NumField() {
		if name := into.Type().Field(i).Tag.Get("yaml"); name != "-" {
			known[name], names = into.Field(i), append(names, name)
		}
	}
	seen := map[string]int{}
	for it := n.(ast.MapNode).MapRange(); it.Next(); {
		key, ok := textOf(it.Key())
		if !ok {
			key = shown(it.Key())
		}
		line := it.Key().GetToken().Position.Line
		if first, ok := seen[key]; ok {
			f.errs = append(f.errs, fmt.Errorf("%s%s: %s: it is there twice (lines %d and %d)", at, short(key), shown(it.Value()), first, line))
			continue
		}
		seen[key] = line
		if field, ok := known[key]; ok {
			f.lines[at+key] = line
			f.read(at+key, it.Value(), field)
			continue
		}
		fault := "there is no such field"
		if name := nearest(key, names); name != "" {
			fault += "; did you mean " + name + "?"
		}
		f.errs = append(f.errs, fmt.Errorf("%s%s: %s (line %d)", at, short(key), fault, line))
	}
}

// textOf returns a scalar as it is written, whatever else it could be: a mode
// of 0644 keeps its digits.
func textOf(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

func numberOf(n ast.Node) (int64, bool) {
	i, ok := n.(*ast.IntegerNode)
	if !ok {
		return 0, false
	}
	switch v := i.Value.(type) {
	case int64:
		return v, true
	case uint64:
		return int64(v), v < 1<<63
	}
	return 0, false
}

// shown is a value in one short line.
func shown(n ast.Node) string {
	text, ok := textOf(n)
	quoted := n.GetToken().Type == token.DoubleQuoteType || n.GetToken().Type == token.SingleQuoteType
	switch n.(type) {
	case *ast.StringNode:
		if quoted { // which makes text of a number
			if text = short(text); !strings.HasPrefix(text, `"`) {
				text = strconv.Quote(text)
			}
			return text
		}
	case *ast.SequenceNode:
		return "a list"
	case ast.MapNode:
		return "a mapping"
	case *ast.AliasNode:
		return "an alias"
	case *ast.AnchorNode:
		return "an anchor"
	}
	if !ok {
		text = n.GetToken().Value
	}
	return short(text)
}

// maxShown bounds what a fault shows of a value, in characters.
const maxShown = 40

func short(text string) string {
	return plain(cut(strings.Join(strings.Fields(text), " "), maxShown))
}

// cut is text of at most so many characters.
func cut(text string, most int) string {
	at := 0
	for i := range text {
		if at++; at > most {
			return text[:i] + "…"
		}
	}
	return text
}

// nearest returns the name that key was probably meant to be, or "".
func nearest(key string, names []string) string {
	bare := strings.NewReplacer("_", "", "-", "", " ", "")
	fold := func(s string) string { return bare.Replace(strings.ToLower(s)) }
	key = fold(key)
	best, least := "", 3 // more than two letters off is another word
	for _, name := range names {
		d := distance(key, fold(name))
		if len(key) >= 3 && strings.HasPrefix(fold(name), key) { // desc, arch
			d = min(d, 1)
		}
		if d < least && 2*d < len(name) {
			best, least = name, d
		}
	}
	return best
}

// distance is how many letters have to be put in, left out or changed to make b
// of a.
func distance(a, b string) int {
	if len(a) > 2*len(b)+2 { // far, whatever it is
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := corner
			if a[i] != b[j] {
				change++
			}
			corner = row[j+1]
			row[j+1] = min(change, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
