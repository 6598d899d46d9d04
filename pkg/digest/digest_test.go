package digest

import (
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
)

// What sha256sum prints for nothing and for "abc" (FIPS 180-4's example).
const (
	ofNothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	ofABC     = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
)

func TestOf(t *testing.T) {
	tests := []struct {
		in   []byte
		want Digest
	}{
		{nil, ofNothing},
		{[]byte{}, ofNothing},
		{[]byte("abc"), ofABC},
	}
	for _, tt := range tests {
		if got := Of(tt.in); got != tt.want {
			t.Errorf("%q: got %s, want %s", tt.in, got, tt.want)
		}
	}
}

func TestFromSum(t *testing.T) {
	if got := FromSum(sha256.Sum256([]byte("abc"))); got != ofABC {
		t.Errorf("got %s, want %s", got, ofABC)
	}
	var sum [sha256.Size]byte
	sum[0], sum[31] = 0x0a, 0x01
	if got, want := FromSum(sum), Digest("0a"+strings.Repeat("0", 60)+"01"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, in string
		ok       bool
	}{
		{"a digest", ofABC, true},
		{"nothing", "", false},
		{"a digit less", ofABC[1:], false},
		{"a digit more", ofABC + "0", false},
		{"upper case", strings.ToUpper(ofABC), false},
		{"not hexadecimal", "g" + ofABC[1:], false},
		{"a newline", ofABC[1:] + "\n", false},
		{"a path", "../" + ofABC[3:], false},
		{"with its algorithm", "sha256:" + ofABC, false},
		{"as sha256sum -b prints it", ofABC + " *file", false},
		{"wide characters", strings.Repeat("é", 32), false},
		{"just below 0", strings.Repeat("/", 64), false},
		{"just above 9", strings.Repeat(":", 64), false},
		{"just below a", strings.Repeat("`", 64), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.in)
			if valid := Digest(tt.in).Valid(); valid != tt.ok {
				t.Errorf("Valid: got %v, want %v", valid, tt.ok)
			}
			if tt.ok {
				if err != nil || got != Digest(tt.in) {
					t.Errorf("got %q, %v, want the same", got, err)
				}
				return
			}
			if got != "" || !errors.Is(err, ErrMalformed) {
				t.Errorf("got %q, %v, want ErrMalformed", got, err)
			}
		})
	}
}

func TestForms(t *testing.T) {
	d := Digest(ofABC)
	if got := d.Hex(); got != ofABC {
		t.Errorf("Hex: got %q, want %q", got, ofABC)
	}
	tests := []struct{ in, want Digest }{
		{d, "ba7816bf8f01"},
		{"", ""},
		{"ba78", "ba78"},
	}
	for _, tt := range tests {
		if got := tt.in.Short(); got != string(tt.want) {
			t.Errorf("Short of %q: got %q, want %q", tt.in, got, tt.want)
		}
	}
}

// FuzzParse: what is read is the digest of some bytes, and is written back the
// same; a digest of any bytes is read.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"", ofNothing, ofABC, strings.ToUpper(ofABC), "../../etc/passwd"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := Parse(s); err == nil {
			if d.Hex() != s || len(s) != 64 || strings.Trim(s, "0123456789abcdef") != "" {
				t.Errorf("%q is read as %q", s, d)
			}
		} else if d != "" || !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: got %q, %v, want ErrMalformed", s, d, err)
		}
		made := Of([]byte(s))
		if got, err := Parse(made.Hex()); err != nil || got != made {
			t.Errorf("got %q, %v, want %q", got, err, made)
		}
	})
}
