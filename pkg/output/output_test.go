package output

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

type volume struct {
	VolumeID string `json:"VolumeId"`
	Name     string `json:"Name"`
	Bytes    int64  `json:"SizeInBytes"`
	OK       bool   `json:"Ok"`
}

var (
	volumes = []volume{
		{"vol-1", "root", 8 << 30, true},
		{"vol-2", "", 1 << 62, false},
	}
	doc     = map[string]any{"Volumes": volumes}
	columns = []Column[volume]{
		{"ID", func(v volume) string { return v.VolumeID }},
		{"NAME", func(v volume) string { return v.Name }},
		{"SIZE", func(v volume) string { return Bytes(v.Bytes) }},
	}
)

func volumeID(v volume) string { return v.VolumeID }

func TestList(t *testing.T) {
	const allJSON = `{
  "Volumes": [
    {
      "VolumeId": "vol-1",
      "Name": "root",
      "SizeInBytes": 8589934592,
      "Ok": true
    },
    {
      "VolumeId": "vol-2",
      "Name": "",
      "SizeInBytes": 4611686018427387904,
      "Ok": false
    }
  ]
}
`
	tests := []struct {
		name   string
		format Format
		query  string
		want   string
	}{
		{"a table in a pipe", Table, "", "vol-1\troot\t8.0 GiB\nvol-2\t\t4194304.0 TiB\n"},
		{"ids", ID, "", "vol-1\nvol-2\n"},
		{"JSON", JSON, "", allJSON},
		{"a query", JSON, "Volumes[].VolumeId", "[\n  \"vol-1\",\n  \"vol-2\"\n]\n"},
		{"a query of a table is JSON", Table, "Volumes[0].Name", "\"root\"\n"},
		{"a query of numbers", JSON, "Volumes[0].SizeInBytes", "8589934592\n"},
		{"a query that finds nothing", JSON, "Nothing", "null\n"},
		{"a query as YAML", YAML, "Volumes[].{id: VolumeId}", "- id: vol-1\n- id: vol-2\n"},
		{"a query as text", ID, "Volumes[].VolumeId", "vol-1\nvol-2\n"},
		{"lists in lists as text", ID, "Volumes[].[VolumeId, Ok]", "vol-1\ntrue\nvol-2\nfalse\n"},
		{"a size as text", ID, "Volumes[0].SizeInBytes", "8589934592\n"},
		{"an object as text", ID, "Volumes[0].{n: Name, b: SizeInBytes}", `{"b":8589934592,"n":"root"}` + "\n"},
		{"nothing as text", ID, "Nothing", ""},
		{
			"YAML", YAML, "",
			"Volumes:\n- VolumeId: vol-1\n  Name: root\n  SizeInBytes: 8589934592\n  Ok: true\n" +
				"- VolumeId: vol-2\n  Name: \"\"\n  SizeInBytes: 4611686018427387904\n  Ok: false\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := List(Printer{Out: &b, Format: tt.format, Query: tt.query}, doc, volumes, volumeID, columns); err != nil {
				t.Fatalf("got %v, want no error", err)
			}
			if d := cmp.Diff(tt.want, b.String()); d != "" {
				t.Errorf("output (-want +got):\n%s", d)
			}
		})
	}
}

func TestListOfNothing(t *testing.T) {
	empty := map[string]any{"Volumes": []volume{}}
	for format, want := range map[Format]string{
		Table: "", ID: "", JSON: "{\n  \"Volumes\": []\n}\n", YAML: "Volumes: []\n",
	} {
		var b bytes.Buffer
		if err := List(Printer{Out: &b, Format: format}, empty, nil, volumeID, columns); err != nil || b.String() != want {
			t.Errorf("%s: got %q, %v, want %q", format, &b, err, want)
		}
	}
}

// What others wrote does not move the cursor, and does not split a line.
func TestListCleansCells(t *testing.T) {
	evil := []volume{{VolumeID: "vol-1", Name: "a\x1b[2Jb\tc\nd\re\x7ff\u009bg\x00h é€"}}
	var b bytes.Buffer
	if err := List(Printer{Out: &b, Format: Table}, nil, evil, volumeID, columns); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "vol-1\ta [2Jb c d e f g h é€\t0 B\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestListFails(t *testing.T) {
	for _, format := range Formats() {
		if err := List(Printer{Out: brokenPipe{}, Format: Format(format)}, doc, volumes, volumeID, columns); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%s into a broken pipe: got %v, want %v", format, err, io.ErrClosedPipe)
		}
	}
	if err := List(Printer{Out: brokenPipe{}, Format: ID, Query: "Volumes[].VolumeId"}, doc, volumes, volumeID, columns); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a query into a broken pipe: got %v, want %v", err, io.ErrClosedPipe)
	}
	var b bytes.Buffer
	err := List(Printer{Out: &b, Format: JSON, Query: "Volumes[?"}, doc, volumes, volumeID, columns)
	if err == nil || !strings.Contains(err.Error(), `"Volumes[?"`) {
		t.Errorf("a query that cannot be read: got %v, want it named", err)
	}
	if err := List(Printer{Out: &b, Format: JSON}, make(chan int), volumes, volumeID, columns); err == nil {
		t.Error("what has no JSON: got no error, want one")
	}
	if b.Len() > 0 {
		t.Errorf("got %q before the error, want nothing", &b)
	}
}

func TestCheckQuery(t *testing.T) {
	for query, want := range map[string]string{
		"": "", "Volumes[].VolumeId": "", "Volumes[": "at its character 9", "a b": "at its character 3", "'": "at its character",
		"Volumes[?Name==`root`]": "single quotes",
	} {
		err := CheckQuery(query)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", query, err, want)
		}
	}
}

// terminal opens a pseudo-terminal. screen closes it and returns what it shows.
func terminal(t *testing.T) (tty *os.File, screen func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if tty, err = os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	shown := make(chan string)
	go func() { // beside the writer, who would wait when the terminal is full
		b, _ := io.ReadAll(master) // it ends with EIO when the terminal is closed
		shown <- strings.ReplaceAll(string(b), "\r\n", "\n")
	}()
	return tty, func() string {
		tty.Close()
		return <-shown
	}
}

func TestListOnATerminal(t *testing.T) {
	tests := []struct {
		name   string
		format Format
		want   string
	}{
		{"a table", Table, "ID     NAME  SIZE\nvol-1  root  8.0 GiB\nvol-2  -     4194304.0 TiB\n"},
		{"ids", ID, "vol-1\nvol-2\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tty, screen := terminal(t)
			if err := List(Printer{Out: tty, Format: tt.format}, doc, volumes, volumeID, columns); err != nil {
				t.Fatalf("got %v, want no error", err)
			}
			if d := cmp.Diff(tt.want, screen()); d != "" {
				t.Errorf("screen (-want +got):\n%s", d)
			}
		})
	}
}

func TestIsTerminal(t *testing.T) {
	tty, _ := terminal(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	tests := []struct {
		name string
		w    any
		want bool
	}{
		{"a terminal", tty, true},
		{"a file", file, false},
		{"a buffer", &bytes.Buffer{}, false},
		{"nil", nil, false},
	}
	for _, tt := range tests {
		if got := IsTerminal(tt.w); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestBytes(t *testing.T) {
	tests := []struct {
		n    int64
		want string
	}{
		{0, "0 B"},
		{1023, "1023 B"},
		{1 << 10, "1.0 KiB"},
		{1536, "1.5 KiB"},
		{1 << 20, "1.0 MiB"},
		{5 << 30, "5.0 GiB"},
		{1<<40 - 1, "1024.0 GiB"},
		{1 << 40, "1.0 TiB"},
		{1 << 62, "4194304.0 TiB"},
	}
	for _, tt := range tests {
		if got := Bytes(tt.n); got != tt.want {
			t.Errorf("%d: got %q, want %q", tt.n, got, tt.want)
		}
	}
}

func TestFormats(t *testing.T) {
	if d := cmp.Diff([]string{"table", "json", "yaml", "id"}, Formats()); d != "" {
		t.Errorf("formats (-want +got):\n%s", d)
	}
}

// FuzzYAML: any text comes back from the YAML as it was, and nothing in it is a
// control character for a terminal.
func FuzzYAML(f *testing.F) {
	for _, s := range []string{
		"", "plain text", "000000000000", "1e3", "12:30:45", "yes", "Null", "~", ".inf", "? a", "-\ta", "a:\tb", "\ttab", "a\r\nb",
		"\n", "\x1b[2J", "\u009b2J", "---", "#x", "a #x", "a: b", "<<", "a\u2028b", "/dev/sda1", "2026-01-02T03:04:05Z", "a ", "\"", "\xff",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToValidUTF8(s, "�") // as encoding/json does
		var b bytes.Buffer
		in := map[string]any{"A": s, "B": []any{s, map[string]any{"C": s}}}
		if err := List[volume](Printer{Out: &b, Format: YAML}, in, nil, nil, nil); err != nil {
			t.Fatalf("got %v, want no error", err)
		}
		if text := strings.ReplaceAll(b.String(), "\n", ""); clean(text) != text {
			t.Errorf("control characters in %q", &b)
		}
		var got map[string]any
		if err := yaml.Unmarshal(b.Bytes(), &got); err != nil {
			t.Fatalf("%v in:\n%s", err, &b)
		}
		if d := cmp.Diff(in, got); d != "" {
			t.Errorf("after a round trip (-want +got):\n%s\nin:\n%s", d, &b)
		}
		// The JSON form, of course, as well.
		b.Reset()
		if err := List[volume](Printer{Out: &b, Format: JSON}, in, nil, nil, nil); err != nil {
			t.Fatalf("got %v, want no error", err)
		}
		got = nil
		if err := json.Unmarshal(b.Bytes(), &got); err != nil {
			t.Fatalf("%v in:\n%s", err, &b)
		}
		if d := cmp.Diff(in, got); d != "" {
			t.Errorf("after a round trip by JSON (-want +got):\n%s", d)
		}
	})
}
