package ami

import (
	"regexp"
	"strings"
	"testing"
)

// parsers are the id parsers, each with its prefix and its code.
var parsers = []struct {
	prefix string
	code   Code
	parse  func(string) (string, error)
}{
	{"ami-", CodeInvalidAMIIDMalformed, func(s string) (string, error) { id, err := ParseImageID(s); return string(id), err }},
	{"snap-", CodeInvalidSnapshotIDMalformed, func(s string) (string, error) { id, err := ParseSnapshotID(s); return string(id), err }},
	{"vol-", CodeInvalidVolumeIDMalformed, func(s string) (string, error) { id, err := ParseVolumeID(s); return string(id), err }},
	{"i-", CodeInvalidInstanceIDMalformed, func(s string) (string, error) { id, err := ParseInstanceID(s); return string(id), err }},
	{"aki-", CodeInvalidKernelIDMalformed, func(s string) (string, error) { id, err := ParseKernelID(s); return string(id), err }},
	{"ari-", CodeInvalidRAMDiskIDMalformed, func(s string) (string, error) { id, err := ParseRamdiskID(s); return string(id), err }},
}

func TestNewIDs(t *testing.T) {
	tests := []struct {
		prefix string
		fresh  func() string
	}{
		{"ami-", func() string { return string(NewImageID()) }},
		{"snap-", func() string { return string(NewSnapshotID()) }},
		{"vol-", func() string { return string(NewVolumeID()) }},
		{"i-", func() string { return string(NewInstanceID()) }},
		{"r-", func() string { return string(NewReservationID()) }},
		{"key-", func() string { return string(NewKeyPairID()) }},
		{"aki-", func() string { return string(NewKernelID()) }},
		{"ari-", func() string { return string(NewRamdiskID()) }},
	}
	for _, tt := range tests {
		t.Run(tt.prefix, func(t *testing.T) {
			form := regexp.MustCompile("^" + tt.prefix + "[0-9a-f]{17}$")
			seen := map[string]bool{}
			// varied[i] collects the digits that were seen at place i: none
			// of them may be fixed, as a UUID's version is.
			varied := make([]map[byte]bool, 17)
			for range 200 {
				id := tt.fresh()
				if !form.MatchString(id) {
					t.Fatalf("got %q, want %s and 17 hexadecimal digits", id, tt.prefix)
				}
				if seen[id] {
					t.Fatalf("got %q twice, want fresh ids", id)
				}
				seen[id] = true
				for i, c := range []byte(strings.TrimPrefix(id, tt.prefix)) {
					if varied[i] == nil {
						varied[i] = map[byte]bool{}
					}
					varied[i][c] = true
				}
			}
			for i, digits := range varied {
				if len(digits) < 8 {
					t.Errorf("digit %d of 200 ids has %d values, want nearly all 16", i, len(digits))
				}
			}
		})
	}
}

func TestParseIDs(t *testing.T) {
	tests := []struct {
		name, digits string
		ok           bool
	}{
		{"17 digits", "0123456789abcdef0", true},
		{"the 8 digits of old", "0123abcd", true},
		{"no digits", "", false},
		{"7 digits", "0123abc", false},
		{"9 digits", "0123abcde", false},
		{"16 digits", "0123456789abcdef", false},
		{"18 digits", "0123456789abcdef01", false},
		{"upper case", "0123ABCD", false},
		{"not hexadecimal", "0123456g", false},
		{"a newline behind", "0123abcd\n", false},
		{"a space before", " 0123abcd", false},
		{"a path", "../0123a", false},
	}
	for _, p := range parsers {
		for _, tt := range tests {
			t.Run(p.prefix+" "+tt.name, func(t *testing.T) {
				s := p.prefix + tt.digits
				got, err := p.parse(s)
				if tt.ok {
					if err != nil || got != s {
						t.Errorf("got %q, %v, want %q", got, err, s)
					}
					return
				}
				if got != "" || ErrorCode(err) != p.code {
					t.Errorf("got %q, %v, want an error %s", got, err, p.code)
				}
			})
		}
		for _, other := range []string{"", "r-", "AMI-", "snap", "x" + p.prefix} {
			s := other + "0123456789abcdef0"
			if got, err := p.parse(s); got != "" || ErrorCode(err) != p.code {
				t.Errorf("%s: %q: got %q, %v, want an error %s", p.prefix, s, got, err, p.code)
			}
		}
	}
}

func TestParseIDTellsWhatItExpects(t *testing.T) {
	for _, p := range parsers {
		_, err := p.parse("0123")
		if err == nil {
			t.Fatalf("%s: an id without a prefix is taken", p.prefix)
		}
		for _, want := range []string{`Invalid id: "0123"`, p.prefix} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("got %q, want it to have %q", err, want)
			}
		}
	}
}

// What everybody may have written down does not change.
func TestPVGrubIsAnID(t *testing.T) {
	if got, err := ParseKernelID(string(PVGrub)); err != nil || got != "aki-00000000000008664" {
		t.Errorf("got %q, %v", got, err)
	}
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"", "ami-", "ami-0123456789abcdef0", "snap-0123abcd", "vol-0123456789abcdef0", "i-0123abcd", "i-\x00", "ami-0123abcd\n"} {
		f.Add(s)
	}
	form := regexp.MustCompile(`^(?:ami|snap|vol|i|aki|ari)-(?:[0-9a-f]{8}|[0-9a-f]{17})$`)
	f.Fuzz(func(t *testing.T, s string) {
		taken := 0
		for _, p := range parsers {
			got, err := p.parse(s)
			switch {
			case err == nil && (got != s || !form.MatchString(s)):
				t.Errorf("%s: %q: got %q, want an error or the same", p.prefix, s, got)
			case err == nil:
				taken++
			case got != "" || ErrorCode(err) != p.code:
				t.Errorf("%s: %q: got %q and %v, want no id and %s", p.prefix, s, got, err, p.code)
			}
		}
		// An id is one noun's: no two parsers take the same text.
		want := 0
		if form.MatchString(s) {
			want = 1
		}
		if taken != want {
			t.Errorf("%q is taken by %d parsers, want %d", s, taken, want)
		}
	})
}
