package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
)

const cluster = 64 << 10

// dataRuns finds the runs of so many clusters of a raw disk that hold data: where
// they begin, in bytes.
func dataRuns(raw string, clusters int) ([]int64, error) {
	f, err := os.Open(raw)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var at []int64
	buf, zero := make([]byte, clusters*cluster), string(make([]byte, cluster))
	for off := int64(0); ; off += int64(len(buf)) {
		_, err := io.ReadFull(f, buf)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return at, nil
		}
		if err != nil {
			return nil, err
		}
		if string(buf[:cluster]) != zero {
			at = append(at, off)
		}
	}
}

// changedVolume makes a volume of a snapshot whose content is raw and changes one
// in a hundred of its clusters, in runs spread evenly over where there is data.
// What is written is content of the same disk from elsewhere, which compresses as
// well as what it replaces; the stamp makes it like nothing that was there before.
func (b *bench) changedVolume(ctx context.Context, home string, base ami.Snapshot, raw string, clusters int, stamp byte) (string, error) {
	volume, err := b.kamiAt(ctx, home, nil, "volume", "create", "--snapshot", string(base.SnapshotID), "-o", "id")
	if err != nil {
		return "", err
	}
	runs, err := dataRuns(raw, clusters)
	if err != nil {
		return "", err
	}
	src, err := os.Open(raw)
	if err != nil {
		return "", err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(b.dir, "change")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	n := int(info.Size()/100) / (clusters * cluster)
	var script strings.Builder
	buf := make([]byte, clusters*cluster)
	for i := range n {
		if _, err := src.ReadAt(buf, runs[(i*len(runs)/n+len(runs)/2)%len(runs)]); err != nil {
			return "", err
		}
		for at := 0; at < len(buf); at += cluster {
			copy(buf[at:], fmt.Sprintf("changed %03d", stamp))
		}
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, buf, 0o600); err != nil {
			return "", err
		}
		fmt.Fprintf(&script, "write -q -s %s %d %d\n", path, runs[i*len(runs)/n], len(buf))
	}
	return volume, writeDisk(ctx, headPath(home, volume), script.String())
}

// writeDisk has qemu-io write to a disk that no guest has.
func writeDisk(ctx context.Context, path, script string) error {
	cmd := exec.CommandContext(ctx, "qemu-io", "-f", "qcow2", path)
	cmd.Stdin = strings.NewReader(script)
	out, _, err := finish(cmd)
	if err == nil && strings.Contains(out, "failed") {
		err = fmt.Errorf("qemu-io %s: %.500s", path, out)
	}
	return err
}

// writer is a guest that changes its second volume.
type writer struct {
	b          *bench
	id, volume string
}

// launchWriter launches a tiny guest with a volume of a snapshot. What is known
// of its changes begins with a first snapshot.
func (b *bench) launchWriter(ctx context.Context, base ami.Snapshot) (writer, error) {
	if _, err := b.image(ctx, "tiny"); err != nil {
		return writer{}, err
	}
	if err := b.key(ctx); err != nil {
		return writer{}, err
	}
	id, err := b.kami(ctx, "launch", "tiny", "--key-name", "bench", "--wait", "ssh", "-o", "id",
		"--block-device-mapping", "/dev/sdf="+string(base.SnapshotID)+"::true")
	if err != nil {
		return writer{}, err
	}
	inst, err := show[ami.Instance](ctx, b, b.home(), "instance", id)
	if err != nil {
		return writer{}, err
	}
	for _, m := range inst.BlockDeviceMappings {
		if m.DeviceName == "/dev/sdf" {
			return writer{b, id, string(m.Ebs.VolumeID)}, nil
		}
	}
	return writer{}, fmt.Errorf("instance %s has no /dev/sdf", id)
}

// write changes one in a hundred of the clusters, with what does not compress.
func (w writer) write(ctx context.Context) error {
	_, err := w.b.kami(ctx, "ssh", w.id, "--",
		"for i in $(seq 20); do dd if=/dev/urandom of=/dev/vdb bs=1M count=1 seek=$((i*100)) conv=notrunc 2>/dev/null || exit 1; done; sync")
	return err
}
