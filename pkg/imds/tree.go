package imds

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
)

// versions are those of EC2's that a program may name; each has the same tree.
func versions() []string {
	return []string{
		"1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01", "2008-09-01",
		"2009-04-04", "2011-01-01", "2011-05-01", "2012-01-12", "2014-02-25", "2014-11-05", "2015-10-20", "2016-04-19",
		"2016-06-30", "2016-09-02", "2018-03-28", "2018-08-17", "2018-09-24", "2019-10-01", "2020-10-27", "2021-01-03",
		"2021-03-23", "2021-07-15", "2022-07-09", "2022-09-24", "2024-04-11", "latest",
	}
}

const userData = "user-data"

// What EC2's own services are called. A guest of kami reaches none, but programs
// make names of them.
const (
	servicesDomain    = "amazonaws.com"
	servicesPartition = "aws"
)

// leaf is one fact: its path below a version, and what is there.
type leaf struct{ path, text string }

// Lookup returns what is at a path, such as /latest/meta-data/instance-id: a
// fact, or for a folder the names in it, one a line, folders with a slash. A
// slash at the end makes no difference, nor do several for one.
func Lookup(md ami.Metadata, path string) ([]byte, bool) {
	words := words(path)
	if len(words) == 0 {
		return []byte(strings.Join(versions(), "\n")), true
	}
	if !slices.Contains(versions(), words[0]) {
		return nil, false
	}
	want := strings.Join(words[1:], "/")
	var names []string
	for _, l := range leaves(md) {
		if l.path == want {
			return []byte(l.text), true
		}
		rest, ok := strings.CutPrefix(l.path, want+"/")
		if want == "" {
			rest, ok = l.path, true
		}
		if !ok {
			continue
		}
		name, _, folder := strings.Cut(rest, "/")
		if folder {
			name += "/"
		}
		names = append(names, name)
	}
	if want == "meta-data/public-keys" { // which lists what the numbers stand for
		names = names[:0]
		for i, k := range md.PublicKeys {
			names = append(names, fmt.Sprintf("%d=%s", i, k.Name))
		}
	}
	slices.Sort(names)
	return []byte(strings.Join(slices.Compact(names), "\n")), len(names) > 0
}

// words are what is between the slashes of a path.
func words(path string) []string {
	return strings.FieldsFunc(path, func(c rune) bool { return c == '/' })
}

// Paths lists the paths of all facts, below a version.
func Paths(md ami.Metadata) []string {
	var all []string
	for _, l := range leaves(md) {
		all = append(all, l.path)
	}
	slices.Sort(all)
	return all
}

// leaves are all facts that there are. A folder is there by what is in it, so
// that whatever is listed has an answer.
func leaves(md ami.Metadata) []leaf {
	var all []leaf
	add := func(text string, path ...string) { all = append(all, leaf{strings.Join(path, "/"), text}) }
	known := func(text string, path ...string) { // a fact that not every guest has
		if text != "" {
			add(text, path...)
		}
	}
	add(md.Identity.Document, "dynamic/instance-identity/document")
	add(md.Identity.Signature, "dynamic/instance-identity/signature")
	add(md.Identity.PKCS7, "dynamic/instance-identity/pkcs7")
	add(md.Identity.PKCS7, "dynamic/instance-identity/rsa2048")
	if md.UserData != nil {
		add(string(md.UserData), userData)
	}

	const meta = "meta-data"
	add(string(md.ImageID), meta, "ami-id")
	add(fmt.Sprint(md.LaunchIndex), meta, "ami-launch-index")
	manifest := "(unknown)" // as EC2 says of an image in snapshots
	if md.ManifestPath != "" {
		manifest = md.ManifestPath
	}
	add(manifest, meta, "ami-manifest-path")
	known(lines(md.Ancestors), meta, "ancestor-ami-ids")
	add(shortDevice(md.RootDeviceName), meta, "block-device-mapping", "ami")
	add(md.RootDeviceName, meta, "block-device-mapping", "root")
	for _, d := range md.Devices {
		add(shortDevice(d.Device), meta, "block-device-mapping", d.Name)
	}
	add(md.Hostname, meta, "hostname")
	add("none", meta, "instance-action")
	add(string(md.InstanceID), meta, "instance-id")
	add("on-demand", meta, "instance-life-cycle")
	add(md.InstanceType, meta, "instance-type")
	known(string(md.KernelID), meta, "kernel-id")
	add(md.Hostname, meta, "local-hostname")
	known(md.PrivateIP, meta, "local-ipv4")
	add(md.MAC, meta, "mac")
	network(md, add, known)
	add(md.AvailabilityZone, meta, "placement", "availability-zone")
	add(md.Region, meta, "placement", "region")
	known(lines(md.ProductCodes), meta, "product-codes")
	add("default-"+md.Virtualization, meta, "profile")
	for i, k := range md.PublicKeys {
		add(k.Key, meta, "public-keys", fmt.Sprint(i), "openssh-key")
	}
	known(string(md.RamdiskID), meta, "ramdisk-id")
	add(string(md.ReservationID), meta, "reservation-id")
	add("default", meta, "security-groups")
	add(servicesDomain, meta, "services", "domain")
	add(servicesPartition, meta, "services", "partition")
	if ami.CheckMetadataTags(md.Tags) == nil { // else a key would be another path
		for _, t := range md.Tags {
			add(t.Value, meta, "tags", "instance", t.Key)
		}
	}
	return all
}

// network adds the one interface.
func network(md ami.Metadata, add, known func(string, ...string)) {
	at := "meta-data/network/interfaces/macs/" + md.MAC
	add("0", at, "device-number")
	add(md.Hostname, at, "local-hostname")
	known(md.PrivateIP, at, "local-ipv4s")
	add(md.MAC, at, "mac")
	add(md.OwnerID, at, "owner-id")
	add("default", at, "security-groups")
	known(md.Subnet, at, "subnet-ipv4-cidr-block")
}

// shortDevice is a device's name without its folder.
func shortDevice(device string) string { return strings.TrimPrefix(device, "/dev/") }

func lines[T ~string](list []T) string {
	text := make([]string, len(list))
	for i, s := range list {
		text[i] = string(s)
	}
	return strings.Join(text, "\n")
}
