package recipe

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// base is a sound recipe; a line given with a key replaces its line.
func base(lines ...string) []byte {
	keys := []string{"version", "name", "suite", "size", "kernel", "initrd"}
	all := map[string]string{
		"version": "version: 1", "name": "name: tiny", "suite": "suite: bookworm", "size": "size: 2GiB",
		"kernel": "kernel: /boot/vmlinuz", "initrd": "initrd: /boot/initrd.img",
	}
	for _, l := range lines {
		key, _, _ := strings.Cut(l, ":")
		if _, ok := all[key]; !ok {
			keys = append(keys, key)
		}
		all[key] = l
	}
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(all[k] + "\n")
	}
	return []byte(b.String())
}

// changed is a sound recipe that stands on another image.
func changed(lines ...string) []byte {
	return []byte("version: 1\nname: web\nfrom: tiny\n" + strings.Join(lines, "\n") + "\n")
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name string
		data []byte
		want Recipe
	}{
		{
			"the least", base(),
			Recipe{
				Version: 1, Name: "tiny", Architecture: ami.ArchX8664, Suite: "bookworm", Size: "2GiB", Bytes: 2 << 30,
				Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img",
			},
		},
		{
			"the most", base("description: a guest", "architecture: x86_64", "variant: minbase", "packages: [libc6, g++, a.b-c]", "size: 64MiB",
				"cmdline: console=ttyS0 ds=nocloud;s=/x/", "tree: /tiny", "user: admin", "script: sub/customize.sh", "memory: 7",
				"files: [{path: /etc/motd, content: hello, mode: \"0600\"}, {path: /a b, source: f/x}]"),
			Recipe{
				Version: 1, Name: "tiny", Description: "a guest", Architecture: ami.ArchX8664, Suite: "bookworm", Variant: "minbase",
				Packages: []string{"libc6", "g++", "a.b-c"}, Size: "64MiB", Bytes: 64 << 20, Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img",
				Cmdline: "console=ttyS0 ds=nocloud;s=/x/", Tree: "/tiny", User: "admin", Script: "sub/customize.sh", Memory: 7,
				Files: []File{{Path: "/etc/motd", Content: "hello", Mode: "0600"}, {Path: "/a b", Source: "f/x"}},
			},
		},
		{"from", changed(), Recipe{Version: 1, Name: "web", From: "tiny", Architecture: ami.ArchX8664}},
		{
			"from, with what goes with it", changed("packages: [nginx]", "script: s", "memory: 512", "user: admin"),
			Recipe{Version: 1, Name: "web", From: "tiny", Architecture: ami.ArchX8664, Packages: []string{"nginx"}, Script: "s", Memory: 512, User: "admin"},
		},
		{"the largest", base("size: 1024GiB"), Recipe{
			Version: 1, Name: "tiny", Architecture: ami.ArchX8664, Suite: "bookworm", Size: "1024GiB", Bytes: 1 << 40,
			Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse(c.data)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// TestEachFaultNamesFieldAndValue gives one fault at a time; nothing else may be
// told of.
func TestEachFaultNamesFieldAndValue(t *testing.T) {
	for _, c := range []struct {
		data []byte
		want string // field and value
	}{
		{base("version: 2"), "version: 2: "},
		{base("name: Tiny"), "name: Tiny: "},
		{base("name: a/b"), "name: a/b: "},
		{base("name: .."), "name: ..: "},
		{base("name: \"a\\nb\""), "name: \"a\\nb\": "},
		{base("name: " + strings.Repeat("x", 64)), "name: " + strings.Repeat("x", 64) + ": "},
		{base("description: " + strings.Repeat("y", 256)), "description: " + strings.Repeat("y", 20) + "…: "},
		{base("architecture: riscv64"), "architecture: riscv64: "},
		{base("architecture: i386", "secure_boot: true"), "secure_boot: true: "},
		{base("secure_boot: maybe"), "secure_boot: maybe: "},
		{base("packages: [\"a [amd64 ]\"]"), "packages[0]: a [amd64 ]: "},
		{changed("secure_boot: true"), "secure_boot: true: "},
		{base("packages: [ok, \"--help\"]"), "packages[1]: --help: "},
		{base("packages: [\"a,b\"]"), "packages[0]: a,b: "},
		{base("packages: [\"a b\"]"), "packages[0]: a b: "},
		{base("packages: [\"ab\\n\"]"), "packages[0]: \"ab\\n\": "},
		{base("user: root;id"), "user: root;id: "},
		{base("user: \"-x\""), "user: -x: "},
		{base("files: [{path: etc/x, content: x}]"), "files[0].path: etc/x: "},
		{base("files: [{path: /etc/../x, content: x}]"), "files[0].path: /etc/../x: "},
		{base("files: [{path: /, content: x}]"), "files[0].path: /: "},
		{base("files: [{path: /a/, content: x}]"), "files[0].path: /a/: "},
		{base("files: [{path: \"/a\\nb\", content: x}]"), "files[0].path: \"/a\\nb\": "},
		{base("files: [{path: \"/a\\0b\", content: x}]"), "files[0].path: \"/a\\x00b\": "},
		{base("files: [{path: \"/a'b\", content: x}]"), "files[0].path: /a'b: "},
		{base("files: [{path: /x}]"), "files[0].source: exactly one"},
		{base("files: [{path: /x, source: a, content: b}]"), "files[0].source: a: "},
		{base("files: [{path: /y, content: b}, {path: /x, source: ../a}]"), "files[1].source: ../a: "},
		{base("files: [{path: /x, source: /etc/passwd}]"), "files[0].source: /etc/passwd: "},
		{base("files: [{path: /x, source: a/../../b}]"), "files[0].source: a/../../b: "},
		{base("files: [{path: /x, content: b, mode: \"0999\"}]"), "files[0].mode: 0999: "},
		{base("files: [{path: /x, content: b, mode: u+s}]"), "files[0].mode: u+s: "},
		{base("script: ../s"), "script: ../s: "},
		{base("script: /bin/sh"), "script: /bin/sh: "},
		{base("suite: \"\""), "suite: a suite such as"},
		{base("suite: --help"), "suite: --help: "},
		{base("variant: huge"), "variant: huge: "},
		{base("size: 2GB"), "size: 2GB: "},
		{base("size: \"-1GiB\""), "size: -1GiB: "},
		{base("size: 63MiB"), "size: 63MiB: "},
		{base("size: 1025GiB"), "size: 1025GiB: "},
		{base("size: 99999GiB"), "size: 99999GiB: "},
		{base("size: 999999999999GiB"), "size: 999999999999GiB: "},
		{base("kernel: vmlinuz"), "kernel: vmlinuz: "},
		{base("kernel: \"/boot/v x\""), "kernel: /boot/v x: "},
		{base("initrd: /boot/../x"), "initrd: /boot/../x: "},
		{base("initrd: \"/boot/x\\ty\""), "initrd: \"/boot/x\\ty\": "},
		{base("cmdline: \"a\\nb\""), "cmdline: \"a\\nb\": "},
		{base("cmdline: \"a'b\""), "cmdline: a'b: "},
		{base("cmdline: 'a\\b'"), "cmdline: a\\b: "},
		{base("boot_mode: pxe"), "boot_mode: pxe: "},
		{base("virtualization_type: xen"), "virtualization_type: xen: not one of hvm, paravirtual"},
		{base("imds_support: v3"), "imds_support: v3: "},
		{base("tree: tiny"), "tree: tiny: "},
		{base("tree: /a/.."), "tree: /a/..: "},
		{base("tree: '/a\"b'"), "tree: /a\"b: "},
		{changed("suite: bookworm"), "suite: bookworm: "},
		{changed("size: 2GiB"), "size: 2GiB: "},
		{changed("tree: /x"), "tree: /x: "},
		{changed("boot_mode: uefi"), "boot_mode: uefi: "},
		{changed("imds_support: v2.0"), "imds_support: v2.0: "},
		{changed("boot_mode: bios"), "boot_mode: bios: "},
		{changed("virtualization_type: paravirtual"), "virtualization_type: paravirtual: "},
		{changed("memory: 63"), "memory: 63: "},
		{changed("memory: -1"), "memory: -1: "},
		{changed("memory: 1048577"), "memory: 1048577: "},
	} {
		_, err := Parse(c.data)
		switch {
		case err == nil:
			t.Errorf("%s: taken, want it refused:\n%s", c.want, c.data)
		case !strings.HasPrefix(err.Error(), c.want) || len(err.Error()) <= len(c.want):
			t.Errorf("got error %q, want one that begins with %q and says why", err, c.want)
		case errorsIn(err) != 1:
			t.Errorf("%s: got %d faults, want 1: %v", c.want, errorsIn(err), err)
		}
	}
}

// errorsIn is how many faults an error joins.
func errorsIn(err error) int {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return 1
	}
	return len(joined.Unwrap())
}

func TestAllFaultsAtOnce(t *testing.T) {
	for _, c := range []struct {
		name string
		data string
		want []string // the fields, in order
	}{
		{
			"a base",
			"version: 9\nname: A\narchitecture: m68k\npackages: [B, cc, D]\nuser: Ü\nscript: /s\nvariant: v\ncmdline: \"'\"\ntree: t\n" +
				"files: [{path: p, mode: x}, {path: /q, source: ../s}]\n",
			[]string{
				"version", "name", "architecture", "packages[0]", "packages[2]", "user", "files[0].path", "files[0].source", "files[0].mode",
				"files[1].source", "script", "suite", "variant", "size", "kernel", "initrd", "cmdline", "tree",
			},
		},
		{
			"a change",
			"version: 1\nname: a\nfrom: b\nsuite: s\nvariant: v\nsize: 1GiB\nkernel: /k\ninitrd: /i\ncmdline: c\ntree: /t\nboot_mode: uefi\nmemory: 1\n",
			[]string{"suite", "variant", "size", "kernel", "initrd", "cmdline", "tree", "boot_mode", "memory"},
		},
		{"nothing", "", []string{"version", "name", "suite", "size", "kernel", "initrd"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 20 { // in the same order each time
				_, err := Parse([]byte(c.data))
				if err == nil {
					t.Fatal("taken, want it refused")
				}
				var got []string
				for _, line := range strings.Split(err.Error(), "\n") {
					field, _, _ := strings.Cut(line, ": ")
					got = append(got, field)
				}
				if !reflect.DeepEqual(got, c.want) {
					t.Fatalf("got faults in %v, want in %v", got, c.want)
				}
			}
		})
	}
}

func TestWhatIsNoRecipe(t *testing.T) {
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"a list":      {[]byte("- a\n- b\n"), "is a list"},
		"text":        {[]byte("hello"), "is hello"},
		"no YAML":     {[]byte("version: [1\nname"), "name"},
		"two of them": {append(base(), "---\nversion: 1\n"...), "more than one"},
		"too long":    {append(base(), "# "+strings.Repeat("x", maxSize)...), fmt.Sprint(maxSize)},
	} {
		if _, err := Parse(c.data); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got error %v, want one that says %q", name, err, c.says)
		}
	}
}

func TestLoad(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const files = "files: [{path: /a, source: one}, {path: /b, source: sub/two}]"
	for _, c := range []struct {
		name  string
		lines []string
		make  func(t *testing.T, dir string)
		want  []string // the beginnings of the faults
	}{
		{"sound", []string{"script: run.sh", files}, nil, nil},
		{
			"missing, with other faults",
			[]string{"name: A", "script: gone", "files: [{path: /a, source: ../x}, {path: b, source: lost}]"},
			nil,
			[]string{"name: A: ", "files[0].source: ../x: it leads out", "files[1].path: b: ", "script: gone: it is not there (line 7)", "files[1].source: lost: "},
		},
		{"links that stay inside", []string{"script: link"}, link("run.sh", "link"), nil},
		{"missing", []string{"script: gone", "files: [{path: /a, source: one}, {path: /b, source: lost}]"}, nil, []string{"script: gone: ", "files[1].source: lost: "}},
		{"a link that leads out", []string{"script: link"}, link(secret, "link"), []string{"script: link: it leads out"}},
		{"a link that climbs out", []string{"files: [{path: /a, source: link/x}]"}, link("../..", "link"), []string{"files[0].source: link/x: "}},
		{"a folder that leads out", []string{"files: [{path: /a, source: link/secret}]"}, link(outside, "link"), []string{"files[0].source: link/secret: it leads out"}},
		{"a link to itself", []string{"script: link"}, link("link", "link"), []string{"script: link: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, data := range map[string]string{"recipe.yaml": string(base(c.lines...)), "run.sh": "", "one": "", "sub/two": ""} {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if c.make != nil {
				c.make(t, dir)
			}
			t.Chdir(filepath.Dir(dir))
			got, err := Load(filepath.Base(dir)) // a relative path
			if got.Dir != dir && err == nil {
				t.Errorf("the recipe's folder is %q, want %q", got.Dir, dir)
			}
			var faults []string
			if err != nil {
				faults = strings.Split(err.Error(), "\n")
			}
			if len(faults) != len(c.want) {
				t.Fatalf("got faults %q, want %q", faults, c.want)
			}
			for i, want := range c.want {
				if !strings.HasPrefix(faults[i], want) {
					t.Errorf("got fault %q, want one that begins with %q", faults[i], want)
				}
			}
		})
	}
	if _, err := Load(outside); !os.IsNotExist(err) {
		t.Errorf("a folder without a recipe: got error %v, want one that says so", err)
	}
}

func link(to, name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOurOwnRecipes: what ships is taken.
func TestOurOwnRecipes(t *testing.T) {
	dirs, err := filepath.Glob("../../images/*/recipe.yaml")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no recipes, %v", err)
	}
	for _, path := range dirs {
		dir := filepath.Dir(path)
		if got, err := Load(dir); err != nil || got.Name != filepath.Base(dir) {
			t.Errorf("%s: got a recipe named %q, %v", dir, got.Name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(base())
	f.Add(base("packages: [a1, b2]", "tree: /t", "files: [{path: /x, content: \"a\\nb\", mode: \"0755\"}]", "cmdline: a=b;c $d"))
	f.Add(changed("script: s", "memory: 512"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("<<: {version: 1}\n"))
	f.Add([]byte("? name\n: x\n&b b: !!str 5\nfiles: [{path: /x, path: [{}]}, *b, |\n  text\n, null]\nversion: 0x1\nversion: .inf\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse(data)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error that says nothing")
			}
			return
		}
		if r.Version != Version || !recipeName.MatchString(r.Name) || r.Architecture == "" {
			t.Errorf("taken: %+v", r)
		}
		if (r.From == "") != (r.Bytes > 0) {
			t.Errorf("a recipe from %q has a disk of %d bytes", r.From, r.Bytes)
		}
		for _, s := range append([]string{r.Tree, r.Kernel, r.Initrd, r.Cmdline, r.User, r.Suite}, r.Packages...) {
			if strings.ContainsAny(s, "\n\x00'\"") {
				t.Errorf("taken: %q", s)
			}
		}
		for _, file := range r.Files {
			if !filepath.IsAbs(file.Path) || filepath.Clean(file.Path) != file.Path || strings.ContainsAny(file.Path, "\n\x00'") {
				t.Errorf("the path %q is taken", file.Path)
			}
			if file.Source != "" && !filepath.IsLocal(file.Source) {
				t.Errorf("the source %q is taken", file.Source)
			}
		}
	})
}
