package ami

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestErrorText(t *testing.T) {
	cause := errors.New("disk on fire")
	tests := []struct {
		name string
		err  *Error
		want string
	}{
		{"a sentence", Errorf(CodeInvalidFilter, "The filter %q is odd.", "x"), `InvalidFilter: The filter "x" is odd.`},
		{"a cause within", Errorf(CodeInternalError, "It broke: %w.", cause), "InternalError: It broke: disk on fire."},
		{"a cause behind", &Error{Code: CodeInternalError, Message: "It broke", Err: cause}, "InternalError: It broke: disk on fire"},
		{"the hint is not in it", Errorf(CodeInternalError, "It broke.").WithHint("Mend it."), "InternalError: It broke."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.err.Error(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// pathless is a cause that errors.As looks for.
type pathless struct{ path string }

func (p *pathless) Error() string { return "no " + p.path }

func TestErrorfKeepsTheCause(t *testing.T) {
	err := Errorf(CodeInternalError, "It broke: %w.", fmt.Errorf("opening x: %w", fs.ErrNotExist))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want it to be fs.ErrNotExist", err)
	}
	if got, want := err.Message, "It broke: opening x: file does not exist."; got != want {
		t.Errorf("got the message %q, want %q", got, want)
	}
	if got := strings.Count(err.Error(), "file does not exist"); got != 1 {
		t.Errorf("%q tells the cause %d times, want 1", err, got)
	}
	var p *pathless
	if err := Errorf(CodeInternalError, "It broke: %w.", &pathless{"x"}); !errors.As(err, &p) || p.path != "x" {
		t.Errorf("got %+v, want the cause as its own type", p)
	}
	if err := Errorf(CodeInternalError, "It broke."); err.Unwrap() != nil {
		t.Errorf("got the cause %v, want none", err.Unwrap())
	}
}

func TestWithHint(t *testing.T) {
	err := Errorf(CodeInvalidFilter, "No.").WithHint("Try %s.", "again")
	if err.Hint != "Try again." || err.Code != CodeInvalidFilter || err.Message != "No." {
		t.Errorf("got %+v, want the same error with the hint", err)
	}
}

func TestErrorCode(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want Code
	}{
		{"nil", nil, ""},
		{"its own", Errorf(CodeVolumeInUse, "x"), CodeVolumeInUse},
		{"wrapped", fmt.Errorf("doing: %w", Errorf(CodeVolumeInUse, "x")), CodeVolumeInUse},
		{"joined", errors.Join(errors.New("x"), Errorf(CodeVolumeInUse, "x")), CodeVolumeInUse},
		{"the outer of two", Errorf(CodeIncorrectState, "y: %w", Errorf(CodeVolumeInUse, "x")), CodeIncorrectState},
		{"none", errors.New("x"), CodeInternalError},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := ErrorCode(tt.err); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestStateRecord(t *testing.T) {
	// The numbers are EC2's InstanceState codes; programs compare them.
	want := map[InstanceState]int{
		InstancePending: 0, InstanceRunning: 16, InstanceShuttingDown: 32,
		InstanceTerminated: 48, InstanceStopping: 64, InstanceStopped: 80,
	}
	for state, code := range want {
		if got := StateRecord(state); got.Code != code || got.Name != state {
			t.Errorf("%s: got %+v, want the code %d", state, got, code)
		}
	}
}

// docs/errors.md has every code that there is.
func TestErrorsPageHasAllCodes(t *testing.T) {
	page, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^\tCode\w+\s+Code = "(.+)"$`)
	found := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, code := range declared.FindAllSubmatch(text, -1) {
			found++
			if !bytes.Contains(page, []byte("`"+string(code[1])+"`")) {
				t.Errorf("docs/errors.md lacks %s, of %s", code[1], file)
			}
		}
	}
	if found < 50 {
		t.Errorf("found %d codes, want all of them", found)
	}
}
