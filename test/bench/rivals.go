package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// rival is a store of another kind that is fed the same disks. Its settings are
// those that it comes with.
type rival struct {
	name, dir string
	first     []string // makes the store; none where the first feeding does
	feed      func(disk string, i int) []string
	env       []string
	bytes     []float64 // after each disk
}

// rivals makes the stores that are named, empty.
func (b *bench) rivals(ctx context.Context, part string, names ...string) ([]*rival, error) {
	var all []*rival
	for _, name := range names {
		dir := filepath.Join(b.dir, part+"-"+name)
		r := &rival{name: name, dir: dir}
		switch name {
		case "restic":
			r.env = []string{"RESTIC_REPOSITORY=" + dir, "RESTIC_PASSWORD=bench"}
			r.first = []string{"restic", "--no-cache", "init"}
			r.feed = func(disk string, _ int) []string { return []string{"restic", "--no-cache", "backup", disk} }
		case "casync":
			r.feed = func(disk string, i int) []string {
				return []string{"casync", "make", "--store=" + filepath.Join(dir, "store.castr"), filepath.Join(dir, fmt.Sprintf("%d.caibx", i)), disk}
			}
		case "borg":
			r.env = []string{"BORG_REPO=" + dir, "BORG_BASE_DIR=" + dir + "-base", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes"}
			r.first = []string{"borg", "init", "-e", "none"}
			r.feed = func(disk string, i int) []string { return []string{"borg", "create", fmt.Sprintf("::%d", i), disk} }
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		if r.first != nil {
			if err := r.run(ctx, r.first); err != nil {
				return nil, err
			}
		}
		all = append(all, r)
	}
	return all, nil
}

func (r *rival) run(ctx context.Context, args []string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), r.env...)
	_, _, err := finish(cmd)
	return err
}

// add feeds the store one more disk and notes how large it is then: the length
// of its files, which is less than what they take on the disk.
func (r *rival) add(ctx context.Context, disk string) error {
	if err := r.run(ctx, r.feed(disk, len(r.bytes))); err != nil {
		return err
	}
	n, err := length(r.dir)
	r.bytes = append(r.bytes, float64(n))
	return err
}
