package pvgrub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

// blsEntry is an entry of the Boot Loader Specification (uapi-group.org): a small
// file for each system, type 1.
type blsEntry struct {
	id                              string // the file's name without .conf and without tries
	tried                           bool   // no tries are left
	title, version, machine, sorted string
	linux                           string
	initrds, options                []string
}

// triesLeft is how boot counting marks a file: name+LEFT or name+LEFT-DONE.
var triesLeft = regexp.MustCompile(`\+(\d+)(-\d+)?$`)

func parseBLS(name string, b []byte) blsEntry {
	e := blsEntry{id: strings.TrimSuffix(name, ".conf")}
	if m := triesLeft.FindStringSubmatch(e.id); m != nil {
		e.id, e.tried = strings.TrimSuffix(e.id, m[0]), strings.Trim(m[1], "0") == ""
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		i := strings.IndexAny(line, " \t")
		if i < 0 || line[0] == '#' {
			continue
		}
		key, value := line[:i], strings.TrimSpace(line[i:])
		switch key {
		case "title":
			e.title = value
		case "version":
			e.version = value
		case "machine-id":
			e.machine = value
		case "sort-key":
			e.sorted = value
		case "linux":
			e.linux = value
		case "initrd":
			e.initrds = append(e.initrds, strings.Fields(value)...)
		case "options":
			e.options = append(e.options, value)
		}
	}
	return e
}

// readBLS reads the entries in a directory. fs.ErrNotExist.
func readBLS(ctx context.Context, d *disk, dir place) ([]blsEntry, error) {
	const maxEntry = 64 << 10
	names, err := dir.on.fs.ReadDir(ctx, dir.path)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(s string) bool { return !strings.HasSuffix(s, ".conf") })
	if len(names) > MaxEntries {
		return nil, fmt.Errorf("%w: more than %d entries in %s", ErrTooLarge, MaxEntries, dir)
	}
	slices.Sort(names)
	var out []blsEntry
	for _, name := range names {
		b, err := place{dir.on, path.Join(dir.path, name)}.read(ctx, maxEntry)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			d.pass("%s: %v", dir.on.device(), err)
			continue
		}
		e := parseBLS(name, b)
		if e.linux == "" {
			d.pass("%s/%s names no kernel", dir, name)
			continue
		}
		out = append(out, e)
	}
	return out, nil
}

// inGRUBsOrder sorts as blscfg does: by the file's name, the newest first.
func inGRUBsOrder(a, b blsEntry) int { return compareVersions(b.id, a.id) }

// inOrder sorts as the specification says: those with a sort key first, by it and
// the machine, and then the newest version first.
func inOrder(a, b blsEntry) int {
	order := cmp.Or(boolCompare(a.tried, b.tried), boolCompare(a.sorted == "", b.sorted == ""))
	if a.sorted != "" && order == 0 {
		order = cmp.Or(cmp.Compare(a.sorted, b.sorted), cmp.Compare(a.machine, b.machine), compareVersions(b.version, a.version))
	}
	return cmp.Or(order, compareVersions(b.id, a.id))
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// choice is the entry with the variables of GRUB's environment put in.
func (e blsEntry) choice(root *volume, env map[string]string) choice {
	left := 64 << 10 // bytes of values: one may be long, and named often
	expand := func(s string) string {
		return os.Expand(s, func(name string) string {
			if left -= len(env[name]); left < 0 {
				return ""
			}
			return env[name]
		})
	}
	c := choice{title: cmp.Or(e.title, e.id), kernel: place{root, strings.TrimSpace(expand(e.linux))}}
	options := strings.Join(e.options, " ")
	if options == "" {
		options = env["default_kernelopts"]
	}
	c.cmdline = strings.Join(strings.Fields(expand(options)), " ")
	for _, i := range e.initrds {
		for _, p := range strings.Fields(expand(i)) {
			c.initrds = append(c.initrds, place{root, p})
		}
	}
	return c
}

// blscfg puts the entries into the menu of grub.cfg.
func (s *script) blscfg(ctx context.Context, args []string) error {
	root, err := s.d.device(s.env["root"], s.home, 1)
	if err != nil {
		s.d.pass("blscfg: %v", err)
		return nil
	}
	dirs := []string{"/loader/entries", "/boot/loader/entries"}
	if dir := s.env["blsdir"]; dir != "" {
		dirs = []string{dir}
	}
	for i, a := range args {
		if (a == "--path" || a == "-p") && i+1 < len(args) {
			dirs = []string{args[i+1]}
		}
	}
	for _, dir := range dirs {
		at, err := s.d.locate(dir, root, 1)
		if err != nil {
			s.d.pass("blscfg: %v", err)
			continue
		}
		entries, err := readBLS(ctx, s.d, at)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
			continue
		}
		if err != nil {
			return err
		}
		slices.SortStableFunc(entries, inGRUBsOrder)
		if *s.count += len(entries); *s.count > MaxEntries {
			return fmt.Errorf("%w: more than %d entries", ErrTooLarge, MaxEntries)
		}
		for _, e := range entries {
			c := e.choice(root, s.env)
			s.items = append(s.items, item{id: e.id, title: c.title, entry: &c})
		}
		return nil
	}
	s.d.pass("blscfg: no entries in %s on %s", strings.Join(dirs, " or "), root.device())
	return nil
}

// readLoader reads entries that no grub.cfg leads to, as systemd-boot does.
func readLoader(ctx context.Context, d *disk, dir place) (menu, error) {
	entries, err := readBLS(ctx, d, dir)
	if err != nil {
		return menu{}, err
	}
	slices.SortStableFunc(entries, inOrder)
	env := map[string]string{}
	for _, p := range []string{"/boot/grub2/grubenv", "/grub2/grubenv", "/boot/grub/grubenv", "/grub/grubenv"} {
		b, err := place{dir.on, p}.read(ctx, 64<<10)
		if err != nil {
			continue
		}
		if env, err = parseEnv(b); err == nil {
			break
		}
	}
	def := -1
	if saved := env["saved_entry"]; saved != "" {
		def = slices.IndexFunc(entries, func(e blsEntry) bool { return e.id == saved })
		if def < 0 {
			d.pass("%s: the saved entry %q is not there", dir, saved)
		}
	}
	if pattern := loaderDefault(ctx, dir); def < 0 && pattern != "" {
		def = slices.IndexFunc(entries, func(e blsEntry) bool { return globs(pattern, e.id) || globs(pattern, e.id+".conf") })
		if def < 0 {
			d.pass("%s: loader.conf's default %q is no entry's name", dir, pattern)
		}
	}
	if def > 0 {
		e := entries[def]
		entries = slices.Insert(slices.Delete(entries, def, def+1), 0, e)
	}
	var out menu
	for i, e := range entries {
		c := e.choice(dir.on, env)
		c.moveUnderBoot(ctx, dir)
		if i == 0 {
			out.first = append(out.first, c)
		} else {
			out.rest = append(out.rest, c)
		}
	}
	return out, nil
}

func globs(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

// loaderDefault is the default line of loader.conf: a pattern of names.
func loaderDefault(ctx context.Context, dir place) string {
	b, err := place{dir.on, path.Join(path.Dir(dir.path), "loader.conf")}.read(ctx, 64<<10)
	if err != nil {
		return ""
	}
	pattern := ""
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "default" && !strings.HasPrefix(f[1], "@") {
			pattern = f[1]
		}
	}
	return pattern
}

// moveUnderBoot puts /boot before the paths of an entry that were written as if
// /boot were a partition of its own, where it is none.
func (c *choice) moveUnderBoot(ctx context.Context, dir place) {
	if !strings.HasPrefix(dir.path, "/boot/") {
		return
	}
	if there, err := exists(ctx, c.kernel, "-f"); there || err != nil {
		return
	}
	c.kernel.path = "/boot/" + strings.TrimPrefix(c.kernel.path, "/")
	for i := range c.initrds {
		c.initrds[i].path = "/boot/" + strings.TrimPrefix(c.initrds[i].path, "/")
	}
}
