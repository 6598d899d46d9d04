package pvgrub

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// title is an entry of menu.lst: its name and the commands under it.
type title struct {
	name     string
	commands [][2]string // a command and what stands behind it
}

// menuLst is what menu.lst says before devices and files are looked for.
type menuLst struct {
	def      string // a number, or saved
	fallback []string
	groot    string // the device of Debian's comment, for entries without one
	titles   []title
}

// Words end at spaces; a backslash keeps the one behind it.
var (
	legacyWord = regexp.MustCompile(`(?:\\.|[^\s\\])+`)
	escape     = regexp.MustCompile(`\\(.)`)
)

// parseMenuLst reads the language of GRUB legacy: a command a line, those before
// the first title for all.
func parseMenuLst(b []byte) (menuLst, error) {
	m := menuLst{def: "0"}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if at, ok := strings.CutPrefix(line, "# groot="); ok {
			m.groot = strings.TrimSpace(at)
		}
		if line == "" || line[0] == '#' {
			continue
		}
		command, rest := line, ""
		if i := strings.IndexAny(line, " \t="); i >= 0 {
			command, rest = line[:i], strings.TrimLeft(line[i:], " \t=")
		}
		switch {
		case command == "title":
			if len(m.titles) == MaxEntries {
				return m, fmt.Errorf("%w: more than %d entries", ErrTooLarge, MaxEntries)
			}
			m.titles = append(m.titles, title{name: rest})
		case len(m.titles) > 0:
			t := &m.titles[len(m.titles)-1]
			t.commands = append(t.commands, [2]string{command, rest})
		case command == "default":
			m.def = rest
		case command == "fallback":
			m.fallback = strings.Fields(rest)
		}
	}
	return m, nil
}

func readMenuLst(ctx context.Context, d *disk, at place) (menu, error) {
	b, err := at.read(ctx, MaxConfig)
	if err != nil {
		return menu{}, err
	}
	m, err := parseMenuLst(b)
	if err != nil {
		return menu{}, err
	}
	if m.def == "saved" {
		m.def = savedNumber(ctx, at)
	}
	return m.menu(d, at), nil
}

// savedNumber is the entry that savedefault or grub-set-default wrote down.
func savedNumber(ctx context.Context, at place) string {
	b, err := place{at.on, path.Join(path.Dir(at.path), "default")}.read(ctx, 64<<10)
	line, _, _ := strings.Cut(string(b), "\n")
	if err != nil {
		return "0"
	}
	return strings.TrimSpace(line)
}

// menu puts the entries into order. Numbers of entries that are not there are
// passed over, as GRUB does.
func (m menuLst) menu(d *disk, at place) menu {
	var out menu
	taken := map[int]bool{}
	for i, number := range append([]string{m.def}, m.fallback...) {
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n >= len(m.titles) {
			if i == 0 && len(m.titles) > 0 {
				d.pass("%s: the default entry %q is not there", at, number)
			}
			continue
		}
		if !taken[n] {
			taken[n] = true
			out.first = append(out.first, m.titles[n].choice(d, at, m.groot))
		}
	}
	for n, t := range m.titles {
		if !taken[n] {
			out.rest = append(out.rest, t.choice(d, at, m.groot))
		}
	}
	return out
}

// choice follows the commands of an entry.
func (t title) choice(d *disk, at place, groot string) choice {
	const base = 0 // legacy counts partitions from 0 on
	c := choice{title: t.name, fault: errors.New("it names no kernel")}
	root := at.on
	take := func(err error) bool {
		if err != nil {
			c.fault = err
		}
		return err == nil
	}
	device := func(name string) bool {
		on, err := d.device(strings.Trim(name, "()"), at.on, base)
		root = on
		return take(err)
	}
	if groot != "" && strings.HasPrefix(groot, "(") {
		if on, err := d.device(strings.Trim(groot, "()"), at.on, base); err == nil {
			root = on
		}
	}
	for _, command := range t.commands {
		words := legacyWord.FindAllString(command[1], -1)
		for len(words) > 0 && strings.HasPrefix(words[0], "--") {
			words = words[1:] // --type=linux, --no-mem-option
		}
		if len(words) == 0 {
			continue
		}
		switch command[0] {
		case "root", "rootnoverify":
			if !device(words[0]) {
				return c
			}
		case "uuid":
			on := d.byUUID(words[0])
			if on == nil {
				c.fault = fmt.Errorf("no filesystem that can be read has the UUID %s", words[0])
				return c
			}
			root = on
		case "kernel":
			p, err := d.locate(unescape(words[0]), root, base)
			if !take(err) {
				return c
			}
			c.kernel, c.cmdline, c.fault = p, strings.Join(words[1:], " "), nil
		case "initrd":
			p, err := d.locate(unescape(words[0]), root, base)
			if !take(err) {
				return c
			}
			c.initrds = []place{p}
		case "module", "modulenounzip":
			c.fault = errors.New("it boots a hypervisor or a kernel with modules, not Linux")
			return c
		case "chainloader", "configfile":
			c.fault = fmt.Errorf("it goes on to another boot loader (%s)", command[0])
			return c
		}
	}
	return c
}

func unescape(s string) string { return escape.ReplaceAllString(s, "$1") }

// byUUID finds the filesystem that has the UUID, written in either case; nil.
func (d *disk) byUUID(uuid string) *volume {
	for _, v := range d.volumes {
		if uuid != "" && strings.EqualFold(v.fs.UUID(), uuid) {
			return v
		}
	}
	return nil
}

func (d *disk) byLabel(label string) *volume {
	for _, v := range d.volumes {
		if label != "" && v.fs.Label() == label {
			return v
		}
	}
	return nil
}
