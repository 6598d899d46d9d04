package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// additions are small packages, each with what it needs beyond a debian-12: one
// for each image after the first.
func additions() [][]string {
	return [][]string{
		{"ed"},
		{"tree"},
		{"jq", "libjq1", "libonig5"},
		{"patch"},
		{"bc"},
		{"zip"},
		{"unzip"},
		{"time"},
		{"psmisc"},
	}
}

// lineage makes ten images of one line and compares what they take.
func (b *bench) lineage(ctx context.Context) ([]row, []chart, error) {
	c, err := b.contest(ctx, "lineage", b.home(), "restic", "casync")
	if err != nil {
		return nil, nil, err
	}
	if err := b.makeLine(ctx, func(image string) error { return c.add(ctx, image) }); err != nil {
		return nil, nil, err
	}
	if err := c.settle(ctx); err != nil {
		return nil, nil, err
	}
	return c.rows("ten debian-12 of one line", 1),
		[]chart{c.chart("lineage", "Ten debian-12 of one line, a package more in each: size after each")}, nil
}

// makeLine makes the images: debian-12, then each from a guest of the last, with
// a package more. made is told of each.
func (b *bench) makeLine(ctx context.Context, made func(image string) error) error {
	image, err := b.image(ctx, "debian-12")
	if err != nil {
		return err
	}
	if err := b.key(ctx); err != nil {
		return err
	}
	debs, err := b.fetch(ctx)
	if err != nil {
		return err
	}
	b.forgetPeak()
	line := []string{image}
	if err := made(image); err != nil {
		return err
	}
	for i, packages := range additions() {
		b.say("a guest of image %d gets %s", i+1, packages[0])
		if image, err = b.descend(ctx, image, fmt.Sprintf("line-%d", i+2), debs, packages); err != nil {
			return err
		}
		line = append(line, image)
		if err := made(image); err != nil {
			return err
		}
	}
	b.line = line
	return nil
}

// descend makes the next image of a line, as a person would.
func (b *bench) descend(ctx context.Context, image, name, debs string, packages []string) (string, error) {
	id, err := b.kami(ctx, "launch", image, "--key-name", "bench", "--instance-type", "t3.small", "--wait", "ssh", "-o", "id")
	if err != nil {
		return "", err
	}
	var files []string
	for _, p := range packages {
		found, err := filepath.Glob(filepath.Join(debs, p+"_*.deb"))
		if err != nil || len(found) != 1 {
			return "", errors.Join(err, fmt.Errorf("package %s was not fetched", p))
		}
		files = append(files, filepath.Base(found[0]))
	}
	tar := exec.CommandContext(ctx, "tar", append([]string{"-C", debs, "-c"}, files...)...)
	archive, err := tar.Output()
	if err != nil {
		return "", err
	}
	// The guest's first boot is over before it is changed.
	const install = "cloud-init status --wait >/dev/null 2>&1; cd /var/tmp && tar -x && dpkg -i *.deb >/dev/null && rm *.deb"
	if _, err := b.kamiAt(ctx, b.home(), bytes.NewReader(archive), "ssh", id, "--", "sudo sh -c '"+install+"'"); err != nil {
		return "", err
	}
	if _, err := b.kami(ctx, "instance", "stop", id); err != nil {
		return "", err
	}
	next, err := b.kami(ctx, "image", "create", id, "--name", name, "-o", "id")
	if err != nil {
		return "", err
	}
	_, err = b.kami(ctx, "instance", "terminate", id)
	return next, err
}

// fetch gets the packages from Debian's mirror with lists of our own, whatever
// this host is, and returns their folder.
func (b *bench) fetch(ctx context.Context) (string, error) {
	dir := filepath.Join(b.dir, "debs")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	b.say("fetching packages")
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return "", err
		}
	}
	source := "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main\n"
	for name, text := range map[string]string{"sources.list": source, "status": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	options := []string{
		"-q", "-o", "Dir::State=" + dir + "/state", "-o", "Dir::State::status=" + dir + "/status", "-o", "Dir::Cache=" + dir + "/cache",
		"-o", "Dir::Etc::SourceList=" + dir + "/sources.list", "-o", "Dir::Etc::SourceParts=-", "-o", "APT::Sandbox::User=",
		"-o", "APT::Architecture=amd64", "-o", "Acquire::Retries=3",
	}
	var all []string
	for _, packages := range additions() {
		all = append(all, packages...)
	}
	for _, words := range []string{"update", "download " + strings.Join(all, " ")} {
		cmd := exec.CommandContext(ctx, "apt-get", append(options, strings.Fields(words)...)...)
		cmd.Dir = dir
		if _, _, err := finish(cmd); err != nil {
			return "", err
		}
	}
	return dir, nil
}
