package pvgrub

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"
	"unicode"
)

const (
	maxSteps   = 50_000   // commands of a configuration, over all its files
	maxScripts = 2 << 20  // bytes of all its files
	maxSources = 8        // files in each other
	maxValue   = 16 << 10 // bytes of a variable or a word
	maxEnv     = 1000     // variables
)

// errStop is how a command ends the script.
var errStop = errors.New("the script ends")

// item is what menuentry or submenu put into the menu.
type item struct {
	id, title string
	args      []string
	block     []statement
	submenu   []item
	isSubmenu bool
	entry     *choice // of a Boot Loader Specification entry, which has no block
}

// script is a run of grub.cfg. It follows what decides on the kernel, and passes
// over what is for a screen.
type script struct {
	d     *disk
	home  *volume // where the configuration lies
	env   map[string]string
	items []item
	count *int // items of all menus
	steps *int
	bytes *int
	depth int
	boot  *choice // what linux and initrd said
	now   bool    // a boot command outside of any entry
}

// newScript is a run with the variables that GRUB itself sets.
func newScript(d *disk, at place) *script {
	s := &script{d: d, home: at.on, count: new(int), steps: new(int), bytes: new(int), env: map[string]string{
		"root": bare(at.on), "prefix": place{at.on, path.Dir(at.path)}.String(), "grub_platform": "pc", "grub_cpu": "i386",
		// Ubuntu first tries without initial RAM disk, and with one after that
		// failed, which it writes down. Nothing is written here: with one at once.
		"initrdfail": "1",
	}}
	s.env["config_directory"] = s.env["prefix"]
	s.env["config_file"] = at.String()
	for _, feature := range []string{
		"chainloader_bpb", "ntldr", "platform_search_hint", "default_font_path", "all_video_module",
		"menuentry_id", "menuentry_options", "200_final", "nativedisk_cmd", "timeout_style",
	} {
		s.env["feature_"+feature] = "y"
	}
	return s
}

// bare is a device's name without its parentheses.
func bare(v *volume) string { return strings.Trim(v.device(), "()") }

// fork is a run of its own for an entry or a submenu: what it sets is its own.
func (s *script) fork() *script {
	f := *s
	f.env, f.items, f.boot = maps.Clone(s.env), nil, nil
	return &f
}

func (s *script) run(ctx context.Context, list []statement) (ok bool, err error) {
	ok = true
	for _, st := range list {
		if *s.steps++; *s.steps > maxSteps {
			return false, fmt.Errorf("%w: more than %d commands", ErrTooLarge, maxSteps)
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if st.arms != nil {
			ok, err = s.runIf(ctx, st.arms)
		} else {
			ok, err = s.runCommand(ctx, st)
		}
		if err != nil {
			return false, err
		}
	}
	return ok, nil
}

func (s *script) runIf(ctx context.Context, arms []arm) (bool, error) {
	for _, a := range arms {
		if a.cond != nil {
			if ok, err := s.run(ctx, a.cond); err != nil || !ok {
				if err != nil {
					return false, err
				}
				continue
			}
		}
		return s.run(ctx, a.body)
	}
	return true, nil
}

func (s *script) set(name, value string) error {
	if len(value) > maxValue || len(name) > maxValue {
		return fmt.Errorf("%w: the variable %.40q has %d characters", ErrTooLarge, name, len(value))
	}
	s.env[name] = value
	if len(s.env) > maxEnv {
		return fmt.Errorf("%w: more than %d variables", ErrTooLarge, maxEnv)
	}
	return nil
}

// expand makes the words that a command is given: an unquoted variable may be
// none or several.
func (s *script) expand(words []word) ([]string, error) {
	var out []string
	total := 0
	for _, w := range words {
		var b strings.Builder
		open := false // a word has begun
		for _, f := range w {
			value := f.text
			if f.variable {
				value = s.env[f.text]
			}
			if total += len(value); total > 4*maxValue {
				return nil, fmt.Errorf("%w: a command of more than %d characters", ErrTooLarge, 4*maxValue)
			}
			if !f.variable || f.quoted {
				b.WriteString(value)
				open = true
				continue
			}
			for i, part := range split(value) {
				if i > 0 {
					if open {
						out = append(out, b.String())
					}
					b.Reset()
					open = false
				}
				if part != "" {
					b.WriteString(part)
					open = true
				}
			}
		}
		if open {
			out = append(out, b.String())
		}
	}
	return out, nil
}

// split takes a value apart at its spaces; one at an end leaves an empty part.
func split(s string) []string {
	fields := strings.FieldsFunc(s, unicode.IsSpace)
	if s == "" || len(fields) == 0 {
		return []string{"", ""}[:1+min(1, len(s))]
	}
	if unicode.IsSpace(rune(s[0])) {
		fields = append([]string{""}, fields...)
	}
	if unicode.IsSpace(rune(s[len(s)-1])) {
		fields = append(fields, "")
	}
	return fields
}

// locate finds a path of the script.
func (s *script) locate(p string) (place, error) {
	if strings.HasPrefix(p, "(") {
		return s.d.locate(p, s.home, 1)
	}
	on, err := s.d.device(s.env["root"], s.home, 1)
	return place{on, p}, err
}

// source runs another file as if its text stood here.
func (s *script) source(ctx context.Context, at place) (bool, error) {
	if s.depth++; s.depth > maxSources {
		return false, fmt.Errorf("%w: more than %d files in each other", ErrTooLarge, maxSources)
	}
	defer func() { s.depth-- }()
	b, err := at.read(ctx, MaxConfig)
	if err != nil {
		return false, err
	}
	if *s.bytes += len(b); *s.bytes > maxScripts {
		return false, fmt.Errorf("%w: the files of the configuration have more than %d bytes", ErrTooLarge, maxScripts)
	}
	list, err := parseScript(string(b))
	if err != nil {
		return false, fmt.Errorf("%s: %w", at, err)
	}
	return s.run(ctx, list)
}

func readGrubCfg(ctx context.Context, d *disk, at place) (menu, error) {
	s := newScript(d, at)
	if _, err := s.source(ctx, at); err != nil && !errors.Is(err, errStop) {
		return menu{}, err
	}
	return s.menu(ctx, at)
}
