// Package arch holds the house rules that a compiler does not: which package
// may import which, what the top of the repository looks like, and which names
// say nothing. docs/development.md draws the picture.
package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/kamivm/kami"
	root   = "../.."
)

// rows are the floors of the house from the ground up. A package imports
// packages of its own floor and of the floors underneath.
var rows = []struct {
	name     string
	packages []string
}{
	{"words", []string{"pkg/ami", "pkg/digest", "pkg/internal/durable"}},
	{"machine", []string{"pkg/hypervisor", "pkg/machine", "pkg/disk", "pkg/qcow2"}},
	{"stores", []string{"pkg/catalog", "pkg/snapshot", "pkg/object", "pkg/kms"}},
	{"work", []string{"pkg/build", "pkg/launch", "pkg/bundle", "pkg/recipe"}},
	{"house", []string{"pkg/region"}},
	{"doors", []string{"pkg/cli", "pkg/ec2", "pkg/imds", "pkg/output"}},
	{"program", []string{"cmd/kami"}},
	{"tests", []string{"test", "images"}},
}

// doorsMayUse is what a door may import: both doors call region and only
// region, so that they cannot drift apart.
var doorsMayUse = []string{
	"pkg/region", "pkg/cli", "pkg/ec2", "pkg/imds", "pkg/output",
	"pkg/ami", "pkg/digest", "pkg/internal/durable",
}

type goPackage struct {
	ImportPath   string
	Name         string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-tags", "libvirt_dlopen", "-json=ImportPath,Name,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("reading go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatal("go list named no package")
	}
	return pkgs
}

// inside says whether the package at rel is dir or under it.
func inside(rel, dir string) bool { return rel == dir || strings.HasPrefix(rel, dir+"/") }

// floor returns the index of the row that holds the package, or -1.
func floor(rel string) int {
	for i, row := range rows {
		if slices.ContainsFunc(row.packages, func(dir string) bool { return inside(rel, dir) }) {
			return i
		}
	}
	return -1
}

func local(importPath string) (string, bool) {
	return strings.CutPrefix(importPath, module+"/")
}

// violation says what is wrong with from importing to, "" for nothing.
func violation(from, to string) string {
	f, t := floor(from), floor(to)
	switch {
	case f < 0:
		return from + " has no floor: add it to rows in test/arch and to docs/development.md"
	case t < 0:
		return to + " has no floor"
	case t > f:
		return from + " (" + rows[f].name + ") imports " + to + " (" + rows[t].name + "), which is above it"
	case rows[f].name == "doors" && !slices.ContainsFunc(doorsMayUse, func(d string) bool { return inside(to, d) }):
		return from + " is a door and imports " + to + "; doors call region and only region"
	case rows[f].name == "program" && to != "pkg/cli":
		return from + " imports " + to + "; it calls cli.Main and nothing else"
	}
	return ""
}

func TestImportsGoDownwards(t *testing.T) {
	for _, p := range listPackages(t) {
		from, ok := local(p.ImportPath)
		if !ok {
			continue
		}
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			to, ok := local(imp)
			if !ok || to == from {
				continue
			}
			if v := violation(from, to); v != "" {
				t.Error(v)
			}
		}
	}
}

func TestTheRuleCanFail(t *testing.T) {
	tests := []struct {
		from, to string
		ok       bool
	}{
		{"pkg/region", "pkg/catalog", true},
		{"pkg/catalog", "pkg/ami", true},
		{"pkg/disk/foreign", "pkg/qcow2", true},
		{"pkg/cli", "pkg/region", true},
		{"pkg/ami", "pkg/catalog", false},
		{"pkg/launch", "pkg/region", false},
		{"pkg/cli", "pkg/catalog", false},
		{"pkg/cli", "pkg/hypervisor/libvirt", false},
		{"cmd/kami", "pkg/region", false},
		{"pkg/newroom", "pkg/ami", false},
		{"pkg/amiable", "pkg/ami", false},
	}
	for _, tt := range tests {
		if got := violation(tt.from, tt.to); (got == "") != tt.ok {
			t.Errorf("violation(%s, %s) = %q, want ok %v", tt.from, tt.to, got, tt.ok)
		}
	}
}

func TestPackageNamesSaySomething(t *testing.T) {
	empty := []string{"util", "utils", "common", "types", "helper", "helpers", "manager", "managers", "misc", "shared", "lib", "core", "base"}
	for _, p := range listPackages(t) {
		rel, _ := local(p.ImportPath)
		for _, part := range strings.Split(rel, "/") {
			if slices.Contains(empty, part) {
				t.Errorf("%s: the name %q says nothing of what is inside", rel, part)
			}
		}
		if want := path.Base(rel); p.Name != "main" && p.Name != want {
			t.Errorf("%s: package is named %s, its directory %s", rel, p.Name, want)
		}
	}
}

func TestTopLevelNames(t *testing.T) {
	allowed := []string{
		".ci", ".editorconfig", ".gitattributes", ".gitignore", ".golangci.yml",
		"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "cmd", "docs",
		"go.mod", "go.sum", "hack", "images", "pkg", "test",
		// Not in the repository.
		".git", ".cache", "bin", "dist",
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		if ext := filepath.Ext(name); ext == ".test" || ext == ".prof" {
			continue
		}
		if !slices.Contains(allowed, name) {
			t.Errorf("%s does not belong at the top of the repository", name)
		}
	}
	for _, name := range allowed[:len(allowed)-4] {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Errorf("%s is missing at the top of the repository", name)
		}
	}
}

func TestDirectories(t *testing.T) {
	tests := []struct {
		dir     string
		allowed []string
	}{
		{"cmd", []string{"kami"}},
		{"test", []string{"arch", "bench", "compat", "e2e", "script"}},
		{"pkg", []string{
			"ami", "build", "bundle", "catalog", "cli", "digest", "disk", "ec2", "hypervisor", "imds", "internal",
			"kms", "launch", "machine", "object", "output", "qcow2", "recipe", "region", "snapshot",
		}},
		{"pkg/internal", []string{"durable"}},
	}
	for _, tt := range tests {
		entries, err := os.ReadDir(filepath.Join(root, tt.dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !slices.Contains(tt.allowed, e.Name()) {
				t.Errorf("%s/%s is no room of the house", tt.dir, e.Name())
			}
		}
	}
}

func TestFilesFitInOneHead(t *testing.T) {
	const most = 400
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == ".cache") {
			return filepath.SkipDir
		}
		if filepath.Ext(p) != ".go" {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if n := strings.Count(string(b), "\n"); n > most {
			t.Errorf("%s has %d lines, want at most %d: split it by noun or verb", p, n, most)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
