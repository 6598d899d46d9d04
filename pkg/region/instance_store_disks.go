package region

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/launch"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// planMapping lays a launch's mapping over its image's. The root of an
// instance-store image, which is in neither, is the first.
func (r *Region) planMapping(image ami.Image, over []ami.BlockDeviceMapping) ([]ami.BlockDeviceMapping, error) {
	if !image.IsInstanceStore() {
		return launch.Merge(image.BlockDeviceMappings, over, image.RootDeviceName)
	}
	root, over, err := launch.StoreRoot(over, image.RootDeviceName, image.Bundle.SizeBytes)
	if err != nil {
		return nil, err
	}
	mapping, err := launch.Merge(image.BlockDeviceMappings, over, image.RootDeviceName)
	return append([]ami.BlockDeviceMapping{root}, mapping...), err
}

// planShutdown settles what a shutdown inside the guest does. A guest whose root
// ends with its power is terminated.
func planShutdown(image ami.Image, asked ami.ShutdownBehavior) (ami.ShutdownBehavior, error) {
	switch asked {
	case "", ami.ShutdownStop, ami.ShutdownTerminate:
	default:
		return "", ami.Errorf(ami.CodeInvalidParameterValue, "The shutdown behaviour %q is not one of %s and %s.", asked, ami.ShutdownStop, ami.ShutdownTerminate)
	}
	switch {
	case image.IsInstanceStore() && asked == ami.ShutdownStop:
		return "", ami.Errorf(ami.CodeInvalidParameterCombination, "The attribute instanceInitiatedShutdownBehavior can only be used for EBS-backed images: %s is of instance-store.", image.ImageID).
			WithHint("A guest with such a root cannot be stopped: its shutdown terminates it.")
	case image.IsInstanceStore():
		return ami.ShutdownTerminate, nil
	case asked == "":
		return ami.ShutdownStop, nil
	}
	return asked, nil
}

// planVirtual fills in a disk of a new instance that is no EBS volume.
func (r *Region) planVirtual(ctx context.Context, image ami.Image, m ami.BlockDeviceMapping, v *ami.Volume) (err error) {
	v.Ephemeral = true
	if m.VirtualName != ami.VirtualRoot {
		v.Size, v.SizeBytes = launch.EphemeralGiB, launch.EphemeralGiB*gib
		return nil
	}
	v.SizeBytes = image.Bundle.SizeBytes
	if m.Ebs.VolumeSize != nil {
		v.SizeBytes = max(v.SizeBytes, *m.Ebs.VolumeSize*gib)
	}
	v.Size = gibCeil(v.SizeBytes)
	v.KmsKeyID, err = r.keyFor(ctx, m.Ebs.Encrypted, m.Ebs.KmsKeyID, ami.Snapshot{}, false)
	v.Encrypted = v.KmsKeyID != ""
	return err
}

// bases are the keys of the cached layers that an instance's disks stand on, by its
// devices; "" for none.
func bases(image ami.Image, inst ami.Instance) []string {
	keys := make([]string, len(inst.BlockDeviceMappings))
	for i, bd := range inst.BlockDeviceMappings {
		switch {
		case bd.Virtual == ami.VirtualRoot:
			keys[i] = bundleCacheKey(*image.Bundle)
		case bd.Virtual != "":
			keys[i] = formattedKey(bd.Virtual)
		}
	}
	return keys
}

// makeBases sees that the layers are there that an instance's disks stand on, and
// returns their keys.
func (r *Region) makeBases(ctx context.Context, image ami.Image, inst ami.Instance) ([]string, error) {
	keys := bases(image, inst)
	for i, bd := range inst.BlockDeviceMappings {
		var err error
		switch {
		case bd.Virtual == ami.VirtualRoot:
			err = r.fetchRoot(ctx, image)
		case bd.Virtual != "":
			var made bool
			if made, err = r.formatEphemeral(ctx, bd.Virtual); !made {
				keys[i] = ""
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// beginBased is begin for an instance whose disks stand on cached layers, which are
// made before, and made again where a collection of garbage takes them just then.
func (r *Region) beginBased(ctx context.Context, image ami.Image, inst ami.Instance, vols []ami.Volume, records func(*catalog.Tx) error) (*job, error) {
	for try := 0; ; try++ {
		keys, err := r.makeBases(ctx, image, inst)
		if err != nil {
			return nil, err
		}
		j, err := r.begin(ctx, func(tx *catalog.Tx) error {
			for i, key := range keys {
				if key == "" {
					continue
				}
				if err := layCached(tx, key, &vols[i]); err != nil {
					return err
				}
			}
			return records(tx)
		}, string(inst.InstanceID))
		if !errors.Is(err, errNotCached) || try > 2 {
			return j, err
		}
	}
}

// formattedKey is the key of the layer of an ephemeral disk.
func formattedKey(name string) string { return fmt.Sprintf("ext4-%dg-%s", launch.EphemeralGiB, name) }

// formatEphemeral sees that there is the layer of an ephemeral disk: an empty ext4
// of that label, of which each guest has an overlay, so that it costs nothing. Where
// the host cannot make one, made is false and the disk is blank.
func (r *Region) formatEphemeral(ctx context.Context, name string) (made bool, err error) {
	err = r.cacheLayer(ctx, formattedKey(name), "an empty "+name, func(ctx context.Context) (snapshot.Layer, error) {
		scratch, err := durable.NewScratch(r.path("tmp"), "format")
		if err != nil {
			return snapshot.Layer{}, err
		}
		defer scratch.Close()
		f, err := os.OpenFile(scratch.Path("disk"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return snapshot.Layer{}, err
		}
		defer f.Close()
		if err := f.Truncate(launch.EphemeralGiB * gib); err != nil {
			return snapshot.Layer{}, err
		}
		if err := mke2fs(ctx, f.Name(), name); err != nil {
			return snapshot.Layer{}, err
		}
		src, err := qcow2.RawSource(f)
		if err != nil {
			return snapshot.Layer{}, err
		}
		step := r.progress.Step("formatting "+name, src.Size())
		layer, err := r.layers.WriteLayer(ctx, src, "", step)
		step.Done(err)
		return layer, err
	})
	if errors.Is(err, errNoMke2fs) {
		r.progress.Note("mke2fs is not installed: %s is offered blank, not formatted", name)
		return false, nil
	}
	return err == nil, err
}

var errNoMke2fs = errors.New("mke2fs is not installed")

// formatTime is the time of everything in an empty file system, in seconds, so that
// each host makes the same one; pkg/build has the same.
const formatTime = 1_700_000_000

// mke2fs makes an ext4 whose label is name. What it need not write yet the guest's
// kernel does in its own time.
func mke2fs(ctx context.Context, path, name string) error {
	program, err := exec.LookPath("mke2fs")
	if err != nil {
		if program, err = exec.LookPath("/sbin/mke2fs"); err != nil { // where an ordinary user's path does not lead
			return errNoMke2fs
		}
	}
	id := uuid.NewSHA1(uuid.NameSpaceURL, []byte("kami/"+name)).String()
	sum := sha256.Sum256([]byte(name))
	hash := uuid.UUID(sum[:16]).String()
	cmd := exec.CommandContext(ctx, program, "-q", "-F", "-t", "ext4", "-L", name, "-U", id,
		"-E", "hash_seed="+hash+",lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", path)
	cmd.Env = []string{"LC_ALL=C.UTF-8", "SOURCE_DATE_EPOCH=" + strconv.Itoa(formatTime), "E2FSPROGS_FAKE_TIME=" + strconv.Itoa(formatTime)}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
