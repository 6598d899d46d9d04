package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
)

// hundred launches a hundred instances of one image and looks at what each takes
// on the disk: its volume's head, its folder and its records. The guests halt in
// their boot sector, so that nothing is counted which they wrote; the disk has
// 2 GiB. They are stopped before the next lot is launched: memory is not what is
// looked at.
func (b *bench) hundred(ctx context.Context) ([]row, []chart, error) {
	home := filepath.Join(b.dir, "hundred")
	disk := filepath.Join(b.dir, "sector.raw")
	sector := hypervisortest.BootSector("hundred")
	copy(sector, []byte{0xf4, 0xeb, 0xfd}) // halt: hlt; jmp halt
	if err := os.WriteFile(disk, sector, 0o644); err != nil {
		return nil, nil, err
	}
	if err := os.Truncate(disk, 2<<30); err != nil {
		return nil, nil, err
	}
	image, err := b.kamiAt(ctx, home, nil, "import", disk, "--name", "sector", "-o", "id")
	if err != nil {
		return nil, nil, err
	}
	var rows []row
	for _, way := range []struct {
		name, what string
		lots, lot  int
		args       []string
	}{
		{"instance by BIOS", "each of 100 instances of one image of 2 GiB, launched by BIOS, their guests writing nothing: volume, folder and records", 5, 20, []string{"--boot-mode", "legacy-bios"}},
		{"instance by UEFI", "the same of 10 by UEFI, each with a variable store", 2, 5, []string{"--boot-mode", "uefi"}},
	} {
		before, err := allocated(region(home))
		if err != nil {
			return nil, nil, err
		}
		for i := range way.lots {
			b.say("%s: %d to %d", way.name, i*way.lot+1, (i+1)*way.lot)
			out, err := b.kamiAt(ctx, home, nil, append([]string{"launch", image, "--count", fmt.Sprint(way.lot), "--memory", "64", "--cpus", "1", "--wait", "running", "-o", "id"}, way.args...)...)
			if err != nil {
				return nil, nil, err
			}
			if _, err := b.kamiAt(ctx, home, nil, append([]string{"instance", "stop", "--force"}, strings.Fields(out)...)...); err != nil {
				return nil, nil, err
			}
		}
		after, err := allocated(region(home))
		if err != nil {
			return nil, nil, err
		}
		rows = append(rows, row{
			Name: way.name, What: "new disk of " + way.what, Kami: float64(after-before) / float64(way.lots*way.lot),
			Unit: inBytes, Of: ofKami, Most: 256 << 10,
		})
	}
	return rows, nil, b.endGuests(ctx, home)
}
