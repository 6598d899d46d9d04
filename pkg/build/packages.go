package build

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// PackageError is a build whose recipe names packages that cannot be installed.
type PackageError struct {
	Faults []string // one a package, with field and value as in a recipe's faults
}

func (e *PackageError) Error() string { return strings.Join(e.Faults, "\n") }

// What apt says of a package that there is not, and of one that is only a name
// which others provide, or which is known but not to be had.
var (
	aptUnknown = regexp.MustCompile(`(?m)^E: Unable to locate package (\S+)$`)
	aptVirtual = regexp.MustCompile(`(?m)^E: Package '(\S+)' has no installation candidate$`)
)

// packageFaults finds in what a step printed which of a recipe's packages it
// failed for. The rest, pages of it, is of no use then. Any other err is
// returned as it is.
func packageFaults(err error, packages []string, where string) error {
	var step *StepError
	if !errors.As(err, &step) {
		return err
	}
	why := map[string]string{}
	for _, m := range aptUnknown.FindAllStringSubmatch(step.Output, -1) {
		why[m[1]] = "there is no such package in " + where
	}
	for _, m := range aptVirtual.FindAllStringSubmatch(step.Output, -1) {
		why[m[1]] = "it cannot be installed from " + where + "; name a package that provides it"
	}
	e := &PackageError{}
	for i, p := range packages {
		name, _, _ := strings.Cut(p, " ") // without the architectures that it is for
		if why[name] != "" {
			e.Faults = append(e.Faults, fmt.Sprintf("packages[%d]: %s: %s", i, name, why[name]))
		}
	}
	if len(e.Faults) == 0 {
		return err
	}
	return e
}
