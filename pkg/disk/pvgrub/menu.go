package pvgrub

import (
	"context"
	"errors"
	"strconv"
	"strings"
)

// menu puts the script's entries into the order in which they are to be tried.
func (s *script) menu(ctx context.Context, at place) (menu, error) {
	var out menu
	if s.now || len(s.items) == 0 && s.boot != nil {
		c := *s.boot
		c.title = at.String()
		out.first = append(out.first, c)
	}
	taken := map[*item]bool{}
	add := func(list *[]choice, it *item) error {
		if it == nil || taken[it] {
			return nil
		}
		taken[it] = true
		c, err := s.choice(ctx, it)
		*list = append(*list, c)
		return err
	}
	def := s.env["default"]
	it := pick(s.items, def)
	if it == nil && len(s.items) > 0 {
		if def != "" {
			s.d.pass("%s: the default entry %q is not there, so it is the first", at, def)
		}
		it = first(s.items)
	}
	if err := add(&out.first, it); err != nil {
		return out, err
	}
	for _, name := range strings.Fields(s.env["fallback"]) {
		if err := add(&out.first, pick(s.items, name)); err != nil {
			return out, err
		}
	}
	var rest func(items []item) error
	rest = func(items []item) error {
		for i := range items {
			if items[i].isSubmenu {
				if err := rest(items[i].submenu); err != nil {
					return err
				}
				continue
			}
			if err := add(&out.rest, &items[i]); err != nil {
				return err
			}
		}
		return nil
	}
	return out, rest(s.items)
}

// choice runs an entry's commands.
func (s *script) choice(ctx context.Context, it *item) (choice, error) {
	if it.entry != nil {
		return *it.entry, nil
	}
	f := s.fork()
	for i, a := range it.args {
		f.env[strconv.Itoa(i)] = a
	}
	f.env["chosen"] = it.title
	_, err := f.run(ctx, it.block)
	if ctx.Err() != nil {
		return choice{}, ctx.Err()
	}
	if err != nil && !errors.Is(err, errStop) {
		return choice{title: it.title, fault: err}, nil
	}
	if f.boot == nil {
		return choice{title: it.title, fault: errors.New("it names no kernel")}, nil
	}
	c := *f.boot
	c.title = it.title
	return c, nil
}

// pick finds an entry by its number, its id or its title; of a submenu, behind
// the submenu's and a >. nil when there is none.
func pick(items []item, name string) *item {
	const mark = "\x00" // >> is a > of a title
	var found *item
	for part := range strings.SplitSeq(strings.ReplaceAll(name, ">>", mark), ">") {
		part = strings.ReplaceAll(part, mark, ">")
		if found != nil {
			if !found.isSubmenu {
				return found
			}
			items = found.submenu
		}
		next := one(items, part)
		if next == nil {
			if found == nil {
				return nil
			}
			break
		}
		found = next
	}
	if found.isSubmenu {
		return first(found.submenu)
	}
	return found
}

func one(items []item, name string) *item {
	if name == "" {
		return nil
	}
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		if int(n) < len(items) {
			return &items[n]
		}
		return nil
	}
	for i := range items {
		if items[i].id == name || items[i].title == name {
			return &items[i]
		}
	}
	return nil
}

// first is the first entry of a menu, which may be in a submenu; nil.
func first(items []item) *item {
	for i := range items {
		it := &items[i]
		if it.isSubmenu {
			it = first(it.submenu)
		}
		if it != nil {
			return it
		}
	}
	return nil
}
