package object

import (
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

// maxPart is the longest part of a name between slashes, in bytes: what the
// filesystems under a directory and under most SFTP servers can keep.
const maxPart = 255

// reserved is the first part of the names that stores keep for themselves.
const reserved = ".kami"

// CheckName returns ErrBadName, with what is wrong, for what no store takes as a
// name: names go through all stores unchanged, so the strictest one decides.
func CheckName(name string) error {
	bad := func(why string) error { return fmt.Errorf("%w: %q %s", ErrBadName, name, why) }
	switch {
	case name == "":
		return bad("is empty")
	case len(name) > MaxName:
		return fmt.Errorf("%w: %q… has %d bytes, more than %d", ErrBadName, name[:32], len(name), MaxName)
	case !utf8.ValidString(name):
		return bad("is not UTF-8")
	case name[0] == '/':
		return bad("is not relative")
	case path.Clean(name) != name || name == "." || name == ".." || strings.HasPrefix(name, "../"):
		return bad("is not clean")
	}
	for _, c := range name {
		if c < ' ' || c == 0x7f {
			return bad("has a control character")
		}
	}
	for i, part := range strings.Split(name, "/") {
		if len(part) > maxPart {
			return bad(fmt.Sprintf("has a part of more than %d bytes", maxPart))
		}
		if i == 0 && part == reserved {
			return bad("begins with " + reserved + ", which is the store's own")
		}
	}
	return nil
}

// checkPrefix is CheckName for the beginning of names, which may be empty and
// may end anywhere.
func checkPrefix(prefix string) error {
	if CheckName(prefix) == nil {
		return nil
	}
	return CheckName(prefix + "x")
}
