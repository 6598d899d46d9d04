package machine

import "testing"

func TestVirtioConsole(t *testing.T) {
	for cmdline, want := range map[string]bool{
		"":                                     false,
		"root=/dev/vda ro":                     false,
		"console=ttyS0 quiet":                  false,
		"root=/dev/vda console=hvc0":           true,
		"console=tty0 console=hvc0,115200":     true,
		"console=hvc0 console=ttyS0,115200n8":  false,
		"xconsole=hvc0 init=/bin/console=hvc0": false,
	} {
		if got := (Kernel{Path: "/k", Cmdline: cmdline}).VirtioConsole(); got != want {
			t.Errorf("%q: got %t, want %t", cmdline, got, want)
		}
	}
}
