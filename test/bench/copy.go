package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// copy builds debian-12 a second time from scratch, with one file of 1 MiB more,
// and copies it to a region in an object store that holds the first: what moves is
// held against what moves where nothing is. It comes back to a region that has the
// first, too.
func (b *bench) copy(ctx context.Context) ([]row, []chart, error) {
	if _, err := b.image(ctx, "debian-12"); err != nil {
		return nil, nil, err
	}
	if err := b.rebuilt(ctx); err != nil {
		return nil, nil, err
	}
	for _, name := range []string{"with", "without", "fresh"} {
		at := "file://" + filepath.Join(b.dir, "copy", name)
		if name == "fresh" {
			at = filepath.Join(b.dir, "copy", name)
		}
		if _, err := b.kami(ctx, "region", "create", name, "--at", at); err != nil {
			return nil, nil, err
		}
	}
	first, err := b.copyTo(ctx, "with", "", "debian-12")
	if err != nil {
		return nil, nil, err
	}
	second, err := b.copyTo(ctx, "with", "", "debian-12-rebuilt")
	if err != nil {
		return nil, nil, err
	}
	alone, err := b.copyTo(ctx, "without", "", "debian-12-rebuilt")
	if err != nil {
		return nil, nil, err
	}
	all, err := b.copyTo(ctx, "fresh", "with", "debian-12")
	if err != nil {
		return nil, nil, err
	}
	back, err := b.copyTo(ctx, "fresh", "with", "debian-12-rebuilt")
	if err != nil {
		return nil, nil, err
	}
	b.say("copied: %.0f bytes of the first; of the rebuilt %.0f, alone %.0f; back %.0f of %.0f", first, second, alone, back, all)
	return []row{
		{
			Name: "copy of a rebuilt image", Kami: second, Hand: alone, Unit: inBytes, Most: 0.10, Of: ofHand,
			What: "moved by `kami image copy` of a debian-12 built from scratch, with one file of 1 MiB more, to an object store that holds the first; to one that is empty",
		},
		{
			Name: "copy back", Kami: back, Hand: alone, Unit: inBytes, Most: 0.10, Of: ofHand,
			What: "moved by `kami image copy` of the same image from that store to a region that has the first; to one that is empty",
		},
	}, nil, nil
}

// rebuilt builds debian-12 from scratch with one file more.
func (b *bench) rebuilt(ctx context.Context) error {
	const name = "debian-12-rebuilt"
	if id, err := b.kami(ctx, "image", "list", "--filter", "name="+name, "-o", "id"); err != nil || id != "" {
		return err
	}
	dir := filepath.Join(b.dir, "recipe")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("images", "debian-12"))); err != nil {
		return err
	}
	recipe := filepath.Join(dir, "recipe.yaml")
	text, err := os.ReadFile(recipe)
	if err != nil {
		return err
	}
	more := strings.Replace(string(text), "\nfiles:\n", "\nfiles:\n  - path: /opt/more\n    source: more\n", 1)
	if more == string(text) {
		return fmt.Errorf("%s has no files", recipe)
	}
	noise, err := os.Open("/dev/urandom")
	if err != nil {
		return err
	}
	defer noise.Close()
	data := make([]byte, 1<<20)
	if _, err := noise.Read(data); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "more"), data, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(recipe, []byte(more), 0o600); err != nil {
		return err
	}
	b.say("building debian-12 again, with one file more")
	_, err = b.kami(ctx, "build", dir, "--name", name, "--no-relative", "-o", "id")
	return err
}

// copyTo copies an image to a region and returns how many bytes that moved.
func (b *bench) copyTo(ctx context.Context, to, from, image string) (float64, error) {
	args := []string{"--region", to, "image", "copy", image, "--from-region", from, "--name", image, "-o", "json"}
	if from == "" {
		args = []string{"image", "copy", image, "--to-region", to, "--name", image, "-o", "json"}
	}
	text, err := b.kami(ctx, args...)
	if err != nil {
		return 0, err
	}
	var done struct{ MovedBytes int64 }
	err = json.Unmarshal([]byte(text), &done)
	return float64(done.MovedBytes), err
}
