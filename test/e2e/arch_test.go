package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// plainDebian is where packages come from when updates do not matter: one list to
// fetch, of which every mirror has the same.
const plainDebian = "deb http://deb.debian.org/debian bookworm main"

// machines builds tiny for another kind of machine, and has its key pair.
func machines(t *testing.T, name string, args ...string) {
	t.Helper()
	tiny(t)
	shared.kami(t, append([]string{"build", recipeDir("tiny"), "--name", name, "--no-relative", "--mirror", plainDebian}, args...)...)
}

// TestARM64 boots a machine that this host can only emulate, by UEFI, and saves it as
// the next image.
func TestARM64(t *testing.T) {
	parallel(t)
	machines(t, "tiny-arm64", "--architecture", "arm64")
	id := shared.launch(t, "tiny-arm64", "--key-name", "e2e", "--wait", "ssh")
	if got := shared.ssh(t, id, "uname -m; test -d /sys/firmware/efi && echo uefi; cat /sys/class/tty/console/active; cat /sys/class/dmi/id/product_serial | cut -c1-3"); got != "aarch64\nuefi\nttyAMA0\nec2" {
		t.Errorf("the guest says %q", got)
	}
	inst := show[ami.Instance](t, shared, "instance", id)
	if inst.Architecture != ami.ArchARM64 || inst.CurrentBootMode != ami.BootUEFI || inst.InstanceType != "t4g.micro" {
		t.Errorf("got an %s of %s by %s", inst.InstanceType, inst.Architecture, inst.CurrentBootMode)
	}
	next := shared.kami(t, "image", "create", id, "--name", "tiny-arm64-2", "--no-reboot", "-o", "id")
	if got := show[ami.Image](t, shared, "image", next); got.Architecture != ami.ArchARM64 || got.UEFIData == "" {
		t.Errorf("the next image is %+v", got)
	}
	shared.refuse(t, ami.CodeInvalidParameterCombination, "launch", "tiny-arm64", "--boot-mode", "legacy-bios")
	shared.refuse(t, ami.CodeInvalidParameterValue, "launch", "tiny-arm64", "--instance-type", "t3.micro")
}

// TestI386 boots a kernel of 32 bits on a processor of 32 bits.
func TestI386(t *testing.T) {
	parallel(t)
	machines(t, "tiny-i386", "--architecture", "i386")
	h := direct(shared)
	id := h.launch(t, "tiny-i386", "--key-name", "e2e", "--wait", "ssh")
	if got := h.ssh(t, id, "uname -m; test -d /sys/firmware/efi && echo uefi || echo bios; grep -c ' lm ' /proc/cpuinfo || true"); got != "i686\nbios\n0" {
		t.Errorf("the guest says %q", got)
	}
}

// What the guest of a Secure Boot with a TPM says of both.
const secureQuestions = `cat /sys/class/tpm/tpm0/tpm_version_major
dmesg | grep -o 'Secure boot enabled'
mount -t efivarfs none /sys/firmware/efi/efivars
tail -c 1 /sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c | od -An -tu1 | tr -d ' '`

// TestSecureBoot boots signed loaders and a signed kernel under Microsoft's keys, with
// a TPM, and sees that the firmware refuses loaders that nobody has signed.
func TestSecureBoot(t *testing.T) {
	parallel(t)
	machines(t, "tiny-secure", "--secure-boot")
	snapshot := func(image string) string {
		return string(show[ami.Image](t, shared, "image", image).BlockDeviceMappings[0].Ebs.SnapshotID)
	}
	shared.kami(t, "image", "register", "--name", "secure-tpm", "--boot-mode", "uefi", "--secure-boot", "--tpm-support", "v2.0", "--block-device-mapping", "/dev/sda1="+snapshot("tiny-secure"))
	id := shared.launch(t, "secure-tpm", "--key-name", "e2e", "--wait", "ssh")
	if got := shared.ssh(t, id, secureQuestions); got != "2\nSecure boot enabled\n1" {
		t.Errorf("the guest says %q, want a TPM 2 and Secure Boot", got)
	}
	// The guest's own variables go with another disk, whose loader is kami's own.
	vars := filepath.Join(t.TempDir(), "vars")
	if err := os.WriteFile(vars, []byte(shared.kami(t, "instance", "uefi-data", id, "-o", "id")), 0o600); err != nil {
		t.Fatal(err)
	}
	shared.kami(t, "instance", "terminate", id)
	shared.kami(t, "image", "register", "--name", "unsigned", "--boot-mode", "uefi", "--uefi-data", "@"+vars, "--block-device-mapping", "/dev/sda1="+snapshot("tiny"))
	h := direct(shared)
	refused := h.launch(t, "unsigned", "--key-name", "e2e")
	begun := time.Now()
	said := h.refuse(t, ami.CodeIncorrectInstanceState, "instance", "wait", refused, "--for", "ssh")
	if !strings.Contains(said, "Secure Boot is on") || !strings.Contains(said, "Access Denied") {
		t.Errorf("the wait says %q", said)
	}
	t.Logf("refused after %.1f s", time.Since(begun).Seconds())
}
