package build

import (
	"errors"
	"strings"
	"testing"
)

// aptSays is what mmdebstrap prints at the end when apt finds no such packages.
const aptSays = `Package awk is a virtual package provided by:
  mawk 1.3.4.20200120-3.1

E: Unable to locate package no-such
E: Package 'awk' has no installation candidate
E: Unable to locate package lib++no.such
E: Couldn't find any package by glob 'lib++no.such'
E: setup failed: E: apt-get --yes install busybox no-such awk lib++no.such
I: main() received signal PIPE: waiting for setup...
E: mmdebstrap failed to run`

func TestPackageFaults(t *testing.T) {
	cause := errors.New("exit status 25")
	failed := func(output string) error { return &StepError{Step: "mmdebstrap", Output: output, Err: cause} }
	for name, c := range map[string]struct {
		err      error
		packages []string
		want     string
	}{
		"three of four": {
			failed(aptSays),
			[]string{"busybox", "no-such", "awk", "lib++no.such"},
			"packages[1]: no-such: there is no such package in bookworm\n" +
				"packages[2]: awk: it cannot be installed from bookworm; name a package that provides it\n" +
				"packages[3]: lib++no.such: there is no such package in bookworm",
		},
		"what the recipe's script asked for": {failed(aptSays), []string{"busybox"}, "mmdebstrap: exit status 25"},
		"another failure":                    {failed("E: Unable to fetch some archives"), []string{"no-such"}, "mmdebstrap: exit status 25"},
		"part of a name":                     {failed("E: Unable to locate package no-such-thing"), []string{"no-such"}, "mmdebstrap: exit status 25"},
		"not a step":                         {cause, []string{"no-such"}, "exit status 25"},
		"nothing failed":                     {nil, []string{"no-such"}, ""},
	} {
		got := packageFaults(c.err, c.packages, "bookworm")
		if got == nil {
			if c.want != "" {
				t.Errorf("%s: no error", name)
			}
			continue
		}
		if got.Error() != c.want {
			t.Errorf("%s: got\n%v\nwant\n%s", name, got, c.want)
		}
		var known *PackageError
		if is, want := errors.As(got, &known), strings.HasPrefix(c.want, "packages["); is != want {
			t.Errorf("%s: it is a *PackageError: %v, want %v", name, is, want)
		}
	}
}
