package arch

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/recipe"
)

// link is a Markdown link's target.
var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// links returns the files that the pages of a text lead to, without anchors.
func links(text string) []string {
	var out []string
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		target, _, _ := strings.Cut(m[1], "#")
		if target != "" && !strings.Contains(target, "://") {
			out = append(out, target)
		}
	}
	return out
}

func readPage(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(found) == 0 {
		t.Fatalf("no pages in docs: %v", err)
	}
	return found
}

func TestLinksLeadSomewhere(t *testing.T) {
	all := append(pages(t), filepath.Join(root, "README.md"), filepath.Join(root, "CHANGELOG.md"))
	for _, p := range all {
		for _, target := range links(readPage(t, p)) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(p), target)); err != nil {
				t.Errorf("%s links to %s, which is not there", filepath.Base(p), target)
			}
		}
	}
}

func TestTheIndexHasEveryPage(t *testing.T) {
	index := links(readPage(t, filepath.Join(root, "docs", "index.md")))
	listed := map[string]bool{"index.md": true}
	for _, target := range index {
		listed[target] = true
	}
	for _, p := range pages(t) {
		if !listed[filepath.Base(p)] {
			t.Errorf("docs/index.md does not list %s", filepath.Base(p))
		}
	}
}

// TestAnchorsLeadSomewhere: docs/cli.md lists its own headings.
func TestAnchorsLeadSomewhere(t *testing.T) {
	anchor := regexp.MustCompile(`\]\(#([^)]+)\)`)
	for _, p := range pages(t) {
		text := readPage(t, p)
		headings := map[string]bool{}
		for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(text, -1) {
			headings[strings.ReplaceAll(strings.ToLower(m[1]), " ", "-")] = true
		}
		for _, m := range anchor.FindAllStringSubmatch(text, -1) {
			if !headings[m[1]] {
				t.Errorf("%s links to #%s, which is no heading of it", filepath.Base(p), m[1])
			}
		}
	}
}

// TestRecipesAreDocumented: docs/recipes.md explains every field, and the recipes
// that stand in it are sound ones.
func TestRecipesAreDocumented(t *testing.T) {
	text := readPage(t, filepath.Join(root, "docs", "recipes.md"))
	for _, of := range []reflect.Type{reflect.TypeFor[recipe.Recipe](), reflect.TypeFor[recipe.File]()} {
		for i := range of.NumField() {
			name, _, _ := strings.Cut(of.Field(i).Tag.Get("yaml"), ",")
			if name != "-" && !strings.Contains(text, "\n| `"+name+"` |") {
				t.Errorf("docs/recipes.md does not explain the field %s", name)
			}
		}
	}
	found := 0
	for _, block := range strings.Split(text, "\n\n") {
		if !strings.HasPrefix(block, "    version: ") {
			continue
		}
		found++
		yaml := strings.ReplaceAll("\n"+block, "\n    ", "\n")
		if _, err := recipe.Parse([]byte(yaml)); err != nil {
			t.Errorf("docs/recipes.md has a recipe with faults: %v\n%s", err, yaml)
		}
	}
	if found != 2 {
		t.Errorf("docs/recipes.md has %d recipes, want one of each kind", found)
	}
}

func TestTheLinkCheckCanFail(t *testing.T) {
	got := links("[a](a.md) [b](b.md#part) [c](#own) [d](https://example.com/x.md) ![e](e.png)")
	want := []string{"a.md", "b.md", "e.png"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got the links %q, want %q", got, want)
	}
}
