package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kamivm/kami/pkg/ami"
)

// image builds a recipe once under its own name.
func (b *bench) image(ctx context.Context, name string) (string, error) {
	id, err := b.kami(ctx, "image", "list", "--filter", "name="+name, "-o", "id")
	if err != nil || id != "" {
		return id, err
	}
	b.say("building %s", name)
	return b.kami(ctx, "build", filepath.Join("images", name), "--name", name, "-o", "id")
}

// key makes the key pair by which guests let in, once.
func (b *bench) key(ctx context.Context) error {
	there, err := b.kami(ctx, "key", "list", "-o", "id")
	if err != nil || there != "" {
		return err
	}
	_, err = b.kami(ctx, "key", "create", "bench")
	return err
}

// rawRoot writes the root disk of debian-12 as a raw file, once.
func (b *bench) rawRoot(ctx context.Context) (string, error) {
	path := filepath.Join(b.dir, "debian-12.raw")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	id, err := b.image(ctx, "debian-12")
	if err != nil {
		return "", err
	}
	snap, err := b.rootSnapshot(ctx, b.home(), id)
	if err != nil {
		return "", err
	}
	_, err = b.kami(ctx, "snapshot", "export", string(snap.SnapshotID), path, "--format", "raw")
	return path, err
}

func (b *bench) rootSnapshot(ctx context.Context, home, image string) (ami.Snapshot, error) {
	img, err := show[ami.Image](ctx, b, home, "image", image)
	if err != nil {
		return ami.Snapshot{}, err
	}
	for _, m := range img.BlockDeviceMappings {
		if m.DeviceName == img.RootDeviceName && m.Ebs != nil {
			return show[ami.Snapshot](ctx, b, home, "snapshot", string(m.Ebs.SnapshotID))
		}
	}
	return ami.Snapshot{}, fmt.Errorf("image %s has no root snapshot", image)
}

// show decodes EC2's answer of one object: a list under the noun's name.
func show[T any](ctx context.Context, b *bench, home, noun, id string) (T, error) {
	var answer map[string][]T
	text, err := b.kamiAt(ctx, home, nil, noun, "show", id, "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(text), &answer)
	}
	if err != nil {
		return *new(T), err
	}
	for _, list := range answer {
		if len(list) == 1 && len(answer) == 1 {
			return list[0], nil
		}
	}
	return *new(T), fmt.Errorf("not one object: %.200s", text)
}

func layerPath(home string, s ami.Snapshot) string {
	return filepath.Join(region(home), "layers", s.Layer.Hex()+".qcow2")
}

func headPath(home, volume string) string {
	return filepath.Join(region(home), "volumes", volume+".qcow2")
}

// chainOf lists the files that a disk is made of, its own first.
func chainOf(ctx context.Context, path string) ([]string, error) {
	out, err := command(ctx, "qemu-img", "info", "--force-share", "--backing-chain", "--output=json", "-f", "qcow2", path)
	if err != nil {
		return nil, err
	}
	var chain []struct {
		Filename string `json:"filename"`
	}
	if err := json.Unmarshal([]byte(out), &chain); err != nil {
		return nil, err
	}
	var paths []string
	for _, c := range chain {
		paths = append(paths, c.Filename)
	}
	return paths, nil
}
