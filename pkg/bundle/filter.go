package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// Filter says what is left out of a tree, as EC2's bundling tools do: what the
// kernel fills, what lies there for the moment, and what lets somebody in
// elsewhere.
type Filter struct {
	Off     bool     // leave nothing out but what Exclude names
	Include []string // patterns of what stays although it is a secret
	Exclude []string // patterns of what goes besides
}

// emptied are the folders of the root whose content is not of the system.
func emptied() []string { return []string{"proc", "sys", "dev", "tmp", "mnt"} }

// secrets are the files that are left out. Of the first two, which may also be
// certificates and keyrings that a system needs, those that hold a private key.
func secrets() []string {
	return []string{
		"*.pem", "*.gpg",
		"*.priv", "*id_rsa*", "*id_dsa*", "*id_ecdsa*", "*id_ed25519*", "*.jks",
		"*/.ssh/authorized_keys", "*/.*_history", "*.sw[op]",
	}
}

// filter is a Filter that is ready for use.
type filter struct {
	off              bool
	include, exclude []pattern
	secrets          []pattern
	left             Left
	gone             map[string]bool // what was left out
}

// was says whether a path was left out.
func (f *filter) was(name string) bool { return f.gone[name] }

// Left is what was left out.
type Left struct {
	Files int      `json:"Files"`
	Paths []string `json:"Paths"` // the first of them
}

const leftShown = 20

func (l *Left) add(name string) {
	if l.Files++; len(l.Paths) < leftShown {
		l.Paths = append(l.Paths, "/"+name)
	}
}

func (f Filter) compile() (*filter, error) {
	out := &filter{off: f.Off, gone: map[string]bool{}}
	var errs []error
	all := func(patterns []string) (list []pattern) {
		for _, p := range patterns {
			r, err := parsePattern(p)
			list, errs = append(list, r), append(errs, err)
		}
		return list
	}
	out.include, out.exclude, out.secrets = all(f.Include), all(f.Exclude), all(secrets())
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTemplate, err)
	}
	return out, nil
}

// pattern is one of names where it has no slash, and else of whole paths from the
// root. * and ? also take slashes.
type pattern struct {
	text  string
	names bool
}

func parsePattern(p string) (pattern, error) {
	if strings.ContainsRune(p, 0) || strings.Trim(p, "/") == "" {
		return pattern{}, fmt.Errorf("the pattern %q is empty", p)
	}
	if open := strings.Count(p, "["); open > 0 && !wellFormed(p) {
		return pattern{}, fmt.Errorf("the pattern %q has a [ without ]", p)
	}
	p = strings.TrimSuffix(p, "/")
	if !strings.Contains(p, "/") {
		return pattern{p, true}, nil
	}
	if p[0] != '/' && p[0] != '*' {
		p = "/" + p
	}
	return pattern{p, false}, nil
}

func wellFormed(p string) bool {
	for i := 0; i < len(p); i++ {
		if p[i] == '[' {
			n := strings.IndexByte(p[i:], ']')
			if n < 2 {
				return false
			}
			i += n
		}
	}
	return true
}

func (p pattern) match(name string) bool {
	if p.names {
		return wild(p.text, path.Base(name))
	}
	return wild(p.text, "/"+name)
}

// wild matches s against *, ? and [sets] of bytes.
func wild(p, s string) bool {
	star, from := -1, 0 // where to go on when it does not fit, and with what of s
	i, j := 0, 0
	for j < len(s) {
		if i < len(p) && p[i] == '*' {
			star, from = i, j
			i++
			continue
		}
		if i < len(p) {
			if ok, n := one(p[i:], s[j]); ok {
				i, j = i+n, j+1
				continue
			}
		}
		if star < 0 {
			return false
		}
		from++
		i, j = star+1, from
	}
	return strings.Trim(p[i:], "*") == ""
}

// one matches one byte with the beginning of a pattern, of which it says how much
// that was.
func one(p string, c byte) (bool, int) {
	switch p[0] {
	case '?':
		return true, 1
	case '[':
		end := strings.IndexByte(p, ']')
		set := p[1:end]
		not := set[0] == '!' || set[0] == '^'
		if not {
			set = set[1:]
		}
		in := false
		for k := 0; k < len(set); k++ {
			if k+2 < len(set) && set[k+1] == '-' {
				in = in || set[k] <= c && c <= set[k+2]
				k += 2
				continue
			}
			in = in || set[k] == c
		}
		return in != not, end + 1
	}
	return p[0] == c, 1
}

func matches(list []pattern, name string) bool {
	return slices.ContainsFunc(list, func(p pattern) bool { return p.match(name) })
}

// peeked is how much of a file is looked at for a private key, in bytes.
const peeked = 1 << 20

// skips says whether a file is left out, by its clean path from the root. head
// returns its first bytes, at most peeked, where they have to be seen; nil is for
// what is no regular file.
func (f *filter) skips(name string, head func() ([]byte, error)) (bool, error) {
	skip, err := f.decide(name, head)
	if skip {
		f.left.add(name)
		if len(f.gone) < maxMembers {
			f.gone[name] = true
		}
	}
	return skip, err
}

func (f *filter) decide(name string, head func() ([]byte, error)) (bool, error) {
	for at := name; len(f.exclude) > 0 && at != "."; at = path.Dir(at) { // what is in an excluded folder too
		if matches(f.exclude, at) {
			return true, nil
		}
	}
	if f.off || matches(f.include, name) {
		return false, nil
	}
	if top, _, below := strings.Cut(name, "/"); below && slices.Contains(emptied(), top) {
		return true, nil
	}
	if head == nil || !matches(f.secrets, name) {
		return false, nil
	}
	if ext := path.Ext(name); ext != ".pem" && ext != ".gpg" || matches(f.secrets[2:], name) {
		return true, nil
	}
	b, err := head()
	return err == nil && private(b), err
}

// private says whether the beginning of a .pem or .gpg file is that of one with a
// private key, or of one of which that cannot be told.
func private(b []byte) bool {
	switch {
	case len(b) == 0:
		return false
	case bytes.Contains(b, []byte("PRIVATE KEY")):
		return true
	case bytes.Contains(b, []byte("-----BEGIN ")), bytes.Contains(b[:min(len(b), 16)], []byte("KBXf")):
		return false
	case b[0]&0x80 != 0: // an OpenPGP packet, old or new
		tag := b[0] >> 2 & 0xf
		if b[0]&0x40 != 0 {
			tag = b[0] & 0x3f
		}
		return tag != 6 && tag != 14 // public keys
	}
	return true
}

// headOf reads the first bytes of r, and returns a reader of all of it.
func headOf(r io.Reader) (head []byte, all io.Reader, err error) {
	head, err = io.ReadAll(io.LimitReader(r, peeked))
	return head, io.MultiReader(bytes.NewReader(head), r), err
}
