package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// scratch builds ten images from packages, a package more in each, and compares
// what they take.
func (b *bench) scratch(ctx context.Context) ([]row, []chart, error) {
	home := filepath.Join(b.dir, "scratch")
	c, err := b.contest(ctx, "scratch", home, "restic", "casync", "borg")
	if err != nil {
		return nil, nil, err
	}
	recipe := filepath.Join(b.dir, "recipe")
	if err := os.CopyFS(recipe, os.DirFS(filepath.Join("images", "debian-12"))); err != nil {
		return nil, nil, err
	}
	file := filepath.Join(recipe, "recipe.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	for i := range len(additions()) + 1 {
		if i > 0 {
			more := strings.Replace(string(text), "\npackages:\n", "\npackages:\n  - "+additions()[i-1][0]+"\n", 1)
			if more == string(text) {
				return nil, nil, fmt.Errorf("%s has no list of packages", file)
			}
			text = []byte(more)
			if err := os.WriteFile(file, text, 0o644); err != nil {
				return nil, nil, err
			}
		}
		b.say("building debian-12 with %d packages more", i)
		image, err := b.kamiAt(ctx, home, nil, "build", recipe, "--name", fmt.Sprintf("scratch-%d", i), "-o", "id")
		if err != nil {
			return nil, nil, err
		}
		if err := c.add(ctx, image); err != nil {
			return nil, nil, err
		}
	}
	if err := c.settle(ctx); err != nil {
		return nil, nil, err
	}
	return c.rows("ten debian-12 built from scratch", 0),
		[]chart{c.chart("scratch", "Ten debian-12 built from scratch, a package more in each: size after each")}, nil
}
