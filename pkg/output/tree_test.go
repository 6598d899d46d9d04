package output

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func testTree() []Node {
	return []Node{
		{ID: "a", Label: "debian-12", Note: "ami-a", Children: []Node{
			{ID: "b", Label: "web-1", Note: "ami-b", Children: []Node{{ID: "c", Label: "web-2", Note: "ami-c"}}},
			{ID: "d", Label: "db <&\"'>\x1b[31m", Note: "ami-d"},
		}},
		{ID: "e", Label: "tiny"},
	}
}

func TestTree(t *testing.T) {
	var b bytes.Buffer
	if err := Tree(&b, testTree()); err != nil {
		t.Fatal(err)
	}
	want := "debian-12  ami-a\n" +
		"├─ web-1  ami-b\n" +
		"│  └─ web-2  ami-c\n" +
		"└─ db <&\"'> [31m  ami-d\n" +
		"tiny\n"
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestDOT(t *testing.T) {
	var b bytes.Buffer
	if err := DOT(&b, "images", testTree()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`digraph "images" {`, `"a" -> "b";`, `"b" -> "c";`, `"a" -> "d";`, `"e" [label="tiny"];`, `db <&\"'>`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s is not in\n%s", want, b.String())
		}
	}
}

func TestSVGIsXML(t *testing.T) {
	var b bytes.Buffer
	if err := SVG(&b, testTree()); err != nil {
		t.Fatal(err)
	}
	texts := 0
	for d := xml.NewDecoder(&b); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := tok.(xml.StartElement); ok && s.Name.Local == "text" {
			texts++
		}
	}
	if texts != 5 {
		t.Errorf("the picture has %d lines, want 5", texts)
	}
}
