package machine

import "strings"

// VirtioConsole says whether the guest's console is the virtio one, hvc0, and not
// a serial port: the last console that its kernel is told of is the one that it
// writes to, and that is the one to be kept.
func (k Kernel) VirtioConsole() bool {
	virtio := false
	for _, word := range strings.Fields(k.Cmdline) {
		if name, ok := strings.CutPrefix(word, "console="); ok {
			virtio = strings.HasPrefix(name, "hvc")
		}
	}
	return virtio
}
