package hypervisor

import (
	"fmt"
	"os/exec"
)

// ProbeTPM says whether this host can emulate TPMs: what does is swtpm, and
// swtpm_setup makes a new one. It returns ErrNoTPM.
func ProbeTPM() error {
	for _, name := range []string{"swtpm", "swtpm_setup"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w: %w", ErrNoTPM, err)
		}
	}
	return nil
}
