package disk

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestSeedIsReadByOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seed.iso")
	if err := WriteSeed(path, Seed{MetaData: []byte("instance-id: i-1\n"), UserData: []byte("#!/bin/sh\n")}); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "xorriso", "-indev", path, "-find", "/", "-type", "f").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"Volume id    : 'cidata'", "'/meta-data'", "'/user-data'"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("xorriso does not show %s:\n%s", want, out)
		}
	}
}
