package recipe

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// TestFaultsOfForm: what is no value of its field is told as the values are, and
// beside them.
func TestFaultsOfForm(t *testing.T) {
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"unknown field":           {base("size: 5GB", "pakages: [x]"), "pakages: there is no such field; did you mean packages? (line 7)\nsize: 5GB: a size such as 512MiB or 2GiB is needed (line 4)"},
		"unknown fields":          {base("Cmd_Line: x", "arch: y", "zzz: z"), "Cmd_Line: there is no such field; did you mean cmdline? (line 7)\narch: there is no such field; did you mean architecture? (line 8)\nzzz: there is no such field (line 9)"},
		"unknown field of a file": {base("files: [{path: /x, content: y, owner: root}, {path: /x, contents: y}]"), "files[0].owner: there is no such field (line 7)\nfiles[1].contents: there is no such field; did you mean content? (line 7)\nfiles[1].source: exactly one of source and content is needed"},
		"our own fields":          {base("bytes: 5", "dir: /etc"), "bytes: there is no such field (line 7)\ndir: there is no such field (line 8)"},
		"merged fields":           {base("<<: {user: x}"), "<<: there is no such field (line 7)"},
		"fields of no name":       {base("~: x", "1: y", "\"a\\nb\": z"), "~: there is no such field (line 7)\n1: there is no such field (line 8)\na b: there is no such field (line 9)"},
		"a field twice":           {append(base(), "name: Other\nname: [x]\n"...), "name: Other: it is there twice (lines 2 and 7)\nname: a list: it is there twice (lines 2 and 8)"},
		"text for a list":         {base("packages: busybox"), "packages: busybox: a list is needed (line 7)"},
		"text for a file":         {base("files: [hello, {path: x, content: y}]"), "files[0]: hello: a mapping of fields is needed (line 7)\nfiles[1].path: x: not a clean absolute path (line 7)"},
		"lists for text":          {base("name: [a]", "packages: [b1, [c1]]"), "name: a list: text is needed (line 2)\npackages[1]: a list: text is needed (line 7)"},
		"a mapping for text":      {base("files: [{path: /x, content: {a: b}}]"), "files[0].content: a mapping: text is needed (line 7)"},
		"an alias for text":       {base("name: &a x", "user: *a"), "name: an anchor: text is needed (line 2)\nuser: an alias: text is needed (line 7)"},
		"no image to stand on":    {[]byte("version: 1\nname: a\nfrom: [b]\nsize: 1GiB\n"), "from: a list: text is needed (line 3)\nsize: 1GiB: it goes with a recipe that has no from (line 4)"},
		"a number too large":      {base("version: 99999999999999999999"), "version: 99999999999999999999: a whole number is needed (line 1)"},
		"far too large":           {base("memory: 18446744073709551615"), "memory: 18446744073709551615: a whole number is needed (line 7)"},
		"text for a number":       {base("memory: much"), "memory: much: a whole number is needed (line 7)"},
		"a number in quotes":      {base("version: \"1\""), "version: \"1\": a whole number is needed (line 1)"},
		"a fraction":              {base("version: 1.5"), "version: 1.5: a whole number is needed (line 1)"},
		"a long value":            {base("memory: " + strings.Repeat("x ", 100)), "memory: " + strings.Repeat("x ", 20) + "…: a whole number is needed (line 7)"},
	} {
		if _, err := Parse(c.data); err == nil || err.Error() != c.want {
			t.Errorf("%s: got error\n%v\nwant\n%s", name, err, c.want)
		}
	}
}

func TestFaultsBeyondCounting(t *testing.T) {
	_, err := Parse(base("packages: [" + strings.Repeat("X,", maxTold+5) + "]"))
	if got := errorsIn(err); got != maxTold+1 || !strings.HasSuffix(err.Error(), "\nand 5 faults more") {
		t.Errorf("got %d faults, want %d and that there are 5 more: %v", got, maxTold, err)
	}
}

// TestTextIsAsWritten: no digit of what YAML takes for a number is lost.
func TestTextIsAsWritten(t *testing.T) {
	got, err := Parse(base("description: 1.10", "user:", "packages: [7zip, 0ad]", "files: [{path: /x, content: 0x1F, mode: 0644}, {path: /y, content: true, mode: null}]"))
	if err != nil {
		t.Fatal(err)
	}
	want := []File{{Path: "/x", Content: "0x1F", Mode: "0644"}, {Path: "/y", Content: "true"}}
	if got.Description != "1.10" || got.User != "" || !reflect.DeepEqual(got.Files, want) {
		t.Errorf("got %q, %q, %+v; want 1.10, nothing and %+v", got.Description, got.User, got.Files, want)
	}
}

// TestNesting: what would take the parser gigabytes is refused before, and
// brackets that are text are none.
func TestNesting(t *testing.T) {
	for _, unit := range []string{"[", "{", "{a: ", "[{", "- ", "? ", "- ? ", "[\n", "[ \"]\", ", "[}", "- [ ] - "} {
		_, err := Parse([]byte(strings.Repeat(unit, maxSize/len(unit))))
		if err == nil || !strings.Contains(err.Error(), "nested too deep") {
			t.Errorf("%q: got an error of %d bytes, want one that says that it is nested too deep", unit, len(fmt.Sprint(err)))
		}
	}
	open := strings.Repeat("[", 2*maxNesting)
	for _, content := range []string{"content: \"" + open + "\"", "content: '" + open + "'", "content: x" + open, "content: |\n      " + open + "\n      - - -", "content: y # " + open} {
		if _, err := Parse(base("files:\n  - path: /x\n    " + content)); err != nil {
			t.Errorf("%s: %v", content, err)
		}
	}
}

// TestFaultsAreFitToBeShown: nothing of a recipe moves a terminal, or makes a
// fault long or many lines of one.
func TestFaultsAreFitToBeShown(t *testing.T) {
	for name, data := range map[string][]byte{
		"a value":             base("user: \"a\\e[31m\\nb\""),
		"a value as it is":    base("user: a\x1b[31mb"),
		"a value in a block":  base("user: |\n  a\n  b"),
		"a form":              base("memory: \"a\\e[31m\\nb\""),
		"a form as it is":     base("memory: a\x1b[31mb"),
		"a field":             base("\"a\\e[31m\": b"),
		"a line":              []byte("a: \x1b[31m\n  b: [\n"),
		"a long line":         []byte("a: [" + strings.Repeat("x, ", maxSize/4)),
		"a line of no text":   []byte("a: \xff\x9b\n  b: [\n"),
		"many lines, no text": []byte(strings.Repeat("x\n", 1000) + "a: [\n"),
	} {
		_, err := Parse(data)
		if err == nil {
			t.Errorf("%s: taken, want it refused", name)
			continue
		}
		lines := strings.Split(err.Error(), "\n")
		if len(lines) > maxLines+1 || strings.Count(err.Error(), "\n") > 0 && data[0] == 'v' {
			t.Errorf("%s: got %d lines: %q", name, len(lines), err)
		}
		for _, line := range lines {
			if len(line) > 4*maxLine || plain(line) != line {
				t.Errorf("%s: got %q", name, line)
			}
		}
	}
}
