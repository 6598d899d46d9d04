package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSettleDriver(t *testing.T) {
	const direct, session = "qemu-direct:///", "qemu:///session"
	type said struct{ driver, connect string }
	tests := []struct {
		flags, env, conf said
		want             said
		fails            string
	}{
		{want: said{}},
		{flags: said{driver: "qemu"}, want: said{"qemu", ""}},
		{env: said{driver: "qemu"}, want: said{"qemu", ""}},
		{conf: said{driver: "libvirt", connect: session}, want: said{"libvirt", session}},
		{flags: said{driver: "libvirt"}, env: said{connect: session}, want: said{"libvirt", session}},
		// What is nearer goes first, and what does not fit to it is not meant for it.
		{flags: said{driver: "qemu"}, env: said{connect: session}, want: said{"qemu", ""}},
		{flags: said{driver: "qemu"}, env: said{connect: session}, conf: said{connect: direct}, want: said{"qemu", direct}},
		{flags: said{connect: session}, env: said{driver: "qemu"}, want: said{"", session}},
		{flags: said{connect: session}, env: said{driver: "qemu"}, conf: said{driver: "libvirt"}, want: said{"libvirt", session}},
		{flags: said{"qemu", session}, fails: "no guests at"},
		{env: said{"libvirt", direct}, fails: "no guests at"},
		{conf: said{driver: "xen"}, fails: `"xen" is not one of libvirt, qemu`},
	}
	for _, tt := range tests {
		a := &app{}
		a.flags.driver, a.flags.connect = tt.flags.driver, tt.flags.connect
		t.Setenv("KAMI_DRIVER", tt.env.driver)
		t.Setenv("KAMI_CONNECT", tt.env.connect)
		err := a.settleDriver(config{Driver: tt.conf.driver, Connect: tt.conf.connect})
		if tt.fails != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("%+v: %v, want %q", tt, err, tt.fails)
			}
			continue
		}
		if got := (said{a.flags.driver, a.flags.connect}); err != nil || got != tt.want {
			t.Errorf("%+v: got %+v, %v", tt, got, err)
		}
	}
}

func TestDriverInConfig(t *testing.T) {
	home := newHome(t)
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "config.toml"), []byte("driver = \"xen\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, status := kami(t, "instance", "list"); status != exitUsage || !strings.Contains(stderr, `the driver "xen"`) {
		t.Errorf("a driver that there is not: exit status %d\n%s", status, stderr)
	}
}
