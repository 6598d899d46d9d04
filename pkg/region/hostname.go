package region

import (
	"regexp"

	"github.com/kamivm/kami/pkg/ami"
)

// hostName is RFC 1123's: labels of up to 63 letters, digits and hyphens, which
// neither begin nor end with a hyphen, with dots between them.
var hostName = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

const maxHostName = 253

// checkHostname takes "" for the default. The name becomes part of an option of
// the hypervisor's, where a comma would begin another option.
func checkHostname(name string) error {
	if name == "" || len(name) <= maxHostName && hostName.MatchString(name) {
		return nil
	}
	return ami.Errorf(ami.CodeInvalidParameterValue, "The host name %q is not valid.", name).
		WithHint("Use letters, digits and hyphens, at most 63 between dots.")
}
