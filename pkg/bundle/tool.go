package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// tool runs one of e2fsprogs and returns what it printed. What it finds wrong
// without saying so by its status is an error too.
func tool(ctx context.Context, stdin []byte, name string, args ...string) (string, error) {
	program := programPath(name)
	if program == "" {
		return "", fmt.Errorf("the program %s is not installed; kami doctor says which package has it", name)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "MKE2FS_CONFIG=/dev/null",
		fmt.Sprintf("E2FSPROGS_FAKE_TIME=%d", epoch),
	}
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	text := strings.TrimSpace(errs.String())
	if name == "debugfs" || strings.Contains(strings.Join(args[:min(len(args), 6)], " "), "/debugfs") { // which begins with its version
		_, text, _ = strings.Cut(text, "\n")
		if err == nil && text != "" {
			err = errors.New("it failed")
		}
	}
	if err != nil {
		return text, fmt.Errorf("%s: %w: %.500s", name, err, text)
	}
	return out.String(), nil
}

// programPath finds a program, also where an ordinary user's path does not lead;
// "" is for none.
func programPath(name string) string {
	for _, dir := range []string{"", "/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	return ""
}
