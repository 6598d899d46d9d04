package launch

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

func TestType(t *testing.T) {
	// EC2's own figures.
	tests := []struct {
		name string
		cpus int
		mib  int64
	}{
		{"t2.nano", 1, 512},
		{"t2.micro", 1, 1024},
		{"t2.small", 1, 2048},
		{"t2.medium", 2, 4096},
		{"t2.2xlarge", 8, 32768},
		{"t3.nano", 2, 512},
		{"t3.micro", 2, 1024},
		{"t3a.small", 2, 2048},
		{"t3.medium", 2, 4096},
		{"t3.large", 2, 8192},
		{"t3.xlarge", 4, 16384},
		{"m5.large", 2, 8192},
		{"m6i.4xlarge", 16, 65536},
		{"m7a.24xlarge", 96, 393216},
		{"c5.large", 2, 4096},
		{"c6i.12xlarge", 48, 98304},
		{"r5.large", 2, 16384},
		{"r7i.16xlarge", 64, 524288},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Type(tt.name)
			if want := (Size{tt.name, tt.cpus, tt.mib}); err != nil || got != want {
				t.Errorf("got %+v, %v, want %+v", got, err, want)
			}
		})
	}
}

func TestTypeDefault(t *testing.T) {
	want, err := Type(DefaultType)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Type(""); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestTypeUnknown(t *testing.T) {
	for _, name := range []string{
		"t3", "t3.", ".micro", "micro", "t3.tiny", "t3.4xlarge", "T3.micro", "t3.micro ", "t3.micro.large",
		"m5.nano", "m5.micro", "m5.3xlarge", "m5.", "x1.large", ".",
	} {
		got, err := Type(name)
		if got != (Size{}) || ami.ErrorCode(err) != ami.CodeInvalidParameterValue {
			t.Errorf("%q: got %+v, %v, want %s", name, got, err, ami.CodeInvalidParameterValue)
			continue
		}
		if !strings.Contains(err.Error(), "'"+name+"'") {
			t.Errorf("got %q, want it to name the value %q", err, name)
		}
	}
}

func TestTypeNames(t *testing.T) {
	names := TypeNames()
	slices.Sort(names)
	if d := len(names) - len(slices.Compact(slices.Clone(names))); d > 0 {
		t.Errorf("%d names are there twice", d)
	}
	form := regexp.MustCompile(`^[a-z][0-9][a-z]?\.(nano|micro|small|medium|[0-9]*x?large)$`)
	for _, name := range names {
		size, err := Type(name)
		if err != nil || size.Name != name || size.CPUs < 1 || size.MemoryMiB < 512 || !form.MatchString(name) {
			t.Errorf("%s: got %+v, %v, want a size", name, size, err)
		}
	}
	for _, want := range []string{DefaultType, "t2.2xlarge", "m5.large", "c7a.24xlarge", "r6a.8xlarge"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not there", want)
		}
	}
}
