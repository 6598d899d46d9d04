package e2e

import (
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// crawl is what cloud-init does, in the words of a guest that has nothing but
// busybox: a token, and then everything that is listed. It says what it found.
const crawl = `
base=http://169.254.169.254
wget -qO- $base/latest/meta-data/instance-id >/dev/null 2>&1 && echo "no token was needed"
token=$(printf 'PUT /latest/api/token HTTP/1.0\r\nX-aws-ec2-metadata-token-ttl-seconds: 300\r\n\r\n' | nc 169.254.169.254 80 | tail -n 1)
get() { wget -qO- --header "X-aws-ec2-metadata-token: $token" "$base/2021-03-23/$1" || echo "no answer: $1"; }
walk() {
	for name in $(get "$1"); do
		case $1$name in
		*/public-keys/*=*) walk "$1${name%%=*}/" ;;
		*/) walk "$1$name" ;;
		*) echo "$1$name $(get "$1$name" | head -n 1)" ;;
		esac
	done
}
walk meta-data/
echo "user-data $(get user-data | tail -n 1)"
get dynamic/instance-identity/document | grep instanceId
`

// TestMetadata asks the metadata service from inside a guest.
func TestMetadata(t *testing.T) {
	parallel(t)
	tiny(t)
	h := direct(shared)
	id := h.launch(t, "tiny", "--key-name", "e2e", "--hostname", "teller", "--tag", "stage=test", "--user-data", "some data",
		"--metadata-options", "HttpTokens=required,InstanceMetadataTags=enabled", "--wait", "ssh")
	inst := show[ami.Instance](t, h, "instance", id)
	said := h.ssh(t, id, crawl)
	for _, want := range []string{
		"meta-data/instance-id " + id, "meta-data/ami-id " + string(inst.ImageID), "meta-data/local-hostname teller",
		"meta-data/local-ipv4 169.254.10.15", "meta-data/mac " + inst.MAC, "meta-data/tags/instance/stage test",
		"meta-data/placement/region local-1", "meta-data/public-keys/0/openssh-key ssh-", "user-data some data",
		`"instanceId": "` + id + `"`,
	} {
		if !strings.Contains("\n"+said, "\n"+want) && !strings.Contains(said, "  "+want) {
			t.Errorf("the guest does not find %q", want)
		}
	}
	for _, bad := range []string{"no answer", "no token was needed"} {
		if strings.Contains(said, bad) {
			t.Errorf("the guest says %q", bad)
		}
	}
	if t.Failed() {
		t.Logf("the guest says:\n%s", said)
	}
	if got := h.ssh(t, id, "ip -4 addr show dev eth0 | grep -c 169.254.10.15/16"); got != "1" {
		t.Error("the guest has another address than it is told")
	}
	// A change is seen without the guest being told.
	h.kami(t, "instance", "metadata", id, "--http-tokens", "optional")
	h.kami(t, "instance", "tag", id, "stage=prod")
	if got := h.ssh(t, id, "wget -qO- http://169.254.169.254/latest/meta-data/tags/instance/stage"); got != "prod" {
		t.Errorf("the guest is told of the stage %q", got)
	}
	h.kami(t, "instance", "metadata", id, "--http-endpoint", "disabled")
	if got := h.ssh(t, id, "wget -qO- http://169.254.169.254/latest/ 2>&1 | grep -c 403 || true"); got != "1" {
		t.Error("the service that is disabled answers")
	}
}
