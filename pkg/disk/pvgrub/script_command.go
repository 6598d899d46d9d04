package pvgrub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// runCommand does what a command would, as far as it decides on what is booted.
// The others - insmod, terminals, fonts, a function of the script - have no
// success that an if could ask for.
func (s *script) runCommand(ctx context.Context, st statement) (bool, error) {
	words, err := s.expand(st.words)
	if err != nil || len(words) == 0 {
		return err == nil, err
	}
	name, args := words[0], words[1:]
	switch name {
	case "true", "insmod", "export", "echo", "save_env":
		return true, nil
	case "set":
		if len(args) == 0 {
			return true, nil
		}
		variable, value, ok := strings.Cut(args[0], "=")
		if !ok {
			return true, nil
		}
		return true, s.set(variable, value)
	case "unset":
		for _, a := range args {
			delete(s.env, a)
		}
		return true, nil
	case "[", "test":
		return s.test(ctx, name, args)
	case "load_env":
		return s.loadEnv(ctx, args)
	case "menuentry", "submenu":
		return true, s.addItem(ctx, name, args, st.block)
	case "source", ".", "configfile", "normal":
		return s.goOn(ctx, name, args)
	case "blscfg":
		return true, s.blscfg(ctx, args)
	case "linux", "linux16", "linuxefi":
		return s.linux(args), nil
	case "initrd", "initrd16", "initrdefi":
		return s.initrd(args), nil
	case "boot":
		s.now = s.boot != nil
		return true, errStop
	case "exit", "reboot", "halt":
		return true, errStop
	}
	switch {
	case strings.HasPrefix(name, "search"):
		return s.search(ctx, name, args)
	case slices.Contains([]string{"multiboot", "multiboot2", "xen_hypervisor", "chainloader", "ntldr", "legacy_configfile", "kfreebsd"}, name):
		s.boot = &choice{fault: fmt.Errorf("it does not boot Linux (%s)", name)}
		return true, nil
	}
	if variable, value, ok := strings.Cut(name, "="); ok && len(st.words) == 1 {
		return true, s.set(variable, value)
	}
	return false, nil
}

// addItem puts an entry or a submenu into the menu. A submenu's are found out at
// once, an entry's commands when it is chosen.
func (s *script) addItem(ctx context.Context, name string, args []string, block []statement) error {
	if *s.count++; *s.count > MaxEntries {
		return fmt.Errorf("%w: more than %d entries", ErrTooLarge, MaxEntries)
	}
	it := item{block: block, isSubmenu: name == "submenu"}
	for i := 0; i < len(args); i++ {
		option, value, has := strings.Cut(args[i], "=")
		switch option {
		case "--id", "--class", "--users", "--hotkey", "--source":
			if !has && i+1 < len(args) {
				i++
				value = args[i]
			}
			if option == "--id" {
				it.id = value
			}
		case "--unrestricted":
		default:
			it.args = append(it.args, args[i])
		}
	}
	if len(it.args) > 0 {
		it.title = it.args[0]
	}
	if it.isSubmenu {
		f := s.fork()
		if f.depth++; f.depth > maxSources {
			return fmt.Errorf("%w: more than %d menus in each other", ErrTooLarge, maxSources)
		}
		if _, err := f.run(ctx, block); err != nil && !errors.Is(err, errStop) {
			return err
		}
		it.submenu, it.block = f.items, nil
	}
	s.items = append(s.items, it)
	return nil
}

// goOn runs another configuration: source in this menu, the others with one of
// their own.
func (s *script) goOn(ctx context.Context, name string, args []string) (bool, error) {
	if len(args) == 0 {
		args = []string{s.env["prefix"] + "/grub.cfg"}
	}
	at, err := s.locate(args[0])
	if err != nil {
		s.d.pass("%s %s: %v", name, args[0], err)
		return false, nil
	}
	if name == "source" || name == "." {
		ok, err := s.source(ctx, at)
		if err != nil && softly(ctx, err) {
			s.d.pass("%s %s: %v", name, args[0], err)
			return false, nil
		}
		return ok, err
	}
	f := s.fork()
	if _, err := f.source(ctx, at); err != nil && !errors.Is(err, errStop) {
		if softly(ctx, err) {
			s.d.pass("%s %s: %v", name, args[0], err)
			return false, nil
		}
		return false, err
	}
	s.env, s.items, s.boot, s.now = f.env, f.items, f.boot, f.now
	return true, errStop
}

// softly says whether GRUB would go on after the error: a file is missing, say,
// and no limit of ours was met.
func softly(ctx context.Context, err error) bool {
	return ctx.Err() == nil && !errors.Is(err, ErrTooLarge) && !errors.Is(err, errStop)
}

func (s *script) linux(args []string) bool {
	if len(args) == 0 {
		return false
	}
	at, err := s.locate(args[0])
	s.boot = &choice{kernel: at, cmdline: cmdline(args[1:]), fault: err}
	return err == nil
}

func (s *script) initrd(args []string) bool {
	if s.boot == nil {
		return false
	}
	s.boot.initrds = nil
	for _, a := range args {
		if strings.HasPrefix(a, "newc:") {
			s.boot.fault = errors.New("its initial RAM disk is put together by GRUB (newc:)")
			return false
		}
		at, err := s.locate(a)
		if err != nil {
			s.boot.fault = err
			return false
		}
		s.boot.initrds = append(s.boot.initrds, at)
	}
	return true
}

// cmdline puts words together as GRUB does (grub-core/lib/cmdline.c): one with a
// space gets quotes, and what is a quote or a backslash gets a backslash.
func cmdline(args []string) string {
	var out []string
	for _, a := range args {
		a = strings.NewReplacer(`\`, `\\`, `'`, `\'`, `"`, `\"`).Replace(a)
		if strings.Contains(a, " ") {
			a = `"` + a + `"`
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}

// loadEnv reads variables from the environment block: all, or those named.
func (s *script) loadEnv(ctx context.Context, args []string) (bool, error) {
	file := s.env["prefix"] + "/grubenv"
	var only []string
	for i := 0; i < len(args); i++ {
		value, has := strings.CutPrefix(args[i], "--file=")
		switch {
		case has:
			file = value
		case (args[i] == "-f" || args[i] == "--file") && i+1 < len(args):
			i++
			file = args[i]
		case !strings.HasPrefix(args[i], "-"):
			only = append(only, args[i])
		}
	}
	at, err := s.locate(file)
	if err != nil {
		s.d.pass("load_env %s: %v", file, err)
		return false, nil
	}
	b, err := at.read(ctx, 64<<10)
	if err != nil {
		return false, ctx.Err()
	}
	env, err := parseEnv(b)
	if err != nil {
		s.d.pass("%s: %v", at, err)
		return false, nil
	}
	for name, value := range env {
		if len(only) == 0 || slices.Contains(only, name) {
			if err := s.set(name, value); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}
