package region

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
)

// meter is what the catalog asks when something begins or ceases to be used.
func (r *Region) meter() catalog.Meter {
	return catalog.Meter{Now: r.instant, Layers: r.layersUnder, Alive: r.aliveUntil}
}

// instant is now, by the clock and by the run of the host. A clock of the caller's
// own goes with no host.
func (r *Region) instant() catalog.Instant {
	at := catalog.Instant{Time: r.now()}
	if r.opts.Clock != nil && r.opts.Uptime == nil {
		return at
	}
	if r.opts.Uptime != nil {
		at.Boot, at.Up = r.opts.Uptime()
		return at
	}
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) == nil { // it goes on while the host sleeps
		at.Boot, at.Up = hostBoot(), time.Duration(ts.Nano())
	}
	return at
}

// layersUnder returns a layer and what it stands on with the sizes of their files, as
// far as that can be known.
func (r *Region) layersUnder(d digest.Digest) (out []ami.LayerUse) {
	chain, err := r.layers.Chain(d)
	if err != nil {
		return nil
	}
	for _, path := range chain {
		info, err := os.Stat(path)
		if err != nil {
			return nil
		}
		out = append(out, ami.LayerUse{Layer: digest.Digest(strings.TrimSuffix(filepath.Base(path), ".qcow2")), Bytes: info.Size()})
	}
	return out
}

// aliveUntil is when a guest that ended without a command last wrote to its console or
// to one of its disks: its last sign of life. The zero time is for none.
func (r *Region) aliveUntil(inst ami.Instance) (last time.Time) {
	files := []string{r.consolePath(inst.InstanceID)}
	for _, bd := range inst.BlockDeviceMappings {
		files = append(files, r.layers.HeadPath(bd.Ebs.VolumeID))
	}
	for _, path := range files {
		if info, err := os.Stat(path); err == nil && info.ModTime().After(last) {
			last = info.ModTime().UTC()
		}
	}
	return last
}
