package qmp

import "testing"

func TestImageFile(t *testing.T) {
	for name, want := range map[string]string{
		"/kami/a.qcow2": "/kami/a.qcow2",
		`json:{"driver":"qcow2","file":{"driver":"file","filename":"/kami/b.qcow2"}}`: "/kami/b.qcow2",
		"json:{":            "json:{",
		`json:{"file":"x"}`: `json:{"file":"x"}`,
	} {
		if got := ImageFile(name); got != want {
			t.Errorf("ImageFile(%q) = %q, want %q", name, got, want)
		}
	}
}
