package build

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/recipe"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden holds got against testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (-update writes it anew): got\n%s\nwant\n%s", path, got, want)
	}
}

// output runs a program and returns what it prints.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestScriptsAreWhatTheyWere(t *testing.T) {
	for _, c := range []struct {
		name string
		r    recipe.Recipe
	}{
		{"least", recipe.Recipe{Name: "least", Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img", Dir: "/recipes/least"}},
		{"most", recipe.Recipe{
			Name: "most.with-a-long-name", Dir: "/home/o'hara/most", Script: "sub/customize.sh", Tree: "/tiny",
			Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img", Cmdline: "console=ttyS0  ds=nocloud;s=/seed/ panic=5",
			Files: []recipe.File{
				{Path: "/sbin/init", Source: "init", Mode: "0755"},
				{Path: "/etc/motd", Content: "hello\n"},
				{Path: "/a $b/c", Source: "d e", Mode: "600"},
			},
		}},
		{"arm64", recipe.Recipe{
			Name: "arm64", Architecture: "arm64", Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img", Cmdline: "console=ttyS0 panic=5", Dir: "/recipes/arm64",
		}},
		{"secure", recipe.Recipe{Name: "secure", SecureBoot: true, Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img", Dir: "/recipes/secure"}},
	} {
		o := Options{Recipe: c.r, Tmp: "/work/tmp"}
		golden(t, c.name+".hook.sh", hookScript(o))
		golden(t, c.name+".grub.cfg", grubConfig(o))
		golden(t, c.name+".early.cfg", findRoot(o))
	}
}

// A disk without partitions has the root on all of it, and the same beginning of a
// configuration for pv-grub as for GRUB.
func TestParavirtualRoot(t *testing.T) {
	r := recipe.Recipe{Name: "least", Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img", Bytes: 64 << 20}
	hvm, pv := Options{Recipe: r, Tmp: "/t"}, Options{Recipe: r, Tmp: "/t", Paravirtual: true}
	if got := rootSize(pv); got != r.Bytes || rootSize(hvm) >= got {
		t.Errorf("got roots of %d and %d bytes, want the whole of %d, and less beside boot loaders", got, rootSize(hvm), r.Bytes)
	}
	if !strings.Contains(hookScript(pv), fmt.Sprintf("truncate -s %d ", r.Bytes)) {
		t.Error("the file system does not have the size of the disk")
	}
	if grubConfig(pv) != grubConfig(hvm) {
		t.Error("the configurations differ")
	}
}

// TestHookKeepsWordsTogether runs the hook with names and contents that a shell
// would do something with. The recipe room refuses most of them; this room does
// not lean on that.
func TestHookKeepsWordsTogether(t *testing.T) {
	for _, evil := range []string{
		"plain",
		"two words",
		"it's",
		`a"b`,
		"$(touch pwned)",
		"`touch pwned`",
		"'; touch pwned; '",
		`"; touch pwned; "`,
		"$HOME ${x} *",
		"a\nb; touch pwned",
		`back\slash`,
		"-n",
		"& touch pwned & < > | #",
		"~ %s %d {} []",
	} {
		t.Run(evil, func(t *testing.T) {
			// All of it happens in this folder, where nothing may turn up.
			top := t.TempDir()
			dir, tmp, tree := filepath.Join(top, "r"+evil), filepath.Join(top, "t"+evil), filepath.Join(top, "g"+evil)
			inner := "/sub" + evil
			for _, d := range []string{dir, tmp, filepath.Join(tree, inner)} {
				if err := os.MkdirAll(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			content := "one " + evil + "\nKAMI_END_OF_FILE\ntouch pwned\n" + evil
			o := Options{Tmp: tmp, Recipe: recipe.Recipe{
				Name: "evil", Dir: dir, Tree: inner, Script: "s" + evil, Bytes: 16 << 20, Kernel: "/k", Initrd: "/i",
				Files: []recipe.File{{Path: "/d" + evil + "/f" + evil, Source: "f" + evil, Mode: "0755"}, {Path: "/c" + evil, Content: content}},
			}}
			img := filepath.Join(tmp, "img")
			for path, data := range map[string]string{
				filepath.Join(dir, "s"+evil):       `echo ran >"$1/ran"`,
				filepath.Join(dir, "f"+evil):       "from a file",
				filepath.Join(tmp, "grub.cfg"):     "grub",
				filepath.Join(tmp, "customize.sh"): hookScript(o),
			} {
				if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := writeContents(o); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(scratchPath(o), 0o700); err != nil {
				t.Fatal(err)
			}
			f, err := os.Create(img)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			cmd := exec.CommandContext(t.Context(), "unshare", "--map-root-user", "--mount", "sh", filepath.Join(tmp, "customize.sh"), tree)
			cmd.Dir, cmd.ExtraFiles = top, []*os.File{f, f} // descriptors 3 and 4
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for path, want := range map[string]string{
				filepath.Join(tree, "ran"):                             "ran\n",
				filepath.Join(tree, inner, "d"+evil, "f"+evil):         "from a file",
				filepath.Join(tree, inner, "c"+evil):                   content + "\n",
				filepath.Join(tree, inner, "boot", "grub", "grub.cfg"): "grub",
				filepath.Join(tmp, "content-1"):                        content + "\n",
			} {
				if got, err := os.ReadFile(path); err != nil || string(got) != want {
					t.Errorf("%q holds %q, %v; want %q", path, got, err, want)
				}
			}
			if got := output(t, "/sbin/debugfs", "-R", "cat /boot/grub/grub.cfg", img); !strings.Contains(got, "grub") {
				t.Errorf("the file system holds %q, want grub", got)
			}
			names, err := os.ReadDir(top)
			if err != nil {
				t.Fatal(err)
			}
			if len(names) != 3 {
				t.Errorf("there are %v, want three folders and nothing that was made on the way", names)
			}
		})
	}
}

func TestQuote(t *testing.T) {
	for _, s := range []string{"", "a", "'", "''", `\'`, "a\nb", "$x`y`\"z\""} {
		if got := output(t, "sh", "-c", "printf %s "+quote(s)+"x"); got != s+"x" {
			t.Errorf("a shell makes %q of %s, want %q", got, quote(s), s+"x")
		}
	}
}

func TestGrubWord(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		"console=ttyS0,115200n8":  "console=ttyS0,115200n8",
		"/boot/vmlinuz-6.1+deb12": "/boot/vmlinuz-6.1+deb12",
		"ds=nocloud;s=/seed/":     "'ds=nocloud;s=/seed/'",
		"a|b":                     "'a|b'",
		"$root":                   "'$root'",
		"}":                       "'}'",
		"#x":                      "'#x'",
		"ü":                       "'ü'",
	} {
		if got := grubWord(in); got != want {
			t.Errorf("grubWord(%q) is %s, want %s", in, got, want)
		}
	}
}

// TestGRUBReadsTheConfiguration asks GRUB itself, with words that would end the
// entry, or begin another command, if they were not kept together.
func TestGRUBReadsTheConfiguration(t *testing.T) {
	for _, word := range []string{"quiet", "a;b", "}", "{", "a&b", "a|b", "a<b>c", "$x", "#x", "if", "(hd0)"} {
		o := Options{Recipe: recipe.Recipe{Name: "n", Kernel: "/boot/" + word, Initrd: "/boot/i" + word, Cmdline: "x " + word + " y"}}
		path := filepath.Join(t.TempDir(), "grub.cfg")
		cfg := grubConfig(o)
		if err := os.WriteFile(path, []byte(cfg), 0o600); err != nil {
			t.Fatal(err)
		}
		output(t, "grub-script-check", path)
		if got := strings.Count(cfg, "\n"); got != 8 {
			t.Errorf("%s: %d lines, want 8:\n%s", word, got, cfg)
		}
	}
}
