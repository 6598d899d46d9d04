package launch

import (
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

func TestMetaData(t *testing.T) {
	tests := []struct {
		name     string
		hostname string
		keys     []string
	}{
		{"no keys", "web", nil},
		{"two keys", "web", []string{"ssh-ed25519 AAAAC3Nza me@home", "ssh-rsa AAAAB3 you # there: \"q\" 'q'"}},
		{"a number is text", "0123", []string{"42"}},
		{"a truth is text", "yes", []string{"true", "null", "~"}},
		{"nothing YAML would take for its own", "- web: {a}", []string{"&x", "*x", "!x", "%x", "@x", "`x", "| x", "> x", "---"}},
		{"lines", "web\nshutdown: now", []string{"ssh-rsa AAAA\n", " blank before", "behind "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			md := ami.Metadata{InstanceID: someInstance, Hostname: tt.hostname}
			for _, k := range tt.keys {
				md.PublicKeys = append(md.PublicKeys, ami.PublicKey{Key: k})
			}
			text := MetaData(md)
			var got map[string]any
			if err := yaml.Unmarshal(text, &got); err != nil {
				t.Fatalf("%v in:\n%s", err, text)
			}
			want := map[string]any{"instance-id": string(someInstance), "local-hostname": tt.hostname}
			if tt.keys != nil {
				var keys []any
				for _, k := range tt.keys {
					keys = append(keys, k)
				}
				want["public-keys"] = keys
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("meta-data (-want +got):\n%s\nin:\n%s", d, text)
			}
		})
	}
}

func TestMetaDataSaysWhereTheGuestIs(t *testing.T) {
	text := MetaData(ami.Metadata{
		InstanceID: someInstance, Hostname: "web", ImageID: "ami-0123456789abcdef0", InstanceType: "t3.micro",
		Region: "local-1", AvailabilityZone: "local-1a", PublicKeys: []ami.PublicKey{{Name: "me", Key: "ssh-ed25519 AAAA me"}},
	})
	const want = `instance-id: i-0123456789abcdef0
local-hostname: web
ami-id: ami-0123456789abcdef0
instance-type: t3.micro
region: local-1
availability-zone: local-1a
public-keys:
- ssh-ed25519 AAAA me
`
	if d := cmp.Diff(want, string(text)); d != "" {
		t.Errorf("meta-data (-want +got):\n%s", d)
	}
}
