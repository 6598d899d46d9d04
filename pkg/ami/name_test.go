package ami

import (
	"fmt"
	"strings"
	"testing"
)

func TestCheckName(t *testing.T) {
	good := []string{
		"abc", "Debian 12 (bookworm)", "a/b-c_d.e[f]@g'h", strings.Repeat("n", 128), "   ",
	}
	bad := []string{
		"", "ab", strings.Repeat("n", 129), "name!", "a:b", "tab\tbed", "line\nbroken", "abc\n", "naïve", `back\slash`, "a,b,c", "\xff\xfe\xfd",
	}
	for _, name := range good {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: got %v, want no error", name, err)
		}
	}
	for _, name := range bad {
		if err := CheckName(name); ErrorCode(err) != CodeInvalidAMINameMalformed {
			t.Errorf("%q: got %v, want %s", name, err, CodeInvalidAMINameMalformed)
		}
	}
}

func TestParseTag(t *testing.T) {
	tests := []struct {
		in   string
		want Tag
		code Code
	}{
		{"env=prod", Tag{"env", "prod"}, ""},
		{"env=", Tag{"env", ""}, ""},
		{"url=a=b", Tag{"url", "a=b"}, ""},
		{"Key=env,Value=prod", Tag{"env", "prod"}, ""},
		{"Key=env,Value=", Tag{"env", ""}, ""},
		{"Key=a=b,Value=c,Value=d", Tag{"a=b", "c,Value=d"}, ""},
		{"Key=env", Tag{"Key", "env"}, ""},
		{"env", Tag{}, CodeInvalidParameterValue},
		{"", Tag{}, CodeInvalidParameterValue},
		{"=prod", Tag{"", "prod"}, CodeInvalidTagKeyMalformed},
		{"Key=,Value=prod", Tag{"", "prod"}, CodeInvalidTagKeyMalformed},
		{"aws:env=prod", Tag{"aws:env", "prod"}, CodeInvalidTagKeyMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			got, err := ParseTag(tt.in)
			if ErrorCode(err) != tt.code {
				t.Fatalf("got the error %v, want the code %q", err, tt.code)
			}
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestValidateTags(t *testing.T) {
	many := func(n int) []Tag {
		tags := make([]Tag, n)
		for i := range tags {
			tags[i] = Tag{fmt.Sprint("k", i), "v"}
		}
		return tags
	}
	one := func(key, value string) []Tag { return []Tag{{key, value}} }
	tests := []struct {
		name string
		tags []Tag
		ok   bool
	}{
		{"none", nil, true},
		{"50", many(50), true},
		{"a key of 127", one(strings.Repeat("k", 127), ""), true},
		{"a key of 127 that are two bytes each", one(strings.Repeat("é", 127), ""), true},
		{"a key of 128", one(strings.Repeat("k", 128), ""), false},
		{"a key of 128 that are two bytes each", one(strings.Repeat("é", 128), ""), false},
		{"no key", one("", "v"), false},
		{"a value of 255", one("k", strings.Repeat("v", 255)), true},
		{"a value of 255 that are three bytes each", one("k", strings.Repeat("€", 255)), true},
		{"a value of 256", one("k", strings.Repeat("v", 256)), false},
		{"a reserved key", one("aws:name", "v"), false},
		{"aws without a colon", one("awsome", "v"), true},
		{"reserved in capitals", one("AWS:name", "v"), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := ValidateTags(tt.tags); (err == nil) != tt.ok {
				t.Errorf("got %v, want no error: %v", err, tt.ok)
			}
		})
	}
	if err := ValidateTags(many(51)); ErrorCode(err) != CodeTagLimitExceeded {
		t.Errorf("51 tags: got %v, want %s", err, CodeTagLimitExceeded)
	}
	err := ValidateTags([]Tag{{"", "v"}, {"good", "v"}, {"aws:x", "v"}})
	if ErrorCode(err) != CodeInvalidTagKeyMalformed {
		t.Fatalf("got %v, want %s", err, CodeInvalidTagKeyMalformed)
	}
	if s := err.Error(); !strings.Contains(s, `""`) || !strings.Contains(s, "aws:x") || strings.Contains(s, "good") {
		t.Errorf("got %q, want both faults and no more", s)
	}
}

// FuzzParseTag: what is read is valid, and reads the same from the AWS CLI's
// form, which can say every tag.
func FuzzParseTag(f *testing.F) {
	for _, s := range []string{"", "=", "a=b", "Key=a,Value=b", "Key=a", "Key=x,Value=y,Value=z", "aws:a=b", "a=b=c", "\xff=\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tag, err := ParseTag(s)
		if err != nil {
			if got := ErrorCode(err); got != CodeInvalidParameterValue && got != CodeInvalidTagKeyMalformed {
				t.Errorf("got the code %s of %v", got, err)
			}
			return
		}
		if err := ValidateTags([]Tag{tag}); err != nil {
			t.Errorf("what was read is not valid: %v", err)
		}
		long := "Key=" + tag.Key + ",Value=" + tag.Value
		if again, err := ParseTag(long); err != nil || again != tag {
			t.Errorf("%q: got %+v, %v, want %+v", long, again, err, tag)
		}
	})
}
