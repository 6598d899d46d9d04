package region

import (
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

func TestHostname(t *testing.T) {
	label := strings.Repeat("a", 63)
	tests := []struct {
		name string
		ok   bool
	}{
		{"", true}, // the default
		{"web", true},
		{"web-1.example.org", true},
		{"3com", true},
		{"A", true},
		{label, true},
		{label + "." + label + "." + label + "." + label[:61], true},
		{label + "." + label + "." + label + "." + label[:62], false},
		{label + "a", false},
		{"-web", false},
		{"web-", false},
		{"web.-x", false},
		{".web", false},
		{"web.", false},
		{"a..b", false},
		{"a,hostfwd=tcp::1-:2", false},
		{"a b", false},
		{"a\nb", false},
		{"web\n", false},
		{"a_b", false},
		{"büro", false},
		{"$(reboot)", false},
	}
	for _, tt := range tests {
		want := ami.Code("")
		if !tt.ok {
			want = ami.CodeInvalidParameterValue
		}
		if got := ami.ErrorCode(checkHostname(tt.name)); got != want {
			t.Errorf("checkHostname(%q): got %q, want %q", tt.name, got, want)
		}
	}
}
