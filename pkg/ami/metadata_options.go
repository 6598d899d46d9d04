package ami

import (
	"slices"
	"strconv"
	"strings"
)

// The values of MetadataOptions and of an image's ImdsSupport.
const (
	TokensOptional = "optional"
	TokensRequired = "required"
	Enabled        = "enabled"
	Disabled       = "disabled"
	IMDSv2         = "v2.0"
)

// maxHops is the largest hop limit.
const maxHops = 64

// MetadataOptions say how an instance's metadata service answers. A zero field
// is "not said".
type MetadataOptions struct {
	HTTPTokens   string `json:"HttpTokens"`              // optional: tokens of IMDSv2 may be used; required: they must be
	HopLimit     int    `json:"HttpPutResponseHopLimit"` // 1 to 64
	HTTPEndpoint string `json:"HttpEndpoint"`            // enabled or disabled
	InstanceTags string `json:"InstanceMetadataTags"`    // enabled: the instance's tags are among the metadata
}

// DefaultMetadataOptions are those of an instance of an image with that
// ImdsSupport when nothing was said.
func DefaultMetadataOptions(imdsSupport string) MetadataOptions {
	o := MetadataOptions{HTTPTokens: TokensOptional, HopLimit: 1, HTTPEndpoint: Enabled, InstanceTags: Disabled}
	if imdsSupport == IMDSv2 {
		o.HTTPTokens, o.HopLimit = TokensRequired, 2
	}
	return o
}

// Over lays what o says over under.
func (o MetadataOptions) Over(under MetadataOptions) MetadataOptions {
	if o.HTTPTokens != "" {
		under.HTTPTokens = o.HTTPTokens
	}
	if o.HopLimit != 0 {
		under.HopLimit = o.HopLimit
	}
	if o.HTTPEndpoint != "" {
		under.HTTPEndpoint = o.HTTPEndpoint
	}
	if o.InstanceTags != "" {
		under.InstanceTags = o.InstanceTags
	}
	return under
}

// Validate checks what is said. It returns InvalidParameterValue with every fault.
func (o MetadataOptions) Validate() error {
	var faults []string
	check := func(name, value string, allowed ...string) {
		if value != "" && !slices.Contains(allowed, value) {
			faults = append(faults, name+" is "+strconv.Quote(value)+" and not "+strings.Join(allowed, " or "))
		}
	}
	check("HttpTokens", o.HTTPTokens, TokensOptional, TokensRequired)
	check("HttpEndpoint", o.HTTPEndpoint, Enabled, Disabled)
	check("InstanceMetadataTags", o.InstanceTags, Enabled, Disabled)
	if o.HopLimit < 0 || o.HopLimit > maxHops {
		faults = append(faults, "HttpPutResponseHopLimit is "+strconv.Itoa(o.HopLimit)+" and not from 1 to "+strconv.Itoa(maxHops))
	}
	if len(faults) > 0 {
		return Errorf(CodeInvalidParameterValue, "The metadata options cannot be used: %s.", strings.Join(faults, "; "))
	}
	return nil
}

// ParseMetadataOptions reads EC2's shorthand: NAME=VALUE with commas between. It
// returns InvalidParameterValue.
func ParseMetadataOptions(s string) (MetadataOptions, error) {
	var o MetadataOptions
	for _, part := range strings.Split(s, ",") {
		name, value, _ := strings.Cut(part, "=")
		if value == "" {
			return o, badOption(part)
		}
		switch strings.TrimSpace(name) {
		case "HttpTokens":
			o.HTTPTokens = value
		case "HttpEndpoint":
			o.HTTPEndpoint = value
		case "InstanceMetadataTags":
			o.InstanceTags = value
		case "HttpPutResponseHopLimit":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 || n > maxHops {
				return o, badOption(part)
			}
			o.HopLimit = n
		default:
			return o, badOption(part)
		}
	}
	return o, o.Validate()
}

func badOption(part string) error {
	return Errorf(CodeInvalidParameterValue, "The metadata option %q is not valid.", part).
		WithHint("Use HttpTokens=optional|required, HttpPutResponseHopLimit=1..64, HttpEndpoint=enabled|disabled and InstanceMetadataTags=enabled|disabled, with commas between.")
}

// CheckMetadataTags finds the tags that cannot be among the metadata of an
// instance, where their keys are names in a path.
func CheckMetadataTags(tags []Tag) error {
	for _, t := range tags {
		if strings.ContainsAny(t.Key, " /\n") || t.Key == "." || t.Key == ".." || t.Key == "_index" {
			return Errorf(CodeInvalidParameterValue, "The tag key %q cannot be among the instance's metadata.", t.Key).
				WithHint("With InstanceMetadataTags=enabled a key has no spaces and slashes, and is not \".\", \"..\" or \"_index\".")
		}
	}
	return nil
}
