// Package recipe reads recipes: images/<name>/recipe.yaml and the files beside
// it, which say how an image is built. A recipe is checked as a whole, and all
// its faults are told at once, each with its field and value.
package recipe

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/kamivm/kami/pkg/ami"
)

// Version is the version of the format that this package reads.
const Version = 1

// maxSize bounds a recipe's file, in bytes.
const maxSize = 64 << 10

// Recipe says how an image is built. One with From is made by changing a booted
// guest of another image; any other from a distribution's packages.
type Recipe struct {
	Version      int              `yaml:"version"`
	Name         string           `yaml:"name"`
	Description  string           `yaml:"description"`
	From         string           `yaml:"from"`         // image or recipe to stand on
	Architecture ami.Architecture `yaml:"architecture"` // "" is x86_64
	// SecureBoot asks for boot loaders that Microsoft's keys vouch for, in the place
	// of kami's own: the disk boots by UEFI alone.
	SecureBoot bool   `yaml:"secure_boot"`
	Suite      string `yaml:"suite"`   // Debian's: bookworm
	Variant    string `yaml:"variant"` // mmdebstrap's: "" is important
	// Packages may say for which of Debian's architectures they are, as Debian's own
	// lists do: "linux-image-686 [i386]".
	Packages []string     `yaml:"packages"`
	Size     string       `yaml:"size"` // of the disk: 2GiB
	Kernel   string       `yaml:"kernel"`
	Initrd   string       `yaml:"initrd"`
	Cmdline  string       `yaml:"cmdline"`
	BootMode ami.BootMode `yaml:"boot_mode"` // "" is uefi-preferred; the disk boots both ways
	// VirtualizationType is what is built unless somebody asks for the other: "" is
	// hvm, a disk with boot loaders; paravirtual is the root file system alone.
	VirtualizationType string `yaml:"virtualization_type"`
	// ImdsSupport v2.0 says that the image's software asks the metadata service
	// with tokens; "" is nothing said.
	ImdsSupport string `yaml:"imds_support"`

	Tree   string `yaml:"tree"` // folder that becomes the root; "" is the whole
	User   string `yaml:"user"` // to log in as; "" is root
	Files  []File `yaml:"files"`
	Script string `yaml:"script"` // file beside the recipe
	Memory int64  `yaml:"memory"` // MiB, for a guest that is changed

	Dir   string `yaml:"-"`
	Bytes int64  `yaml:"-"` // Size
}

// File is a file to put into the image.
type File struct {
	Path    string `yaml:"path"`
	Source  string `yaml:"source"` // beside the recipe
	Content string `yaml:"content"`
	Mode    string `yaml:"mode"` // octal; "" is 0644
}

// Load reads and checks the recipe in dir. The error joins all faults.
func Load(dir string) (Recipe, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Recipe{}, err
	}
	f, err := os.Open(filepath.Join(dir, "recipe.yaml"))
	if err != nil {
		return Recipe{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return Recipe{}, err
	}
	r, found, err := parse(data)
	if err != nil {
		return Recipe{}, err
	}
	r.Dir = dir
	r.checkFiles(found)
	return r, found.err()
}

// Parse reads and checks a recipe without looking at the files beside it. The
// error joins all faults; only of what is no YAML it tells the first.
func Parse(data []byte) (Recipe, error) {
	r, found, err := parse(data)
	if err != nil {
		return r, err
	}
	return r, found.err()
}

// parse returns an error for what cannot be read, and what is wrong with the
// rest in found.
func parse(data []byte) (r Recipe, found *faults, err error) {
	if len(data) > maxSize {
		return r, nil, fmt.Errorf("the recipe has more than %d bytes", maxSize)
	}
	if found, err = decode(data, &r); err == nil {
		r.check(found)
	}
	return r, found, err
}

var (
	recipeName  = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+( \[[a-z0-9]+( [a-z0-9]+)*\])?$`)
	suiteName   = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	userName    = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	octal       = regexp.MustCompile(`^0?[0-7]{3,4}$`)
	sizeText    = regexp.MustCompile(`^([0-9]{1,5})(MiB|GiB)$`)
)

func (r *Recipe) check(found *faults) {
	bad := found.value
	if r.Version != Version {
		bad("version", r.Version, "this kami reads version %d", Version)
	}
	if !recipeName.MatchString(r.Name) {
		bad("name", r.Name, "use up to 63 lower-case letters, digits, dots and hyphens")
	}
	if len(r.Description) > 255 {
		bad("description", fmt.Sprintf("%.20s…", r.Description), "more than 255 characters")
	}
	if r.Architecture == "" {
		r.Architecture = ami.ArchX8664
	}
	if Debian(r.Architecture) == "" {
		bad("architecture", r.Architecture, "not one of x86_64, arm64 and i386")
	}
	for i, p := range r.Packages {
		if !packageName.MatchString(p) {
			bad(fmt.Sprintf("packages[%d]", i), p, "not the name of a package")
		}
	}
	if r.User != "" && !userName.MatchString(r.User) {
		bad("user", r.User, "not the name of a user")
	}
	for i, f := range r.Files {
		at := fmt.Sprintf("files[%d].", i)
		if !isClean(f.Path, "'") || f.Path == "/" {
			bad(at+"path", f.Path, "not a clean absolute path")
		}
		if (f.Source == "") == (f.Content == "") && !found.told[at+"content"] {
			bad(at+"source", f.Source, "exactly one of source and content is needed")
		}
		if f.Source != "" && !filepath.IsLocal(f.Source) {
			bad(at+"source", f.Source, "it leads out of the recipe's folder")
		}
		if f.Mode != "" && !octal.MatchString(f.Mode) {
			bad(at+"mode", f.Mode, "not an octal mode such as 0755")
		}
	}
	if r.Script != "" && !filepath.IsLocal(r.Script) {
		bad("script", r.Script, "it leads out of the recipe's folder")
	}
	if r.From != "" || found.told["from"] {
		r.checkFrom(bad)
	} else {
		r.checkBase(bad)
	}
}

func (r *Recipe) checkFrom(bad func(string, any, string, ...any)) {
	for _, f := range [][2]string{
		{"suite", r.Suite},
		{"variant", r.Variant},
		{"size", r.Size},
		{"kernel", r.Kernel},
		{"initrd", r.Initrd},
		{"cmdline", r.Cmdline},
		{"tree", r.Tree},
		{"boot_mode", string(r.BootMode)},
		{"virtualization_type", r.VirtualizationType},
		{"imds_support", r.ImdsSupport},
	} {
		if f[1] != "" {
			bad(f[0], f[1], "it goes with a recipe that has no from")
		}
	}
	if r.SecureBoot {
		bad("secure_boot", r.SecureBoot, "it goes with a recipe that has no from")
	}
	if r.Memory != 0 && (r.Memory < 64 || r.Memory > 1<<20) {
		bad("memory", r.Memory, "not from 64 to 1048576 MiB")
	}
}

func (r *Recipe) checkBase(bad func(string, any, string, ...any)) {
	if !suiteName.MatchString(r.Suite) {
		bad("suite", r.Suite, "a suite such as bookworm, or from, is needed")
	}
	variants := []string{"", "extract", "custom", "essential", "apt", "minbase", "buildd", "important", "standard"}
	if !slices.Contains(variants, r.Variant) {
		bad("variant", r.Variant, "not one of %s", strings.Join(variants[1:], ", "))
	}
	if m := sizeText.FindStringSubmatch(r.Size); m == nil {
		bad("size", r.Size, "a size such as 512MiB or 2GiB is needed")
	} else {
		// Digits that are too many for a number are too many for a disk.
		n, err := strconv.ParseInt(m[1], 10, 32)
		if err != nil {
			n = -1
		}
		if m[2] == "GiB" {
			n <<= 10
		}
		r.Bytes = n << 20
		if n < 64 || n > 1<<20 {
			bad("size", r.Size, "not from 64MiB to 1024GiB")
		}
	}
	for _, f := range [][2]string{{"kernel", r.Kernel}, {"initrd", r.Initrd}} {
		if !isClean(f[1], " '\"\\") {
			bad(f[0], f[1], "a clean absolute path in the image is needed")
		}
	}
	if strings.ContainsAny(r.Cmdline, "'\"\\") || strings.ContainsFunc(r.Cmdline, unicode.IsControl) {
		bad("cmdline", r.Cmdline, "it has quotes or line breaks")
	}
	modes := []ami.BootMode{"", ami.BootLegacyBIOS, ami.BootUEFI, ami.BootUEFIPreferred}
	if !slices.Contains(modes, r.BootMode) {
		bad("boot_mode", r.BootMode, "not one of %s", modes[1:])
	}
	if r.SecureBoot && r.Architecture == ami.ArchI386 {
		bad("secure_boot", r.SecureBoot, "i386 has no UEFI")
	}
	if kinds := ami.VirtualizationTypes(); r.VirtualizationType != "" && !slices.Contains(kinds, r.VirtualizationType) {
		bad("virtualization_type", r.VirtualizationType, "not one of %s", strings.Join(kinds, ", "))
	}
	if r.ImdsSupport != "" && r.ImdsSupport != ami.IMDSv2 {
		bad("imds_support", r.ImdsSupport, "not %s", ami.IMDSv2)
	}
	if r.Tree != "" && !isClean(r.Tree, " '\"") {
		bad("tree", r.Tree, "not a clean absolute path")
	}
}

// isClean says whether a path is absolute, has nothing to tidy up in it, and has
// no character that cannot be shown or is in without.
func isClean(path, without string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path &&
		!strings.ContainsAny(path, without) && !strings.ContainsFunc(path, unicode.IsControl)
}

// checkFiles finds files beside the recipe that are missing or lead elsewhere.
func (r *Recipe) checkFiles(found *faults) {
	check := func(field, name string) {
		if name == "" || !filepath.IsLocal(name) { // nothing, or a fault that is told
			return
		}
		target, err := filepath.EvalSymlinks(filepath.Join(r.Dir, name))
		if err != nil {
			found.value(field, name, "it is not there")
			return
		}
		root, err := filepath.EvalSymlinks(r.Dir)
		if rel, rerr := filepath.Rel(root, target); err != nil || rerr != nil || !filepath.IsLocal(rel) {
			found.value(field, name, "it leads out of the recipe's folder")
		}
	}
	check("script", r.Script)
	for i, f := range r.Files {
		check(fmt.Sprintf("files[%d].source", i), f.Source)
	}
}
