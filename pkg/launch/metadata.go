package launch

import (
	"github.com/goccy/go-yaml"

	"github.com/kamivm/kami/pkg/ami"
)

// MetaData renders NoCloud's meta-data: who the guest is, and the public keys
// that it lets in.
func MetaData(md ami.Metadata) []byte {
	doc := struct {
		InstanceID       ami.InstanceID `yaml:"instance-id"`
		Hostname         string         `yaml:"local-hostname"`
		ImageID          ami.ImageID    `yaml:"ami-id,omitempty"`
		InstanceType     string         `yaml:"instance-type,omitempty"`
		Region           string         `yaml:"region,omitempty"`
		AvailabilityZone string         `yaml:"availability-zone,omitempty"`
		PublicKeys       []string       `yaml:"public-keys,omitempty"`
	}{md.InstanceID, md.Hostname, md.ImageID, md.InstanceType, md.Region, md.AvailabilityZone, nil}
	for _, k := range md.PublicKeys {
		doc.PublicKeys = append(doc.PublicKeys, k.Key)
	}
	b, err := yaml.Marshal(doc)
	if err != nil { // strings always marshal
		panic(err)
	}
	return b
}
