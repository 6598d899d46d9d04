package region

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The plain copy that qemu-img reads lies beside the target and not in the region,
// for nobody but its owner, and not for longer than that.
func TestPlainCopyOfAnExport(t *testing.T) {
	r, _ := open(t)
	secret := encryptedSnapshot(t, r, snapshotOf(t, r, 1<<20, marks{0: 1}), "")
	bin, to := t.TempDir(), t.TempDir()
	seen := filepath.Join(bin, "seen")
	script := "#!/bin/sh\nfor a; do from=$to; to=${a#file:}; done\n" +
		"stat -c '%a %n' \"$(dirname \"$from\")\" >" + seen + "\nhead -c 1 \"$from\" >>" + seen + "\n"
	must(t, os.WriteFile(filepath.Join(bin, "qemu-img"), []byte(script), 0o700))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	before := files(t, r)
	must(t, r.ExportSnapshot(t.Context(), ExportInput{SnapshotID: secret.SnapshotID, Path: filepath.Join(to, "out.vmdk"), Decrypt: true}))
	got := string(get(os.ReadFile(seen))(t))
	if want := "700 " + filepath.Join(to, "kami-export-"); !strings.HasPrefix(got, want) || !strings.HasSuffix(got, ".work\n\x01") {
		t.Errorf("qemu-img saw %q, want %s….work and the plain block", got, want)
	}
	if names := get(filepath.Glob(filepath.Join(to, "*")))(t); len(names) != 1 || len(files(t, r)) != len(before) {
		t.Errorf("got %q, want the target alone", names)
	}
}
