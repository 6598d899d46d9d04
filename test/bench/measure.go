package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

const (
	userspace = "tiny: userspace" // what images/tiny's init says first on the console
	bootLimit = 3 * time.Minute
)

// connect is where the guests run: libvirt gives root no session.
func connect() string {
	if os.Getuid() == 0 {
		return "qemu:///system"
	}
	return "qemu:///session"
}

func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

func (b *bench) kami(ctx context.Context, args ...string) (string, error) {
	home := []string{"--home", filepath.Join(b.dir, "home"), "--connect", connect()}
	// Options go before the "--" of kami ssh.
	at := len(args)
	for i, a := range args {
		if a == "--" {
			at = i
			break
		}
	}
	all := append(append(append([]string{}, args[:at]...), home...), args[at:]...)
	return command(ctx, b.bin, all...)
}

// image builds a recipe once under its own name.
func (b *bench) image(ctx context.Context, name string) (string, error) {
	id, err := b.kami(ctx, "image", "list", "--filter", "name="+name, "-o", "id")
	if err != nil || id != "" {
		return id, err
	}
	fmt.Fprintf(os.Stderr, "bench: building %s\n", name)
	return b.kami(ctx, "build", filepath.Join("images", name), "--name", name, "-o", "id")
}

func (b *bench) list(ctx context.Context) ([]row, error) {
	if _, err := b.image(ctx, "tiny"); err != nil {
		return nil, err
	}
	var took []time.Duration
	for range 4 * b.rounds {
		start := time.Now()
		if _, err := b.kami(ctx, "image", "list"); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
	}
	return []row{{"`kami image list`, one image, whole process", seconds(median(took)), "", "", "at most 0.040 s"}}, nil
}

// launch compares kami launch with virsh create of the same domain on a fresh
// overlay made by hand, from the start of the command to the guest's first line
// of userspace.
func (b *bench) launch(ctx context.Context) ([]row, error) {
	if _, err := b.image(ctx, "tiny"); err != nil {
		return nil, err
	}
	var ours, bare []time.Duration
	for range b.rounds {
		start := time.Now()
		id, err := b.kami(ctx, "launch", "tiny", "--wait", "running", "-o", "id")
		if err != nil {
			return nil, err
		}
		dir := filepath.Join(b.dir, "home/regions/local-1/instances", id)
		if err := waitLine(ctx, filepath.Join(dir, "console.log")); err != nil {
			return nil, err
		}
		ours = append(ours, time.Since(start))
		hand, err := b.domainByHand(ctx, id, dir)
		if err != nil {
			return nil, err
		}
		if _, err := b.kami(ctx, "instance", "terminate", id); err != nil {
			return nil, err
		}
		took, err := hand(ctx)
		if err != nil {
			return nil, err
		}
		bare = append(bare, took)
	}
	a, z := median(ours), median(bare)
	return []row{{"`kami launch tiny` to the first line of userspace; `virsh create` by hand", seconds(a), seconds(z), ratio(a, z) + fmt.Sprintf(" (%+.3f s)", (a-z).Seconds()), "at most +0.150 s"}}, nil
}

// domainByHand copies the domain that kami rendered, on files of its own.
func (b *bench) domainByHand(ctx context.Context, id, dir string) (func(context.Context) (time.Duration, error), error) {
	xml, err := os.ReadFile(filepath.Join(dir, "domain.xml"))
	if err != nil {
		return nil, err
	}
	inst, err := b.instance(ctx, id)
	if err != nil {
		return nil, err
	}
	own := filepath.Join(b.dir, "hand")
	if err := os.MkdirAll(own, 0o755); err != nil {
		return nil, err
	}
	volume := string(inst.BlockDeviceMappings[0].Ebs.VolumeID)
	head := filepath.Join(b.dir, "home/regions/local-1/volumes", volume+".qcow2")
	chain, err := command(ctx, "qemu-img", "info", "--force-share", "--output=json", "-f", "qcow2", head)
	if err != nil {
		return nil, err
	}
	var info struct {
		Backing string `json:"full-backing-filename"`
	}
	if err := json.Unmarshal([]byte(chain), &info); err != nil {
		return nil, err
	}
	seed, err := os.ReadFile(filepath.Join(dir, "seed.iso"))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(own, "seed.iso"), seed, 0o644); err != nil {
		return nil, err
	}
	text := strings.ReplaceAll(string(xml), head, filepath.Join(own, "head.qcow2"))
	text = strings.ReplaceAll(text, dir+"/", own+"/")
	text = regexp.MustCompile(`<name>[^<]*</name>`).ReplaceAllString(text, "<name>kami-bench-hand</name>")
	path := filepath.Join(own, "domain.xml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return nil, err
	}
	return func(ctx context.Context) (time.Duration, error) {
		log := filepath.Join(own, "console.log")
		os.Remove(log)
		os.Remove(filepath.Join(own, "head.qcow2"))
		start := time.Now()
		if _, err := command(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", info.Backing, filepath.Join(own, "head.qcow2")); err != nil {
			return 0, err
		}
		if _, err := command(ctx, "virsh", "-c", connect(), "create", path); err != nil {
			return 0, err
		}
		err := waitLine(ctx, log)
		took := time.Since(start)
		if _, derr := command(ctx, "virsh", "-c", connect(), "destroy", "kami-bench-hand"); err == nil {
			err = derr
		}
		return took, err
	}, nil
}

func (b *bench) instance(ctx context.Context, id string) (ami.Instance, error) {
	out, err := b.kami(ctx, "instance", "show", id, "-o", "json")
	if err != nil {
		return ami.Instance{}, err
	}
	return one[ami.Instance](out)
}

// one decodes EC2's answer of one object: a list under the noun's name.
func one[T any](text string) (T, error) {
	var answer map[string][]T
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return *new(T), err
	}
	for _, list := range answer {
		if len(list) == 1 && len(answer) == 1 {
			return list[0], nil
		}
	}
	return *new(T), fmt.Errorf("not one object: %.200s", text)
}

// waitLine polls a console log for the first line of userspace.
func waitLine(ctx context.Context, log string) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	for {
		text, err := os.ReadFile(log)
		if err == nil && bytes.Contains(text, []byte(userspace)) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no %q on %s: %w\n%s", userspace, log, ctx.Err(), text)
		case <-time.After(2 * time.Millisecond):
		}
	}
}
