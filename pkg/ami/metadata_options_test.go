package ami

import (
	"strings"
	"testing"
)

func TestParseMetadataOptions(t *testing.T) {
	tests := []struct {
		text string
		want MetadataOptions
		bad  string // is in the error
	}{
		{"HttpTokens=required", MetadataOptions{HTTPTokens: "required"}, ""},
		{"HttpTokens=optional,HttpPutResponseHopLimit=64,HttpEndpoint=disabled,InstanceMetadataTags=enabled", MetadataOptions{"optional", 64, "disabled", "enabled"}, ""},
		{"HttpTokens=required, HttpEndpoint=enabled", MetadataOptions{HTTPTokens: "required", HTTPEndpoint: "enabled"}, ""},
		{"", MetadataOptions{}, `option "" is not valid`},
		{"HttpTokens", MetadataOptions{}, `"HttpTokens"`},
		{"HttpTokens=", MetadataOptions{}, `"HttpTokens="`},
		{"HttpTokens=required,", MetadataOptions{}, `""`},
		{"HttpTokens=maybe", MetadataOptions{}, "HttpTokens is"},
		{"HttpTokens=maybe,HttpEndpoint=on", MetadataOptions{}, "HttpEndpoint is"},
		{"HttpPutResponseHopLimit=0", MetadataOptions{}, "HttpPutResponseHopLimit=0"},
		{"HttpPutResponseHopLimit=65", MetadataOptions{}, "HttpPutResponseHopLimit=65"},
		{"HttpPutResponseHopLimit=two", MetadataOptions{}, "HttpPutResponseHopLimit=two"},
		{"HttpProtocolIpv6=enabled", MetadataOptions{}, "HttpProtocolIpv6"},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			got, err := ParseMetadataOptions(tt.text)
			if tt.bad != "" {
				if ErrorCode(err) != CodeInvalidParameterValue || !strings.Contains(err.Error(), tt.bad) {
					t.Errorf("got the error %v, want one that says %q", err, tt.bad)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestMetadataOptionsOver(t *testing.T) {
	tests := []struct {
		name        string
		imdsSupport string
		said, want  MetadataOptions
	}{
		{"nothing said", "", MetadataOptions{}, MetadataOptions{"optional", 1, "enabled", "disabled"}},
		{"an image that uses tokens", "v2.0", MetadataOptions{}, MetadataOptions{"required", 2, "enabled", "disabled"}},
		{"what is said wins", "v2.0", MetadataOptions{HTTPTokens: "optional", HopLimit: 9}, MetadataOptions{"optional", 9, "enabled", "disabled"}},
		{"all said", "", MetadataOptions{"required", 3, "disabled", "enabled"}, MetadataOptions{"required", 3, "disabled", "enabled"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.said.Over(DefaultMetadataOptions(tt.imdsSupport)); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestCheckMetadataTags(t *testing.T) {
	for key, want := range map[string]Code{
		"Name": "", "kami:default-user": "", "a.b": "", "-": "", "_index2": "", "schlüssel": "",
		"a b": CodeInvalidParameterValue, "a/b": CodeInvalidParameterValue, "/": CodeInvalidParameterValue,
		".": CodeInvalidParameterValue, "..": CodeInvalidParameterValue, "_index": CodeInvalidParameterValue, "a\nb": CodeInvalidParameterValue,
	} {
		if got := ErrorCode(CheckMetadataTags([]Tag{{Key: "fine"}, {Key: key}})); got != want {
			t.Errorf("%q: got the code %q, want %q", key, got, want)
		}
	}
}
