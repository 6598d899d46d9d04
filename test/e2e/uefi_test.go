package e2e

import (
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// TestUEFI boots the same image with UEFI firmware, and asks the guest.
func TestUEFI(t *testing.T) {
	parallel(t)
	tiny(t)
	id := shared.launch(t, "tiny", "--key-name", "e2e", "--boot-mode", "uefi", "--wait", "ssh")
	if got := shared.ssh(t, id, "test -d /sys/firmware/efi && echo uefi || echo bios"); got != "uefi" {
		t.Errorf("the guest booted with %s, want uefi", got)
	}
	if got := show[ami.Instance](t, shared, "instance", id).CurrentBootMode; got != ami.BootUEFI {
		t.Errorf("CurrentInstanceBootMode is %s", got)
	}
	shared.ssh(t, id, "echo uefi > /etc/kami-e2e")
	next := shared.kami(t, "image", "create", id, "--name", "tiny-uefi", "-o", "id")
	if got := show[ami.Image](t, shared, "image", next); got.UEFIData == "" {
		t.Error("the image does not carry the guest's UEFI variables")
	}
	second := shared.launch(t, next, "--key-name", "e2e", "--boot-mode", "uefi", "--wait", "ssh")
	if got := shared.ssh(t, second, "test -d /sys/firmware/efi && cat /etc/kami-e2e"); got != "uefi" {
		t.Errorf("the second guest says %q", got)
	}
}

// TestLegacyBIOS is the other way into the same image.
func TestLegacyBIOS(t *testing.T) {
	parallel(t)
	tiny(t)
	id := shared.launch(t, "tiny", "--key-name", "e2e", "--boot-mode", "legacy-bios", "--wait", "ssh")
	if got := shared.ssh(t, id, "test -d /sys/firmware/efi && echo uefi || echo bios"); got != "bios" {
		t.Errorf("the guest booted with %s, want bios", got)
	}
}
