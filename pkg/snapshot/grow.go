package snapshot

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/internal/durable"
)

// HeadSize is the size of a volume's disk, in bytes, also while a guest has it
// open.
func (s *Store) HeadSize(id ami.VolumeID) (int64, error) {
	info, _, _, err := inspect(s.HeadPath(id), "../layers/")
	return info.Size, err
}

// GrowHead makes the disk of a volume larger; one that has the size already is
// left alone. No guest may have it open. qemu-img does it, which knows how the
// dirty bitmaps in the head have to grow along.
func (s *Store) GrowHead(ctx context.Context, id ami.VolumeID, size int64) error {
	info, _, _, err := inspect(s.HeadPath(id), "../layers/")
	if err != nil {
		return err
	}
	if info.Size >= size {
		return nil
	}
	cmd := exec.CommandContext(ctx, "qemu-img", "resize", "-q", "-f", "qcow2", s.HeadPath(id), strconv.FormatInt(size, 10))
	if out, err := cmd.CombinedOutput(); err != nil {
		return noSpace(fmt.Errorf("qemu-img resize: %w: %s", err, strings.TrimSpace(string(out))))
	}
	durable.Step("head.grown")
	f, err := os.OpenFile(s.HeadPath(id), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return noSpace(err)
}
