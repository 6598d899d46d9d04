package region

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/qemu"
)

// checkGuests looks for what only some guests need: a machine of another kind, a TPM.
// That it is missing is told as a fault where an image of the region needs it.
func checkGuests(ctx context.Context, opts Options) []Check {
	arm, tpm := needsOfImages(ctx, opts)
	_, err := exec.LookPath("qemu-system-aarch64")
	if err == nil && !qemu.HasFirmware(ami.ArchARM64) {
		err = hypervisor.ErrNoFirmware
	}
	return []Check{
		checkNeed("arm64 guests", "qemu-system-arm qemu-efi-aarch64", arm, err),
		checkNeed("tpm", "swtpm swtpm-tools", tpm, hypervisor.ProbeTPM()),
	}
}

func checkNeed(name, packages string, images int, err error) Check {
	switch {
	case err == nil:
		return Check{Name: name, Status: CheckOK, Detail: "can be emulated"}
	case images == 0:
		return Check{Name: name, Status: CheckOK, Detail: "no image here needs it, and it is not installed (" + packages + ")"}
	}
	return Check{
		Name: name, Status: CheckWarning, Detail: fmt.Sprintf("%s; images that cannot be launched for that: %d", firstLine(err), images),
		Mend: "apt-get install " + packages,
	}
}

// needsOfImages counts the images of the region that are for arm64, and those with a
// TPM. A region that is not there, or cannot be read, has none.
func needsOfImages(ctx context.Context, opts Options) (arm, tpm int) {
	path := filepath.Join(opts.Home, "regions", cmp.Or(opts.Name, DefaultRegion), "catalog.db")
	if _, err := os.Stat(path); err != nil {
		return 0, 0
	}
	c, err := catalog.Open(ctx, path)
	if err != nil {
		return 0, 0
	}
	defer c.Close()
	_ = c.View(ctx, func(tx *catalog.Tx) error {
		images, err := tx.Images()
		for _, i := range images {
			if i.State != ami.ImageAvailable {
				continue
			}
			if i.Architecture == ami.ArchARM64 {
				arm++
			}
			if i.TpmSupport != "" {
				tpm++
			}
		}
		return err
	})
	return arm, tpm
}
