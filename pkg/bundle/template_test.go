package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/qcow2"
)

// member is one of a tar's.
type member struct {
	tar.Header
	content string
}

func regular(name, content string) member {
	return member{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1_600_000_000, 0)}, content}
}

func link(kind byte, name, to string) member {
	return member{tar.Header{Name: name, Typeflag: kind, Linkname: to, Mode: 0o777}, ""}
}

func folder(name string) member {
	return member{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1_600_000_000, 0)}, ""}
}

func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeFile(t testing.TB, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// openTemplate opens one and returns the file that its blob is in, if it is one.
func openTemplate(t testing.TB, in TemplateInput) (*Template, error) {
	t.Helper()
	if in.Tmp == "" {
		in.Tmp = t.TempDir()
	}
	if in.Name == "" {
		in.Name = "test"
	}
	in.Progress = ami.NoProgress
	tpl, err := OpenTemplate(t.Context(), in)
	if err == nil {
		t.Cleanup(func() { tpl.Close() })
	}
	return tpl, err
}

// rawOf writes a blob to a file.
func rawOf(t testing.TB, src qcow2.Source) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := qcow2.WriteRaw(context.Background(), f, src, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func debug(t testing.TB, img, command string) string {
	t.Helper()
	out, err := exec.CommandContext(context.Background(), "/sbin/debugfs", "-R", command, img).CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs: %v", err)
	}
	return string(out)
}

// sound runs e2fsck over a filesystem.
func sound(t testing.TB, img string) {
	t.Helper()
	if out, err := exec.CommandContext(context.Background(), "/sbin/e2fsck", "-fn", img).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

func rich() []member {
	owned := regular("./srv/owned", "x")
	owned.Uid, owned.Gid, owned.Mode = 70000, 100, 0o4751
	capable := regular("usr/bin/ping", strings.Repeat("p", 5000))
	capable.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	capable.Format = tar.FormatPAX
	late := regular("opt/late", "year 2040")
	late.ModTime = time.Unix(2_200_000_000, 0)
	return []member{
		folder("./"), folder("srv/"), owned, capable, late,
		link(tar.TypeLink, "usr/bin/ping6", "usr/bin/ping"),
		link(tar.TypeSymlink, "vmlinuz", "/boot/vmlinuz-1"),
		link(tar.TypeSymlink, "up", "../../../etc/passwd"),
		{tar.Header{Name: "srv/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}, ""},
		{tar.Header{Name: "srv/big dev", Typeflag: tar.TypeBlock, Mode: 0o660, Gid: 6, Devmajor: 259, Devminor: 70000}, ""},
		{tar.Header{Name: "run/pipe", Typeflag: tar.TypeFifo, Mode: 0o600}, ""},
		regular("etc/passwd", "root:x:0:0::/root:/bin/sh\n"), regular("etc/passwd", "the second one counts\n"),
		regular("srv/new\nline \"and\" quotes", "n"), regular("+before the root's dot", "b"),
		regular("tmp/junk", "j"), regular("root/.ssh/authorized_keys", "k"), regular("root/.bash_history", "h"),
		regular("etc/ssl/private/key.pem", "-----BEGIN PRIVATE KEY-----\n"), regular("etc/ssl/certs/ca.pem", "-----BEGIN CERTIFICATE-----\n"),
		regular("home/a/.ssh/id_rsa", "k"), regular("usr/share/keyrings/d.gpg", "\x99\x02\x0d"), regular("root/secret.gpg", "\x95\x01"),
	}
}

func TestTarBecomesAFilesystem(t *testing.T) {
	for name, pack := range map[string]func([]byte) []byte{
		"tar": func(b []byte) []byte { return b },
		"tar.gz": func(b []byte) []byte {
			var out bytes.Buffer
			w := gzip.NewWriter(&out)
			w.Write(b)
			w.Close()
			return out.Bytes()
		},
		"tar.zst": func(b []byte) []byte {
			w, _ := zstd.NewWriter(nil)
			return w.EncodeAll(b, nil)
		},
		"tar.xz": func(b []byte) []byte {
			var out bytes.Buffer
			w, _ := xz.NewWriter(&out)
			w.Write(b)
			w.Close()
			return out.Bytes()
		},
	} {
		t.Run(name, func(t *testing.T) {
			tpl, err := openTemplate(t, TemplateInput{Path: writeFile(t, "root."+name, pack(tarOf(t, rich()...)))})
			must(t, err)
			if tpl.Kind != KindTar || tpl.Partition != PartitionNone {
				t.Errorf("got %s, %s", tpl.Kind, tpl.Partition)
			}
			img := rawOf(t, tpl.Source)
			sound(t, img)
			for path, want := range map[string]string{
				"/srv/owned":                 `Mode:  04751[\s\S]*User: 70000   Group:   100 [\s\S]*Size: 1\n[\s\S]*mtime: 0x5f5e1000:00000000`,
				"/usr/bin/ping":              `Links: 2 [\s\S]*security.capability \(20\)`,
				"/usr/bin/ping6":             `Links: 2 `,
				"/vmlinuz":                   `Type: symlink[\s\S]*Fast link dest: "/boot/vmlinuz-1"`,
				`"/+before the root's dot"`:  `Size: 1\n`,
				"/up":                        `Fast link dest: "../../../etc/passwd"`,
				"/srv/null":                  `Type: character special    Mode:  0666[\s\S]*major/minor number: 01:03`,
				`"/srv/big dev"`:             `Type: block special    Mode:  0660[\s\S]*Group:     6 [\s\S]*major/minor number: 259:70000`,
				"/run/pipe":                  `Type: FIFO`,
				"/etc/passwd":                `Size: 22\n`,
				"/opt/late":                  `mtime: 0x83215600:00000001`,
				"/tmp":                       `Type: directory    Mode:  01777`,
				"/tmp/junk":                  `not found`,
				"/root/.ssh/authorized_keys": `not found`,
				"/root/.bash_history":        `not found`,
				"/etc/ssl/private/key.pem":   `not found`,
				"/etc/ssl/certs/ca.pem":      `Type: regular`,
				"/home/a/.ssh/id_rsa":        `not found`,
				"/usr/share/keyrings/d.gpg":  `Type: regular`,
				"/root/secret.gpg":           `not found`,
				"/":                          `Type: directory    Mode:  0755[\s\S]*User:     0   Group:     0`,
			} {
				if got := debug(t, img, "stat "+path); !regexp.MustCompile(want).MatchString(got) {
					t.Errorf("%s: got\n%s\nwant %s", path, got, want)
				}
			}
			if tpl.Left.Files != 6 {
				t.Errorf("got %+v left out, want 6 files", tpl.Left)
			}
		})
	}
}

// TestTheSameTreeIsTheSameImage: as a tar and as a folder, now and later.
func TestTheSameTreeIsTheSameImage(t *testing.T) {
	in := []member{folder("a/"), regular("a/b", "content"), link(tar.TypeSymlink, "c", "a/b")}
	path := writeFile(t, "root.tar", tarOf(t, in...))
	var first []byte
	for range 2 {
		tpl, err := openTemplate(t, TemplateInput{Path: path})
		must(t, err)
		got := readAll(t, rawOf(t, tpl.Source))
		if first == nil {
			first = got
		} else if !bytes.Equal(got, first) {
			t.Error("the same tar became another image")
		}
	}
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"etc/hostname": "h\n", "usr/lib/x": "x", "dev/keep": "d"} {
		must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o640))
	}
	must(t, os.Link(filepath.Join(dir, "usr/lib/x"), filepath.Join(dir, "usr/lib/y")))
	must(t, os.Symlink("/usr/lib", filepath.Join(dir, "lib")))
	must(t, os.Chtimes(filepath.Join(dir, "etc/hostname"), time.Unix(1_500_000_000, 5), time.Unix(1_500_000_000, 5)))
	for name, f := range map[string]Filter{"as it is": {Off: true}, "filtered": {}, "included": {Include: []string{"/dev/keep"}}, "excluded": {Exclude: []string{"/usr/lib"}}} {
		t.Run(name, func(t *testing.T) {
			tpl, err := openTemplate(t, TemplateInput{Path: dir, Filter: f, Size: 64 << 20})
			must(t, err)
			img := rawOf(t, tpl.Source)
			sound(t, img)
			if got := debug(t, img, "stat /etc/hostname"); !strings.Contains(got, "Mode:  0640") || !strings.Contains(got, "mtime: 0x59682f00") || !strings.Contains(got, "crtime: 0x59682f00") {
				t.Errorf("got\n%s", got)
			}
			if got, want := strings.Contains(debug(t, img, "stat /dev/keep"), "regular"), name != "filtered" && name != "excluded"; got != want {
				t.Errorf("dev/keep: got %v, want %v", got, want)
			}
			if got, want := strings.Contains(debug(t, img, "stat /usr/lib/y"), "Links: 2"), name != "excluded"; got != want {
				t.Errorf("usr/lib/y: got %v, want %v", got, want)
			}
			for dir, mode := range map[string]string{"/dev": "0755", "/tmp": "01777", "/proc": "0755"} {
				if got := debug(t, img, "stat "+dir); !strings.Contains(got, "directory    Mode:  "+mode) {
					t.Errorf("%s: got\n%s", dir, got)
				}
			}
		})
	}
}

func TestScript(t *testing.T) {
	script := writeFile(t, "hook", []byte("#!/bin/sh\nset -e\ncd $1\necho new >etc/new\nchmod 700 etc/new\nrm -r gone\necho more >>etc/kept\nmkdir -m 750 d\nln -s x s\n"))
	must(t, os.Chmod(script, 0o700))
	kept := regular("etc/kept", "k")
	kept.Uid = 33
	tpl, err := openTemplate(t, TemplateInput{Path: writeFile(t, "t.tar", tarOf(t, kept, regular("gone/x", "g"))), Script: script})
	must(t, err)
	img := rawOf(t, tpl.Source)
	sound(t, img)
	for path, want := range map[string]string{
		"/etc/new": `Mode:  0700[\s\S]*User:     0 `, "/etc/kept": `Mode:  0644[\s\S]*User:    33 [\s\S]*Size: 6\n`, "/gone": "not found", "/d": "Mode:  0750", "/s": "symlink",
	} {
		if got := debug(t, img, "stat "+path); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s: got\n%s\nwant %s", path, got, want)
		}
	}
	must(t, os.WriteFile(script, []byte("#!/bin/sh\necho why; exit 3\n"), 0o700))
	if _, err := openTemplate(t, TemplateInput{Path: writeFile(t, "t.tar", tarOf(t, kept)), Script: script}); !errors.Is(err, ErrTemplate) || !strings.Contains(err.Error(), "why") {
		t.Errorf("got %v", err)
	}
}

// TestHostileTars: none of these becomes a filesystem, and none writes anything
// outside of its own folder.
func TestHostileTars(t *testing.T) {
	large := tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1 << 40}
	var bomb bytes.Buffer
	tw := tar.NewWriter(&bomb)
	must(t, tw.WriteHeader(&large)) // without its content
	many := tar.Header{Name: "x", Typeflag: tar.TypeReg, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("v", 5000)}}
	for name, in := range map[string][]byte{
		"climbs":               tarOf(t, regular("../out", "x")),
		"climbs in the middle": tarOf(t, regular("a/../../out", "x")),
		"absolute":             tarOf(t, regular("/tmp/out", "x")),
		"through a link":       tarOf(t, link(tar.TypeSymlink, "a", "/tmp"), regular("a/out", "x")),
		"through a link up":    tarOf(t, link(tar.TypeSymlink, "a", ".."), regular("a/out", "x")),
		"link to outside":      tarOf(t, link(tar.TypeLink, "a", "../../etc/passwd")),
		"link to absolute":     tarOf(t, link(tar.TypeLink, "a", "/etc/passwd")),
		"link to nothing":      tarOf(t, link(tar.TypeLink, "a", "etc/passwd")),
		"link to a folder":     tarOf(t, folder("d"), link(tar.TypeLink, "a", "d")),
		"under a file":         tarOf(t, regular("a", "x"), regular("a/b", "x")),
		"file for a folder":    tarOf(t, regular("a/b", "x"), regular("a", "x")),
		"too large":            bomb.Bytes(),
		"cut off":              tarOf(t, regular("a", strings.Repeat("x", 5000)))[:3000],
		"attributes":           tarOf(t, member{many, ""}),
		"empty":                tarOf(t),
		"no tar":               bytes.Repeat([]byte("x"), 2048),
		"the root is a file":   tarOf(t, regular(".", "x")),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := openTemplate(t, TemplateInput{Path: writeFile(t, "root.tar", in), Kind: KindTar})
			if !errors.Is(err, ErrTemplate) {
				t.Errorf("got %v, want ErrTemplate", err)
			}
			if _, err := os.Lstat("/tmp/out"); err == nil {
				t.Error("it wrote outside")
			}
		})
	}
}

// TestADecompressionBombEnds: a stream that never ends is left before the disk is
// full of it.
func TestADecompressionBombEnds(t *testing.T) {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	must(t, err)
	tw := tar.NewWriter(w)
	zeros := make([]byte, 1<<20)
	for i := range 40 {
		must(t, tw.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeReg, Mode: 0o600, Size: 1 << 20}))
		_, err := tw.Write(zeros)
		must(t, err)
	}
	must(t, tw.Close())
	must(t, w.Close())
	_, err = openTemplate(t, TemplateInput{Path: writeFile(t, "b.tar.zst", b.Bytes()), Size: 16 << 20})
	if !errors.Is(err, ErrTemplate) || !strings.Contains(err.Error(), "16777216") {
		t.Errorf("got %v", err)
	}
}
