package imds

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

// macs is the folder of the guest's interface.
const macs = "meta-data/network/interfaces/macs/52:54:00:12:34:56"

// TestEveryPath: what is asked for, and what EC2 would say.
func TestEveryPath(t *testing.T) {
	folders := map[string]string{
		"": "dynamic/\nmeta-data/\nuser-data",
		"meta-data": "ami-id\nami-launch-index\nami-manifest-path\nancestor-ami-ids\nblock-device-mapping/\nhostname\n" +
			"instance-action\ninstance-id\ninstance-life-cycle\ninstance-type\nkernel-id\nlocal-hostname\nlocal-ipv4\nmac\n" +
			"network/\nplacement/\nproduct-codes\nprofile\npublic-keys/\nramdisk-id\nreservation-id\nsecurity-groups\nservices/\ntags/",
		"meta-data/block-device-mapping":    "ami\nebs1\nephemeral0\nroot\nswap",
		"meta-data/network":                 "interfaces/",
		"meta-data/network/interfaces":      "macs/",
		"meta-data/network/interfaces/macs": "52:54:00:12:34:56/",
		macs:                                "device-number\nlocal-hostname\nlocal-ipv4s\nmac\nowner-id\nsecurity-groups\nsubnet-ipv4-cidr-block",
		"meta-data/placement":               "availability-zone\nregion",
		"meta-data/public-keys":             "0=my key\n1=build",
		"meta-data/public-keys/0":           "openssh-key",
		"meta-data/services":                "domain\npartition",
		"meta-data/tags":                    "instance/",
		"meta-data/tags/instance":           "Name\nempty\nstage",
		"dynamic":                           "instance-identity/",
		"dynamic/instance-identity":         "document\npkcs7\nrsa2048\nsignature",
	}
	facts := map[string]string{
		"meta-data/ami-id":                          "ami-0123456789abcdef0",
		"meta-data/ami-launch-index":                "3",
		"meta-data/ami-manifest-path":               "(unknown)",
		"meta-data/ancestor-ami-ids":                "ami-0123456789abcdef1\nami-0123456789abcdef2",
		"meta-data/block-device-mapping/ami":        "sda1",
		"meta-data/block-device-mapping/ebs1":       "sdf",
		"meta-data/block-device-mapping/ephemeral0": "sdb",
		"meta-data/block-device-mapping/root":       "/dev/sda1",
		"meta-data/block-device-mapping/swap":       "sda3",
		"meta-data/hostname":                        "web-1",
		"meta-data/instance-action":                 "none",
		"meta-data/instance-id":                     "i-0123456789abcdef0",
		"meta-data/instance-life-cycle":             "on-demand",
		"meta-data/instance-type":                   "t3.micro",
		"meta-data/kernel-id":                       "aki-0123456789abcdef0",
		"meta-data/local-hostname":                  "web-1",
		"meta-data/local-ipv4":                      "169.254.10.15",
		"meta-data/mac":                             "52:54:00:12:34:56",
		macs + "/device-number":                     "0",
		macs + "/local-hostname":                    "web-1",
		macs + "/local-ipv4s":                       "169.254.10.15",
		macs + "/mac":                               "52:54:00:12:34:56",
		macs + "/owner-id":                          "000000000000",
		macs + "/security-groups":                   "default",
		macs + "/subnet-ipv4-cidr-block":            "169.254.0.0/16",
		"meta-data/placement/availability-zone":     "local-1a",
		"meta-data/placement/region":                "local-1",
		"meta-data/product-codes":                   "abc\ndef",
		"meta-data/profile":                         "default-hvm",
		"meta-data/public-keys/0/openssh-key":       someKey,
		"meta-data/public-keys/1/openssh-key":       someKey + "2",
		"meta-data/ramdisk-id":                      "ari-0123456789abcdef0",
		"meta-data/reservation-id":                  "r-0123456789abcdef0",
		"meta-data/security-groups":                 "default",
		"meta-data/services/domain":                 "amazonaws.com",
		"meta-data/services/partition":              "aws",
		"meta-data/tags/instance/Name":              "web",
		"meta-data/tags/instance/empty":             "",
		"meta-data/tags/instance/stage":             "a/b c",
		"dynamic/instance-identity/document":        `{"region":"local-1"}`,
		"dynamic/instance-identity/pkcs7":           "cGtjczc=",
		"dynamic/instance-identity/rsa2048":         "cGtjczc=",
		"dynamic/instance-identity/signature":       "c2lnbmF0dXJl",
		"user-data":                                 "#!/bin/sh\n\x00\xff",
	}
	g := newGuest()
	for _, version := range []string{"latest", "1.0", "2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23"} {
		for _, table := range []map[string]string{folders, facts} {
			for path, want := range table {
				for _, spelt := range []string{"/" + version + "/" + path, "/" + version + "/" + path + "/", "//" + version + "///" + path} {
					got, ok := Lookup(g.md, spelt)
					if !ok || string(got) != want {
						t.Errorf("%s: got %q (%v), want %q", spelt, got, ok, want)
					}
				}
			}
		}
	}
	var all []string
	for path := range facts {
		all = append(all, path)
	}
	slices.Sort(all)
	if d := cmp.Diff(all, Paths(g.md)); d != "" {
		t.Errorf("paths that this test does not know (-want +got):\n%s", d)
	}
}

func TestVersions(t *testing.T) {
	got := newGuest().wantStatus(t, 200, "GET", "/").text
	if list := strings.Split(got, "\n"); !slices.Equal(list, versions()) || !slices.Contains(list, "latest") {
		t.Errorf("got the versions %q", got)
	}
	for _, v := range versions() {
		newGuest().wantStatus(t, 200, "GET", "/"+v+"/meta-data/instance-id")
	}
}

// TestLeastFacts: what a guest does not have is not listed either.
func TestLeastFacts(t *testing.T) {
	md := ami.Metadata{
		InstanceID: "i-0123456789abcdef0", ImageID: "ami-0123456789abcdef0", Virtualization: "hvm",
		RootDeviceName: "/dev/sda1", MAC: "52:54:00:12:34:56", Hostname: "h",
	}
	got, _ := Lookup(md, "/latest/meta-data/")
	for _, name := range []string{"ancestor-ami-ids", "kernel-id", "local-ipv4", "product-codes", "public-keys/", "ramdisk-id", "tags/"} {
		if slices.Contains(strings.Split(string(got), "\n"), name) {
			t.Errorf("%s is listed", name)
		}
		if text, ok := Lookup(md, "/latest/meta-data/"+name); ok {
			t.Errorf("%s is %q", name, text)
		}
	}
	if got, _ := Lookup(md, "/latest"); string(got) != "dynamic/\nmeta-data/" {
		t.Errorf("got the folders %q", got)
	}
	if text, ok := Lookup(md, "/latest/user-data"); ok {
		t.Errorf("there is user data: %q", text)
	}
	md.UserData = []byte{}
	if text, ok := Lookup(md, "/latest/user-data"); !ok || len(text) != 0 {
		t.Errorf("user data of no bytes is %q (%v)", text, ok)
	}
}

// TestOddTags: a key that would be another path hides all tags.
func TestOddTags(t *testing.T) {
	g := newGuest()
	g.md.Tags = []ami.Tag{{Key: "fine"}, {Key: "../../instance-id", Value: "i-evil"}}
	g.wantStatus(t, 404, "GET", "/latest/meta-data/tags/instance/")
	g.wantStatus(t, 200, "GET", "/latest/meta-data/instance-id")
}

// TestCrawl walks as cloud-init does: from meta-data/ on it asks for everything
// that is listed, and one failure voids the whole.
func TestCrawl(t *testing.T) {
	for name, g := range map[string]*guest{"all facts": newGuest(), "few facts": {md: ami.Metadata{MAC: "52:54:00:00:00:01", RootDeviceName: "/dev/sda1"}}} {
		t.Run(name, func(t *testing.T) {
			seen := map[string]string{}
			g.crawl(t, "/2021-03-23/meta-data/", seen)
			if len(seen) < 20 {
				t.Errorf("only %d facts were found", len(seen))
			}
			if k := seen["/2021-03-23/meta-data/public-keys/0/openssh-key"]; name == "all facts" && k != someKey {
				t.Errorf("the public key is %q", k)
			}
		})
	}
}

// crawl is cloud-init's MetadataMaterializer: a name with a slash is a folder,
// one in public-keys is NUMBER=NAME, of which the number has the key.
func (g *guest) crawl(t *testing.T, folder string, seen map[string]string) {
	t.Helper()
	for _, name := range strings.Split(g.wantStatus(t, 200, "GET", folder).text, "\n") {
		switch number, _, key := strings.Cut(name, "="); {
		case name == "":
			t.Errorf("%s lists a name of nothing", folder)
		case strings.HasSuffix(name, "/"):
			g.crawl(t, folder+name, seen)
		case key && strings.HasSuffix(folder, "/public-keys/"):
			path := folder + number + "/openssh-key"
			seen[path] = g.wantStatus(t, 200, "GET", path).text
		default:
			seen[folder+name] = g.wantStatus(t, 200, "GET", folder+name).text
		}
	}
}

func FuzzLookup(f *testing.F) {
	for _, path := range []string{"/", "/latest/meta-data/", "/latest/meta-data/public-keys/0=my key", "/latest/../../etc/passwd", "latest", "//1.0//user-data/", "/latest/meta-data/tags/instance/Name"} {
		f.Add(path)
	}
	g := newGuest()
	known := map[string]bool{}
	for _, p := range Paths(g.md) {
		text, _ := Lookup(g.md, "/latest/"+p)
		known[string(text)] = true
	}
	f.Fuzz(func(t *testing.T, path string) {
		text, ok := Lookup(g.md, path)
		if !ok && text != nil && len(text) > 0 {
			t.Errorf("%q has no fact and is %q", path, text)
		}
		if !ok || known[string(text)] {
			return
		}
		// A folder: each of its names has an answer.
		for _, name := range strings.Split(string(text), "\n") {
			number, _, key := strings.Cut(name, "=")
			if key {
				name = number
			}
			if _, ok := Lookup(g.md, path+"/"+name); !ok {
				t.Errorf("%q lists %q, which is not there", path, name)
			}
		}
	})
}
