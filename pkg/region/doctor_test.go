package region

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func checkOf(t *testing.T, checks []Check, name string) Check {
	t.Helper()
	i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("nothing was said of %q", name)
	}
	return checks[i]
}

// Whatever the host is like, the doctor says something of each thing, and for
// what is not well how to mend it.
func TestDoctor(t *testing.T) {
	home := filepath.Join(t.TempDir(), "not", "there", "yet")
	checks := Doctor(t.Context(), Options{Home: home, Connect: "test:///default"})
	seen := map[string]bool{}
	for _, c := range checks {
		if seen[c.Name] {
			t.Errorf("%s is looked at twice", c.Name)
		}
		seen[c.Name] = true
		switch c.Status {
		case CheckOK:
		case CheckWarning, CheckFailed:
			if c.Mend == "" {
				t.Errorf("%s: %s (%s), and no way to mend it", c.Name, c.Status, c.Detail)
			}
		default:
			t.Errorf("%s: got the status %q, want ok, warning or failed", c.Name, c.Status)
		}
		if c.Detail == "" {
			t.Errorf("%s: got no detail", c.Name)
		}
	}
	for _, name := range []string{"kvm", "kvm for libvirt", "libvirt", "uefi firmware", "qemu-system-x86_64", "ssh", "home", "disk space"} {
		checkOf(t, checks, name)
	}
	if c := checkOf(t, checks, "home"); c.Status != CheckOK {
		t.Errorf("a home that can be made: got %+v, want ok", c)
	}
	if _, err := os.Stat(filepath.Dir(home)); !os.IsNotExist(err) {
		t.Errorf("the doctor has made something: %v", err)
	}
}

func TestDoctorOnHomes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	tests := []struct {
		home string
		want CheckStatus
	}{
		{t.TempDir(), CheckOK},
		{filepath.Join(t.TempDir(), "new"), CheckOK},
		{file, CheckFailed},
		{filepath.Join(file, "under"), CheckFailed},
	}
	for _, tt := range tests {
		if got := checkHome(tt.home); got.Status != tt.want || got.Status != CheckOK && got.Mend == "" {
			t.Errorf("checkHome(%s) = %+v, want %s", tt.home, got, tt.want)
		}
	}
	if got := checkSpace(t.TempDir()); got.Status == CheckFailed || got.Detail == "" {
		t.Errorf("checkSpace = %+v, want to be told how much is free", got)
	}
}

func TestDoctorOnTools(t *testing.T) {
	tests := []struct {
		name string
		want CheckStatus
	}{
		{"sh", CheckOK},
		{"no-such-tool", CheckWarning},
	}
	for _, tt := range tests {
		got := checkTool(tool{tt.name, "a test", "a-package"})
		if got.Status != tt.want || (got.Mend == "apt-get install a-package") != (tt.want != CheckOK) {
			t.Errorf("checkTool(%s) = %+v, want %s", tt.name, got, tt.want)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if got := checkTool(tool{"qemu-system-x86_64", "guests", "qemu-system-x86"}); got.Status != CheckFailed {
		t.Errorf("got %+v without QEMU, want failed", got)
	}
}
