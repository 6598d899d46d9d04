package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Who asks is said by the nearest of flag, profile, environment and config.toml.
func TestAs(t *testing.T) {
	home := newHome(t)
	conf := `account = "111111111111"
[profiles.alice]
account = "222222222222"
[profiles.bob]
account = "333333333333"
output = "id"
`
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "config.toml"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		env, args []string
		want      string
	}{
		{nil, nil, "111111111111"},
		{[]string{"KAMI_PROFILE=alice"}, nil, "222222222222"},
		{[]string{"KAMI_ACCOUNT=444444444444"}, nil, "444444444444"},
		{[]string{"KAMI_ACCOUNT=444444444444", "KAMI_PROFILE=alice"}, nil, "444444444444"},
		{[]string{"KAMI_ACCOUNT=444444444444"}, []string{"--profile", "alice"}, "222222222222"},
		{[]string{"KAMI_ACCOUNT=444444444444"}, []string{"--profile", "alice", "--as", "555555555555"}, "555555555555"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(append(tt.env, tt.args...), " "), func(t *testing.T) {
			for _, e := range tt.env {
				name, value, _ := strings.Cut(e, "=")
				t.Setenv(name, value)
			}
			args := append(tt.args, "volume", "create", "--size", "1", "--query", "Volumes[0].OwnerId", "-o", "id")
			if got := mustKami(t, args...); got != tt.want {
				t.Errorf("got the owner %s, want %s", got, tt.want)
			}
		})
	}
	if id := mustKami(t, "--profile", "bob", "volume", "create", "--size", "1"); !strings.HasPrefix(id, "vol-") || strings.Contains(id, "\t") {
		t.Errorf("got %q, want an id alone, as the profile says", id)
	}
	for _, tt := range []struct{ args, says string }{
		{"--as 12", `Invalid user id: "12"`},
		{"--as 000000008664", "not kami's own"},
		{"--profile carol", `the profile "carol" is not one of alice, bob`},
	} {
		_, stderr, status := kami(t, append(strings.Fields(tt.args), "image", "list")...)
		if status != exitUsage || !strings.Contains(stderr, tt.says) {
			t.Errorf("%s: got %d, %q, want %d and %q", tt.args, status, stderr, exitUsage, tt.says)
		}
	}
	for _, tt := range []struct{ args, want string }{
		{"--as ", "333333333333"}, {"--profile ", "alice"}, {"image list --owners ", "self"}, {"image list --executable-users ", "all"},
	} {
		words := append([]string{"__complete"}, strings.Split(tt.args, " ")...)
		if got := mustKami(t, words...); !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %q offered, want %s among it", tt.args, got, tt.want)
		}
	}
}

// A list by pages says how it goes on, to people and to programs.
func TestListByPages(t *testing.T) {
	newHome(t)
	for range 3 {
		mustKami(t, "volume", "create", "--size", "1")
	}
	whole := mustKami(t, "volume", "list", "-o", "id")
	first, stderr, _ := kami(t, "volume", "list", "-o", "id", "--max-items", "2")
	_, token, ok := strings.Cut(strings.TrimSpace(stderr), "--starting-token ")
	if !ok {
		t.Fatalf("got %q, want a token", stderr)
	}
	rest, stderr, _ := kami(t, "volume", "list", "-o", "id", "--max-items", "2", "--starting-token", token)
	if first+strings.TrimSpace(rest) != whole || stderr != "" {
		t.Errorf("got %q and %q with %q, want %q", first, rest, stderr, whole)
	}
	if got := mustKami(t, "volume", "list", "--max-items", "2", "--query", "NextToken", "-o", "id"); got != token {
		t.Errorf("got the token %q, want %q", got, token)
	}
}
