package pvgrub

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

// volumes is a disk to run scripts on: an ext4 with a few files.
func volumes(t testing.TB) *disk {
	t.Helper()
	return opened(t, files(t))
}

func files(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(whole(t, "/boot/grub/grubenv", "@grubenv\nsaved_entry=one\n", "/boot/grub/empty", "", "/k", "@bzImage\n",
		"/boot/grub/more.cfg", "set more=yes\nmenuentry sourced {\n linux /k\n}\n",
		"/boot/loader/entries/a.conf", "title A\nlinux /k\noptions $x\n"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func opened(t testing.TB, img []byte) *disk {
	t.Helper()
	d, err := openDisk(t.Context(), bytes.NewReader(img), int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func evaluate(t testing.TB, d *disk, text string) (*script, menu, error) {
	t.Helper()
	at := place{d.volumes[0], "/boot/grub/grub.cfg"}
	s := newScript(d, at)
	list, err := parseScript(text)
	if err != nil {
		return s, menu{}, err
	}
	if _, err = s.run(t.Context(), list); err != nil && !errors.Is(err, errStop) {
		return s, menu{}, err
	}
	m, err := s.menu(t.Context(), at)
	return s, m, err
}

// TestScriptVariables: x is what it should be in the end.
func TestScriptVariables(t *testing.T) {
	d := volumes(t)
	for _, c := range []struct{ script, want string }{
		{`set x=plain`, "plain"},
		{`x=assigned`, "assigned"},
		{`set x="a b"; set x="$x c"`, "a b c"},
		{`set y=1; set x="${y}2$y"'$y'\$y`, "121$y$y"},
		{`set x="a\"b\\c\d"`, `a"b\c\d`},
		{"set x=a\\\nb", "ab"},
		{`set x=a#b # c`, "a#b"},
		{`if true; then set x=1; else set x=2; fi`, "1"},
		{`if false; then set x=1; elif true; then set x=2; else set x=3; fi`, "2"},
		{`if nothing_known; then set x=1; fi`, ""},
		{"if [ 1 = 1 ]\nthen\n set x=1\nfi", "1"},
		{`if [ a != a -o b = b ]; then set x=1; fi`, "1"},
		{`if [ a = a -a b = c ]; then set x=1; fi`, ""},
		{`if [ ! a = b ]; then set x=1; fi`, "1"},
		{`if [ ( a = b -o b = b ) -a a = a ]; then set x=1; fi`, "1"},
		{`if [ -z "$none" -a -n "z" ]; then set x=1; fi`, "1"},
		{`if [ "$none" ]; then set x=1; fi`, ""},
		{`if [ x$none = x ]; then set x=1; fi`, "1"},
		{`if [ 10 -gt 9 -a 2 -le 2 ]; then set x=1; fi`, "1"},
		{`if [ -s $prefix/grubenv -a -f /k -a -d /boot -a -e (hd0)/k ]; then set x=1; fi`, "1"},
		{`if [ -s $prefix/empty -o -f /boot -o -d /k -o -e (hd3)/k ]; then set x=1; fi`, ""},
		{`if test a = a; then set x=1; fi`, "1"},
		{`load_env; set x=$saved_entry`, "one"},
		{`load_env -f ${config_directory}/grubenv other; set x=$saved_entry`, ""},
		{`load_env --file (hd0)/boot/grub/none; set x=here`, "here"},
		{`set x=1; unset x`, ""},
		{`function f { set x=1; }; set x=2`, "2"},
		{`for i in 1 2; do set x=1; done; while true; do set x=3; done; set y=1`, ""},
		{`search --file --set=x /k`, "hd0"},
		{`search --set x --label root`, "hd0"},
		{`search.fs_label root x hd0`, "hd0"},
		{`if search --label none --set=x; then set x=2; fi`, ""},
		{`set root=hd0,gpt9; search -l root; set x=$root`, "hd0,gpt9"},
		{`set root=hd0,gpt9; search -l --set root; set x=$root`, "hd0"},
		{`search -s x -f /k`, "hd0"},
		{`source /boot/grub/more.cfg; set x=$more`, "yes"},
		{`source /none; set x=on`, "on"},
		{`set x=1; exit; set x=2`, "1"},
		{`set x=$"translated"`, "translated"},
		{"set x='a\nb'", "a\nb"},
		{`set x=100$`, "100$"},
	} {
		s, _, err := evaluate(t, d, c.script)
		if err != nil || s.env["x"] != c.want {
			t.Errorf("%s: got %q %v, want %q", c.script, s.env["x"], err, c.want)
		}
	}
}

// TestScriptMenu: what is tried first, and the others.
func TestScriptMenu(t *testing.T) {
	const entries = `
menuentry "One" --id one { linux /k one }
submenu 'More > less' --id more {
  menuentry Two --class x --id two { linux /k two; }
  submenu deeper { menuentry Three { linux /k three } }
}
menuentry Four --id=four { linux (hd0)/k four; initrd /k (hd0)/k }
`
	d := volumes(t)
	for _, c := range []struct{ script, want string }{
		{entries, "One | Two Three Four"},
		{"set default=2" + entries, "Four | One Two Three"},
		{"set default=four" + entries, "Four | One Two Three"},
		{"set default=One" + entries, "One | Two Three Four"},
		{"set default='1>1>0'" + entries, "Three | One Two Four"},
		{"set default='more>deeper>Three'" + entries, "Three | One Two Four"},
		{"set default='More >> less>Two'" + entries, "Two | One Three Four"},
		{"set default=1" + entries, "Two | One Three Four"},
		{"set default='1>9'" + entries, "Two | One Three Four"},
		{"set default='four>x'" + entries, "Four | One Two Three"},
		{"set default=99" + entries, "One | Two Three Four"},
		{"set default=2; set fallback='0 2 nothing more>1'" + entries, "Four One Three | Two"},
		{"set fallback='99'" + entries, "One | Two Three Four"},
		{"linux /k alone", "(hd0)/boot/grub/grub.cfg |"},
		{"linux /k alone\nboot" + entries, "(hd0)/boot/grub/grub.cfg |"},
		{"configfile /boot/grub/more.cfg" + entries, "sourced |"},
		{"source /boot/grub/more.cfg" + entries, "sourced | One Two Three Four"},
		{"set x=y; blscfg", "A |"},
		{"set blsdir=/boot; blscfg", "|"},
		{"", "|"},
	} {
		_, m, err := evaluate(t, d, c.script)
		var words []string
		for _, e := range m.first {
			words = append(words, e.title)
		}
		words = append(words, "|")
		for _, e := range m.rest {
			words = append(words, e.title)
		}
		if got := strings.Join(words, " "); err != nil || got != c.want {
			t.Errorf("%s: got %s %v, want %s", c.script, got, err, c.want)
		}
	}
}

func TestCmdline(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"root=/dev/vda", "ro"}, "root=/dev/vda ro"},
		{[]string{"dyndbg=file x +p"}, `"dyndbg=file x +p"`},
		{[]string{`a"b`, `c\d`}, `a\"b c\\d`},
	} {
		if got := cmdline(c.args); got != c.want {
			t.Errorf("%q: got %s, want %s", c.args, got, c.want)
		}
	}
}

// TestVersions is the order of the specification's examples.
func TestVersions(t *testing.T) {
	order := []string{
		"122.1", "123~rc1-1", "123", "123-a", "123-a.1", "123-1", "123-1.1", "123^post1", "123.a-1", "123.1-1", "123a-1", "124-1",
	}
	for i, a := range order {
		for j, b := range order {
			if got := compareVersions(a, b); got != min(1, max(-1, i-j)) {
				t.Errorf("%s and %s: got %d", a, b, got)
			}
		}
	}
	for _, same := range [][2]string{{"007", "7"}, {"", ""}, {"~", "~"}} {
		if got := compareVersions(same[0], same[1]); got != 0 {
			t.Errorf("%q and %q: got %d", same[0], same[1], got)
		}
	}
	if compareVersions("6.12.10", "6.12.9") != 1 || compareVersions("9", "10") != -1 {
		t.Error("numbers are compared as text")
	}
}

func TestEnv(t *testing.T) {
	got, err := parseEnv(content([]byte("@grubenv\n# a comment\nsaved_entry=a=b\nlong=one\\\ntwo\\\\\nempty=\nno value\n")))
	want := map[string]string{"saved_entry": "a=b", "long": "one\ntwo\\", "empty": ""}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %q %v, want %q", got, err, want)
	}
	if _, err := parseEnv([]byte("saved_entry=1\n")); err == nil {
		t.Error("took a file without its head")
	}
}

func TestBLS(t *testing.T) {
	e := parseBLS("x+3-1.conf", []byte("# c\ntitle\tA  B \nlinux /l\ninitrd /a /b\ninitrd /c\noptions a\noptions  b c\nunknown x\nlinux\n"))
	if e.id != "x" || e.tried || e.title != "A  B" || e.linux != "/l" || !slices.Equal(e.initrds, []string{"/a", "/b", "/c"}) || fmt.Sprint(e.options) != "[a b c]" {
		t.Errorf("got %+v", e)
	}
	list := []blsEntry{
		{id: "z-tried", sorted: "a", tried: true},
		{id: "b-1"},
		{id: "b-10"},
		{id: "b-9"},
		{id: "k1", sorted: "k", version: "1"},
		{id: "k2", sorted: "k", version: "2"},
		{id: "a", sorted: "a"},
	}
	slices.SortFunc(list, inOrder)
	var ids []string
	for _, e := range list {
		ids = append(ids, e.id)
	}
	if got, want := strings.Join(ids, " "), "a k2 k1 b-10 b-9 b-1 z-tried"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzGrubCfg(f *testing.F) {
	img := files(f)
	for _, s := range []string{
		"set default=\"${saved_entry}\"\nmenuentry 'a' $id --class b {\n\tlinux\t/k ro\n\tinitrd /k\n}\n",
		"if [ -s $prefix/grubenv ]; then load_env; elif [ \"$a\" = 1 -a ! ( b ) ]; then source $prefix/more.cfg; else blscfg; fi",
		"submenu x { menuentry y { search --no-floppy --fs-uuid --set=root u; linux16 ($root)/k \"a b\" } }\nset fallback='0 1>0'",
		"function f { x; }\nfor a in b; do c; done\nset a=$a$a$a; a=${b}\\\n'c'",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d := opened(t, img)
		s, m, err := evaluate(t, d, text)
		if err == nil {
			d.entries(t.Context(), place{d.volumes[0], "/x"}, m)
		}
		if len(s.env) > maxEnv+20 || *s.count > 2*MaxEntries {
			t.Errorf("%d variables and %d entries", len(s.env), *s.count)
		}
	})
}

func FuzzMenuLst(f *testing.F) {
	img := files(f)
	f.Add("default saved\nfallback 1 2\n# groot=(hd0,0)\ntitle a\nroot (hd0,0)\nkernel --type=linux /k a\\ b\ninitrd (hd0)/k\n")
	f.Add("default=1\ntitle a\nuuid x\nkernel /k\nmodule /m\ntitle\nrootnoverify (hd0,1)\nchainloader +1\n")
	f.Fuzz(func(t *testing.T, text string) {
		d := opened(t, img)
		m, err := parseMenuLst([]byte(text))
		if err == nil {
			at := place{d.volumes[0], "/x"}
			d.entries(t.Context(), at, m.menu(d, at))
		}
	})
}

func FuzzBLS(f *testing.F) {
	img := files(f)
	f.Add("a+1-2.conf", "title A\nversion 1~2\nlinux /k\ninitrd /a $b\noptions ${c} $d\n", "x", "y")
	f.Fuzz(func(t *testing.T, name, text, a, b string) {
		d := opened(t, img)
		e := parseBLS(name, []byte(text))
		e.choice(d.volumes[0], map[string]string{"b": a, "c": b}).open(t.Context())
		if x, y := compareVersions(a, b), compareVersions(b, a); x != -y {
			t.Errorf("%q and %q: %d and %d", a, b, x, y)
		}
	})
}

// FuzzEnv: what was written is read back.
func FuzzEnv(f *testing.F) {
	f.Add("saved_entry", "a\\b\nc", []byte("# GRUB Environment Block\na=b\\"))
	f.Fuzz(func(t *testing.T, name, value string, raw []byte) {
		parseEnv(raw)
		if name == "" || strings.ContainsAny(name, "=\\\n#") {
			return
		}
		text := envHead + name + "=" + strings.NewReplacer("\\", "\\\\", "\n", "\\\n").Replace(value) + "\n####"
		got, err := parseEnv([]byte(text))
		if err != nil || got[name] != value {
			t.Errorf("%q: got %q %v, want %q", name, got[name], err, value)
		}
	})
}
