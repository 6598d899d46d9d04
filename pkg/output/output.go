// Package output writes results: tables for people, tab-separated lines in a
// pipe, JSON and YAML for programs, and progress on standard error.
package output

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/goccy/go-yaml"
	"github.com/jmespath/go-jmespath"
	"golang.org/x/term"
)

// Format is how results are written.
type Format string

// The formats.
const (
	Table Format = "table"
	JSON  Format = "json"
	YAML  Format = "yaml"
	ID    Format = "id"
)

// Formats lists the formats.
func Formats() []string { return []string{string(Table), string(JSON), string(YAML), string(ID)} }

// Column is one column of a table.
type Column[T any] struct {
	Title string
	Text  func(T) string
}

// Printer writes results in one format.
type Printer struct {
	Out    io.Writer
	Format Format
	Query  string // JMESPath over the JSON form; "" is all
}

// List writes items: doc is what programs read (EC2's response), columns what
// people see, id what scripts take. With Query a table is written as JSON.
func List[T any](p Printer, doc any, items []T, id func(T) string, columns []Column[T]) error {
	if p.Query != "" || p.Format == JSON || p.Format == YAML {
		return p.document(doc)
	}
	if p.Format == ID {
		for _, item := range items {
			if _, err := fmt.Fprintln(p.Out, id(item)); err != nil {
				return err
			}
		}
		return nil
	}
	if !IsTerminal(p.Out) {
		for _, item := range items {
			cells := make([]string, len(columns))
			for i, c := range columns {
				cells[i] = clean(c.Text(item))
			}
			if _, err := fmt.Fprintln(p.Out, strings.Join(cells, "\t")); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(p.Out, 0, 0, 2, ' ', 0)
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.Title
	}
	fmt.Fprintln(w, strings.Join(titles, "\t"))
	for _, item := range items {
		cells := make([]string, len(columns))
		for i, c := range columns {
			if cells[i] = clean(c.Text(item)); cells[i] == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	return w.Flush()
}

// clean keeps what others wrote (names, tags) from moving the terminal's cursor
// or splitting a line.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

// CheckQuery says what is wrong with a query, before anything is done whose
// answer it would pick from.
func CheckQuery(query string) error {
	if query == "" {
		return nil
	}
	_, err := jmespath.Compile(query)
	var at jmespath.SyntaxError
	if errors.As(err, &at) {
		return fmt.Errorf("the query cannot be read at its character %d:\n%s", at.Offset+1, at.HighlightLocation())
	}
	if err != nil {
		return fmt.Errorf("the query cannot be read: %w (a text stands between single quotes: 'web-1')", err)
	}
	return nil
}

// document writes doc, or what Query selects of it.
func (p Printer) document(doc any) error {
	text, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return err
	}
	if p.Query != "" {
		if v, err = jmespath.Search(p.Query, v); err != nil {
			return fmt.Errorf("the query %q: %w", p.Query, err)
		}
		if text, err = json.Marshal(v); err != nil {
			return err
		}
	}
	if p.Format == YAML {
		return writeYAML(p.Out, text)
	}
	if p.Format == ID { // as text: a value a line
		return lines(p.Out, v)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, text, "", "  "); err != nil {
		return err
	}
	_, err = fmt.Fprintln(p.Out, b.String())
	return err
}

// writeYAML writes JSON as YAML, its fields in the same order.
func writeYAML(w io.Writer, text []byte) error {
	var v any
	if err := yaml.UnmarshalWithOptions(text, &v, yaml.UseOrderedMap()); err != nil {
		return err
	}
	// Left to itself the library takes some texts ("? a", a tab in front) for
	// more than text, and passes a terminal's control characters on.
	y, err := yaml.MarshalWithOptions(v, yaml.CustomMarshaler(func(s string) ([]byte, error) {
		if isPlain(s) {
			return yaml.Marshal(s)
		}
		return json.Marshal(s)
	}))
	if err != nil {
		return err
	}
	_, err = w.Write(y)
	return err
}

// isPlain says whether YAML cannot take s for anything but text or a keyword.
func isPlain(s string) bool {
	for i, r := range s {
		switch {
		case unicode.IsLetter(r) || r == '/' || r == '_':
		case i > 0 && (unicode.IsDigit(r) || strings.ContainsRune(" .-+@", r)):
		default:
			return false
		}
	}
	return true
}

func lines(w io.Writer, v any) error {
	if list, ok := v.([]any); ok {
		for _, item := range list {
			if err := lines(w, item); err != nil {
				return err
			}
		}
		return nil
	}
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		_, err := fmt.Fprintln(w, v)
		return err
	}
	// As in the JSON form: Go's own has exponents in sizes.
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, string(text))
	return err
}

// IsTerminal says whether w is a terminal.
func IsTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Bytes is a size for people.
func Bytes(n int64) string {
	switch {
	case n >= 1<<40:
		return fmt.Sprintf("%.1f TiB", float64(n)/(1<<40))
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}
