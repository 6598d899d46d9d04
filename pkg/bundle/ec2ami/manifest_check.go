package ec2ami

import (
	"crypto/sha1"
	"slices"
	"strconv"
	"strings"
)

// check holds what was read against itself, once all of it is there.
func (p *parser) check() error {
	m := &p.m
	if p.version != Version {
		return fault("The manifest is of version %s; %s is known.", quoted(p.version), Version)
	}
	for _, name := range []string{"image", "image/name", "image/user", "image/type", "image/digest", "image/size", "image/bundled_size", "image/parts"} {
		if !p.seen["manifest/"+name] {
			return fault("The manifest has no element %s.", name)
		}
	}
	switch m.Type {
	case TypeMachine, TypeKernel, TypeRamdisk:
	default:
		return fault("The manifest's image is of type %s; those known are %s, %s and %s.", quoted(m.Type), TypeMachine, TypeKernel, TypeRamdisk)
	}
	if !plainName(m.Name) {
		return fault("The manifest's image has the name %s, which is no name of a file.", quoted(m.Name))
	}
	if m.User == "" {
		return fault("The manifest's image has no user.")
	}
	if m.Size < 1 || m.Size > MaxSize {
		return fault("The manifest's image is of %d bytes; that is not from 1 byte to 1 TiB.", m.Size)
	}
	for _, d := range m.Machine.Mapping {
		if d.Virtual == "" || d.Device == "" {
			return fault("The manifest maps a device without a name.")
		}
	}
	m.signed = slices.Concat(p.machine, p.img)
	m.Parts = p.parts
	return p.checkParts()
}

func (p *parser) checkParts() error {
	m := &p.m
	if p.count != strconv.Itoa(len(p.parts)) {
		return fault("The manifest says that there are %s parts, and names %d.", quoted(p.count), len(p.parts))
	}
	if len(p.parts) == 0 {
		return fault("The manifest names no parts.")
	}
	most := int64(len(p.parts)) * PartSize
	if m.BundledSize < int64(len(p.parts)) || m.BundledSize > most {
		return fault("The manifest's %d parts cannot be the %d bytes that it says they are.", len(p.parts), m.BundledSize)
	}
	if m.BundledSize%16 != 0 {
		return fault("The manifest's parts are %d bytes; what is encrypted is a multiple of 16.", m.BundledSize)
	}
	names := make(map[string]bool, len(p.parts))
	for i, part := range p.parts {
		switch {
		case !plainName(part.Name):
			return fault("The manifest's part %d has the name %s, which is no name of a file.", i, quoted(part.Name))
		case names[part.Name]:
			return fault("The manifest names the part %s twice.", quoted(part.Name))
		case part.Digest == [sha1.Size]byte{}:
			return fault("The manifest's part %s has no digest.", quoted(part.Name))
		}
		names[part.Name] = true
	}
	return nil
}

// checkPrefix says whether all parts are named as those of that manifest, or of
// that image, are: the prefix, ".part." and the number. Old euca2ools name the image
// by its file and the parts by the prefix.
func (m *Manifest) checkPrefix(prefix string) error {
	for i, part := range m.Parts {
		stem, digits, ok := cutLast(part.Name, ".part.")
		n, err := strconv.ParseUint(digits, 10, 31)
		if !ok || stem != prefix && stem != m.Name || err != nil || int(n) != i {
			return fault("The manifest's part %d has the name %s; it should be %s.part.%02d.", i, quoted(part.Name), m.Name, i)
		}
	}
	return nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// plainName says whether a name is that of a file in the same place.
func plainName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 255 && !strings.ContainsAny(s, "/\\") &&
		strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) < 0
}
