package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestRow(t *testing.T) {
	tests := []struct {
		row              row
		used             float64
		ratio, bar, kept string
	}{
		{row{Kami: 3, Hand: 2, Unit: inSeconds, Of: ofHand, Most: 1.5}, 1, "1.50", "1.50 x", "yes"},
		{row{Kami: 6.3, Hand: 6, Unit: inSeconds, Of: ofExtra, Most: 0.15}, 2, "1.05 (+0.300 s)", "+0.150 s", "no"},
		{row{Kami: 128 << 20, Unit: inBytes, Of: ofKami, Most: 256 << 20}, 0.5, "-", "256 MiB", "yes"},
		{row{Kami: 20, Hand: 10, Unit: inSeconds}, 0, "2.00", "-", "-"},
	}
	for _, tt := range tests {
		if got := tt.row.used(); got < tt.used-1e-9 || got > tt.used+1e-9 {
			t.Errorf("%+v: used %v, want %v", tt.row, got, tt.used)
		}
		if got := [3]string{tt.row.ratio(), tt.row.bar(), tt.row.met()}; got != [3]string{tt.ratio, tt.bar, tt.kept} {
			t.Errorf("%+v: ratio, bar, kept %q, want %q", tt.row, got, []string{tt.ratio, tt.bar, tt.kept})
		}
	}
}

func TestUnit(t *testing.T) {
	tests := []struct {
		unit unit
		v    float64
		want string
	}{
		{inSeconds, 0.0203, "0.020 s"},
		{inSeconds, 61.26, "61.3 s"},
		{inBytes, 300 << 10, "300 KiB"},
		{inBytes, 2.5 * (1 << 20), "2.5 MiB"},
		{inBytes, 3 << 30, "3072 MiB"},
		{plain, 0.945, "0.94"},
	}
	for _, tt := range tests {
		if got := tt.unit.text(tt.v); got != tt.want {
			t.Errorf("%q of %v: %q, want %q", tt.unit, tt.v, got, tt.want)
		}
	}
}

func TestMedian(t *testing.T) {
	d := []time.Duration{5, 1, 3}
	if got := median(d); got != 3 || !slices.Equal(d, []time.Duration{5, 1, 3}) {
		t.Errorf("median %d, and %d left", got, d)
	}
}

// TestPage measures a part twice: the second time takes the place of the first,
// and what another run measured stays.
func TestPage(t *testing.T) {
	out := filepath.Join(t.TempDir(), "benchmarks.md")
	sizes := chart{File: "sizes", Title: "sizes < all", Unit: inBytes, Lines: []line{{"kami", []float64{1 << 20, 2 << 20}}, {"other", []float64{2 << 20, 2 << 20}}}}
	for _, r := range []result{
		{Part: "memory", Rows: []row{{Name: "m", What: "old", Kami: 1, Unit: inBytes, Of: ofKami, Most: 2}}, Machine: "one"},
		{Part: "list", Rows: []row{{Name: "l", What: "a list", Kami: 1, Unit: inSeconds, Of: ofKami, Most: 0.1}}, Machine: "one"},
		{Part: "memory", Rows: []row{{Name: "m", What: "new", Kami: 1, Unit: inBytes, Of: ofKami, Most: 2}}, Machine: "two", Charts: []chart{sizes}},
	} {
		if _, err := putPage(out, r); err != nil {
			t.Fatal(err)
		}
	}
	p, err := readPage(out)
	if err != nil {
		t.Fatal(err)
	}
	var parts []string
	for _, r := range p.Results {
		parts = append(parts, r.Part)
	}
	if want := []string{"list", "memory"}; !slices.Equal(parts, want) {
		t.Errorf("the page has %v, want %v", parts, want)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| memory | new |", "| list | a list | 1.000 s | - | - | 0.100 s | no |", "(benchmarks/sizes.svg)", "\nlist: one, with", "\nmemory: two, with"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page has no %q:\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "old") {
		t.Errorf("the page has what was measured before:\n%s", text)
	}
	if said := p.terminal(); !strings.Contains(said, "kami  "+strings.Repeat("█", 39)+"  2.0 MiB") {
		t.Errorf("the terminal has no bar:\n%s", said)
	}
	for _, c := range p.charts() {
		picture, err := os.ReadFile(filepath.Join(strings.TrimSuffix(out, ".md"), c.File+".svg"))
		if err != nil {
			t.Fatal(err)
		}
		wellFormed(t, string(picture))
	}
}

func wellFormed(t *testing.T, picture string) {
	t.Helper()
	for d := xml.NewDecoder(strings.NewReader(picture)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, picture)
		}
	}
}
