package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var directRequire = regexp.MustCompile(`(?m)^\t(\S+) v\S+$`)

// TestDependenciesAreJustified holds docs/dependencies.md against go.mod: a
// line for each module that is imported, and none for one that is not.
func TestDependenciesAreJustified(t *testing.T) {
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	table, _, _ := strings.Cut(string(page), "\nPrograms")
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| \\S").FindAllStringSubmatch(table, -1) {
		listed[m[1]] = true
	}
	direct := directRequire.FindAllStringSubmatch(string(mod), -1)
	if len(direct) == 0 {
		t.Fatal("go.mod requires nothing: the pattern is wrong")
	}
	for _, m := range direct {
		if !listed[m[1]] {
			t.Errorf("%s is imported, and docs/dependencies.md does not say what for", m[1])
		}
		delete(listed, m[1])
	}
	for name := range listed {
		t.Errorf("docs/dependencies.md has %s, which nothing imports", name)
	}
}
