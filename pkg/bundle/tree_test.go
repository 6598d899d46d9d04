package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/ami"
)

// someTree is a folder with files in which something can change.
func someTree(t *testing.T) string {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"a/first": "1", "a/b/inner": strings.Repeat("i", 10_000), "a/c": "c", "z/last": strings.Repeat("z", 5000),
	} {
		must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o640))
	}
	return dir
}

// TestATreeThatChanges: what is not any more what was seen is named, and nothing
// from outside of the tree gets in.
func TestATreeThatChanges(t *testing.T) {
	outside := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(outside, "b"), 0o755))
	must(t, os.WriteFile(filepath.Join(outside, "b/inner"), bytes.Repeat([]byte("i"), 10_000), 0o640))
	for name, c := range map[string]struct {
		file   string
		change func(dir string) error
	}{
		"shorter": {"z/last", func(dir string) error { return os.Truncate(filepath.Join(dir, "z/last"), 4000) }},
		"longer":  {"z/last", func(dir string) error { return os.Truncate(filepath.Join(dir, "z/last"), 6000) }},
		"written, with its old time": {"a/c", func(dir string) error {
			file := filepath.Join(dir, "a/c")
			var old, now unix.Stat_t
			if err := unix.Stat(file, &old); err != nil {
				return err
			}
			for now = old; now.Ctim == old.Ctim; { // until the kernel's clock has gone on
				if err := errors.Join(os.WriteFile(file, []byte("C"), 0o640), unix.Stat(file, &now)); err != nil {
					return err
				}
			}
			return os.Chtimes(file, time.Time{}, time.Unix(old.Mtim.Unix()))
		}},
		"another": {"a/first", func(dir string) error {
			file := filepath.Join(dir, "a/first")
			return errors.Join(os.WriteFile(file+".new", []byte("2"), 0o640), os.Rename(file+".new", file))
		}},
		"gone": {"a/b/inner", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "a/b")) }},
		"a link": {"a/c", func(dir string) error {
			file := filepath.Join(dir, "a/c")
			return errors.Join(os.Remove(file), os.Symlink("/etc/passwd", file))
		}},
		"a pipe": {"a/c", func(dir string) error {
			file := filepath.Join(dir, "a/c")
			return errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600))
		}},
		"a folder that is a link": {"a/b/inner", func(dir string) error {
			file := filepath.Join(dir, "a/b")
			return errors.Join(os.Rename(file, file+".old"), os.Symlink(filepath.Join(outside, "b"), file))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := someTree(t)
			tpl, err := openTemplate(t, TemplateInput{Path: dir})
			must(t, err)
			must(t, c.change(dir))
			_, _, err = Create(t.Context(), CreateInput{
				Store: newStore(t), Location: "b/n", Source: tpl.Source, Manifest: testManifest(), Progress: ami.NoProgress,
			})
			if !errors.Is(err, ErrTemplate) || !strings.Contains(err.Error(), filepath.Join(dir, c.file)) {
				t.Errorf("got %v, want it to name %s", err, c.file)
			}
		})
	}
}

// TestATreeAsItIs: what a folder's files are beside what is in them.
func TestATreeAsItIs(t *testing.T) {
	dir := someTree(t)
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	must(t, err)
	_, err = sparse.WriteAt([]byte("in the middle"), 30<<20)
	must(t, errors.Join(err, sparse.Truncate(1<<30), sparse.Close()))
	must(t, unix.Setxattr(filepath.Join(dir, "a/c"), "user.kami", []byte("x"), 0))
	must(t, os.Symlink(strings.Repeat("l", 100), filepath.Join(dir, "link")))
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	must(t, os.Link(filepath.Join(dir, "a/c"), filepath.Join(dir, "z/c")))
	must(t, os.Link(filepath.Join(dir, "link"), filepath.Join(dir, "z/link")))
	var first []byte
	for range 2 {
		tpl, err := openTemplate(t, TemplateInput{Path: dir})
		must(t, err)
		img := rawOf(t, tpl.Source)
		sound(t, img)
		for name, want := range map[string]string{
			"/a/c":    `Links: 2 [\s\S]*user.kami \(1\) = "x"`,
			"/link":   `Type: symlink[\s\S]*Size: 100\n[\s\S]*Links: 2 `,
			"/pipe":   `Type: FIFO    Mode:  0600`,
			"/sparse": `Size: 1073741824\n[\s\S]*Blockcount: 8\n`,
			"/a/b":    `Type: directory    Mode:  0755`,
			"/":       `User:     0   Group:     0 `,
		} {
			if got := debug(t, img, "stat "+name); !regexp.MustCompile(want).MatchString(got) {
				t.Errorf("%s: got\n%s\nwant %s", name, got, want)
			}
		}
		if got := debug(t, img, "cat /a/b/inner"); !strings.Contains(got, strings.Repeat("i", 10_000)) {
			t.Errorf("got %d bytes", len(got))
		}
		got := readAll(t, img)
		if first != nil && !bytes.Equal(got, first) {
			t.Error("the same tree became another image")
		}
		first = got
	}
}

// TestATreeInPieces: a tar and a folder of the same files are the same image.
func TestATreeInPieces(t *testing.T) {
	dir := t.TempDir()
	in := []member{folder("a/"), regular("a/b", strings.Repeat("content", 2000)), folder("z/"), regular("z/y", "y")}
	when := time.Unix(1_600_000_000, 0)
	for _, m := range in {
		to := filepath.Join(dir, m.Name)
		if strings.HasSuffix(m.Name, "/") {
			must(t, os.Mkdir(to, 0o755))
		} else {
			must(t, os.WriteFile(to, []byte(m.content), 0o644))
		}
	}
	for _, m := range in {
		must(t, os.Chtimes(filepath.Join(dir, m.Name), when, when))
	}
	for i := range in {
		in[i].Uid, in[i].Gid = os.Getuid(), os.Getgid()
	}
	var got [2][]byte
	for i, path := range []string{dir, writeFile(t, "t.tar", tarOf(t, in...))} {
		tpl, err := openTemplate(t, TemplateInput{Path: path, Size: 64 << 20})
		must(t, err)
		got[i], err = io.ReadAll(io.NewSectionReader(tpl.Source, 0, tpl.Source.Size()))
		must(t, err)
	}
	if !bytes.Equal(got[0], got[1]) {
		t.Error("they are not")
	}
}

func TestAWalkEnds(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	stop()
	_, err := OpenTemplate(ctx, TemplateInput{Path: someTree(t), Kind: KindFolder, Name: "n", Tmp: t.TempDir(), Progress: ami.NoProgress})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestNamesElsewhere: files that have names outside of the tree, too, count as a whole.
func TestNamesElsewhere(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	name := filepath.Join(root, "file")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 9 {
		must(t, os.Link(name, filepath.Join(outside, fmt.Sprint(i))))
	}
	must(t, os.Link(name, filepath.Join(root, "again")))
	f, err := Filter{}.compile()
	must(t, err)
	tr := &tree{root: root}
	must(t, tr.visit(t.Context(), f, func(*place) error { return nil }))
	if want := int64(1<<20 + 4096); tr.bytes != want {
		t.Errorf("got %d bytes, want %d", tr.bytes, want)
	}
}
