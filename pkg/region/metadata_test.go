package region

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/hypervisor"
	"github.com/kamivm/kami/pkg/hypervisor/fake"
	"github.com/kamivm/kami/pkg/machine"
)

// runner is a hypervisor that can run a program for a guest.
type runner struct {
	*fake.Driver
	specs *[]machine.Spec
}

func (runner) RunsMetadata() bool { return true }

func (r runner) Start(ctx context.Context, spec machine.Spec) error {
	*r.specs = append(*r.specs, spec)
	return r.Driver.Start(ctx, spec)
}

const someProgram = "/usr/bin/kami"

// serving is a region whose guests reach the metadata service, and what they
// were started with.
func serving(t *testing.T) (*house, *Region, *[]machine.Spec) {
	t.Helper()
	h := newHouse(t)
	var specs []machine.Spec
	return h, h.open(t, h.serves(&specs)), &specs
}

func (h *house) serves(specs *[]machine.Spec) func(*Options) {
	return func(o *Options) {
		o.Program = someProgram
		o.NewDriver = func(context.Context, string) (hypervisor.Driver, error) { return runner{h.driver, specs}, nil }
	}
}

func newKey(t *testing.T, r *Region, name string) {
	t.Helper()
	_, _, err := r.CreateKeyPair(t.Context(), name, "ed25519", false)
	must(t, err)
}

// guestOf is how the metadata service reads what a guest is told.
func guestOf(t *testing.T, h *house, id ami.InstanceID) GuestMetadata {
	t.Helper()
	return get(OpenMetadata(h.home, DefaultRegion, id))(t)
}

func TestMetadataOfALaunch(t *testing.T) {
	h, r, specs := serving(t)
	base := image(t, r, "base")
	newKey(t, r, "me")
	inst := launched(t, r, RunInstancesInput{
		Image: "base", KeyName: "me", UserData: []byte("#!/bin/sh\n\xff"), Hostname: "web-1", InstanceType: "t3.small",
		BlockDeviceMappings: []ami.BlockDeviceMapping{
			{DeviceName: "/dev/sdf", Ebs: &ami.EBSBlockDevice{VolumeSize: new(int64(1))}},
			{DeviceName: "/dev/sdb", VirtualName: "ephemeral0"},
			{DeviceName: "/dev/sdg", Ebs: &ami.EBSBlockDevice{VolumeSize: new(int64(1))}},
		},
		Tags: []ami.Tag{{Key: "Name", Value: "web"}},
	})
	got := get(guestOf(t, h, inst.InstanceID).Facts())(t)
	identity, keys := got.Identity, got.PublicKeys
	got.Identity, got.PublicKeys = ami.Identity{}, nil
	want := ami.Metadata{
		InstanceID: inst.InstanceID, ImageID: base.ImageID, ReservationID: inst.ReservationID, OwnerID: ami.DefaultAccount,
		InstanceType: "t3.small", Architecture: ami.ArchX8664, Virtualization: "hvm", Region: "local-1", AvailabilityZone: "local-1a",
		LaunchTime: inst.LaunchTime, Hostname: "web-1", MAC: inst.MAC, PrivateIP: "169.254.10.15", Subnet: "169.254.0.0/16",
		RootDeviceName: "/dev/sda1", UserData: []byte("#!/bin/sh\n\xff"), Options: ami.DefaultMetadataOptions(""),
		Devices: []ami.MetadataDevice{{Name: "ebs1", Device: "/dev/sdf"}, {Name: "ephemeral0", Device: "/dev/sdb"}, {Name: "ebs2", Device: "/dev/sdg"}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("metadata (-want +got):\n%s", d)
	}
	if len(keys) != 1 || keys[0].Name != "me" || !strings.HasPrefix(keys[0].Key, "ssh-ed25519 ") {
		t.Errorf("got the keys %v", keys)
	}
	if identity.Document == "" {
		t.Error("there is no identity document")
	}
	wantArgv := []string{someProgram, "imds", "answer", "--home", h.home, "--region", "local-1", string(inst.InstanceID)}
	if d := cmp.Diff(wantArgv, (*specs)[0].Network.Metadata); d != "" {
		t.Errorf("the program (-want +got):\n%s", d)
	}
	for _, name := range []string{metadataName, secretName} {
		if info := get(os.Stat(filepath.Join(r.instanceDir(inst.InstanceID), name)))(t); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v", name, info.Mode())
		}
	}
	if secret := get(guestOf(t, h, inst.InstanceID).Secret())(t); len(secret) != secretBytes {
		t.Errorf("the secret has %d bytes", len(secret))
	}
	told := get(r.Metadata(t.Context(), inst.InstanceID))(t)
	told.Identity, told.PublicKeys = ami.Identity{}, nil
	if d := cmp.Diff(want, told); d != "" {
		t.Errorf("what the region says (-want +got):\n%s", d)
	}
}

// TestMetadataStay: what a guest was told at its launch it is told after a stop
// too, when the key pair is long gone.
func TestMetadataStay(t *testing.T) {
	h, r, _ := serving(t)
	image(t, r, "base")
	newKey(t, r, "me")
	inst := launched(t, r, RunInstancesInput{Image: "base", KeyName: "me", UserData: []byte("data")})
	before := get(guestOf(t, h, inst.InstanceID).Facts())(t)
	secret := get(guestOf(t, h, inst.InstanceID).Secret())(t)
	must(t, r.DeleteKeyPair(t.Context(), "me", false))
	stop(t, r, inst.InstanceID)
	get(r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false))(t)
	if d := cmp.Diff(before, get(guestOf(t, h, inst.InstanceID).Facts())(t)); d != "" {
		t.Errorf("after a start (-before +after):\n%s", d)
	}
	if !bytes.Equal(secret, get(guestOf(t, h, inst.InstanceID).Secret())(t)) {
		t.Error("tokens from before the stop are worth nothing")
	}
}

func TestNoSeed(t *testing.T) {
	tests := []struct {
		name    string
		serves  bool
		support string
		options ami.MetadataOptions
		network string
		want    bool // a seed
	}{
		{"nothing is known of the image", true, "", ami.MetadataOptions{}, "", true},
		{"an image that asks the service", true, ami.IMDSv2, ami.MetadataOptions{}, "", false},
		{"an image that would ask a service that is off", true, ami.IMDSv2, ami.MetadataOptions{HTTPEndpoint: ami.Disabled}, "", true},
		{"a hypervisor that cannot serve", false, ami.IMDSv2, ami.MetadataOptions{}, "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHouse(t)
			var specs []machine.Spec
			r := h.open(t, h.serves(&specs))
			base := image(t, r, "base")
			get(r.RegisterImage(t.Context(), RegisterImageInput{
				Name: "asks", ImdsSupport: tt.support,
				BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/dev/sda1", Ebs: &ami.EBSBlockDevice{SnapshotID: rootSnapshot(base)}}},
			}))(t)
			if !tt.serves {
				r = h.open(t)
			}
			inst := launched(t, r, RunInstancesInput{Image: "asks", MetadataOptions: tt.options})
			_, err := os.Stat(r.seedPath(inst.InstanceID))
			if got := err == nil; got != tt.want {
				t.Errorf("there is a seed: %v, want %v", got, tt.want)
			}
			if inst.NoSeed == tt.want {
				t.Errorf("the record says NoSeed: %v", inst.NoSeed)
			}
			wantTokens := ami.DefaultMetadataOptions(tt.support).HTTPTokens
			if got := inst.MetadataOptions.HTTPTokens; got != wantTokens {
				t.Errorf("tokens are %q, want %q", got, wantTokens)
			}
		})
	}
}

// TestParavirtualHasASeed: such a guest cannot know that it is to ask.
func TestParavirtualHasASeed(t *testing.T) {
	_, r, _ := serving(t)
	inst := running(t, r)
	driver := get(r.driver(t.Context(), inst.Connect))(t)
	for virtualization, want := range map[string]bool{ami.VirtualizationHVM: true, ami.VirtualizationParavirtual: false} {
		if got := r.noSeed(driver, inst, ami.Image{ImdsSupport: ami.IMDSv2, VirtualizationType: virtualization}); got != want {
			t.Errorf("%s: the seed is left out: %v, want %v", virtualization, got, want)
		}
	}
}

// TestOnlyUserNetworkingServes: a guest on a network of the hypervisor's has no
// service, and nothing that says it had.
func TestOnlyUserNetworkingServes(t *testing.T) {
	h, r, _ := serving(t)
	inst := running(t, r)
	inst.Network = "default"
	driver := get(r.driver(t.Context(), inst.Connect))(t)
	if got := r.metadataProgram(driver, inst); got != nil {
		t.Errorf("got the program %q", got)
	}
	if md := get(r.facts(t.Context(), driver, inst))(t); md.PrivateIP != "" || md.Subnet != "" {
		t.Errorf("the address is %q in %q", md.PrivateIP, md.Subnet)
	}
	if r = h.open(t); get(r.facts(t.Context(), nil, inst))(t).PrivateIP != "" {
		t.Error("an address is known without a driver")
	}
}

func TestIdentity(t *testing.T) {
	h, r, _ := serving(t)
	inst := running(t, r)
	id := get(guestOf(t, h, inst.InstanceID).Facts())(t).Identity
	var doc map[string]any
	must(t, json.Unmarshal([]byte(id.Document), &doc))
	want := map[string]any{
		"accountId": ami.DefaultAccount, "architecture": "x86_64", "availabilityZone": "local-1a", "billingProducts": nil,
		"devpayProductCodes": nil, "marketplaceProductCodes": nil, "imageId": string(inst.ImageID), "instanceId": string(inst.InstanceID),
		"instanceType": "t3.micro", "kernelId": nil, "pendingTime": inst.LaunchTime.Format("2006-01-02T15:04:05Z"),
		"privateIp": "169.254.10.15", "ramdiskId": nil, "region": "local-1", "version": "2017-09-30",
	}
	if d := cmp.Diff(want, doc); d != "" {
		t.Errorf("document (-want +got):\n%s", d)
	}
	text := get(r.IdentityCertificate(t.Context()))(t)
	block, _ := pem.Decode([]byte(text))
	cert := get(x509.ParseCertificate(block.Bytes))(t)
	signature := get(base64.StdEncoding.DecodeString(strings.ReplaceAll(id.Signature, "\n", "")))(t)
	sum := sha256.Sum256([]byte(id.Document))
	must(t, rsa.VerifyPKCS1v15(cert.PublicKey.(*rsa.PublicKey), crypto.SHA256, sum[:], signature))

	second := running(t, r) // of the same region, by the same key
	if again := get(guestOf(t, h, second.InstanceID).Facts())(t).Identity; again.PKCS7 == id.PKCS7 {
		t.Error("two instances have the same identity")
	}
	if got := get(h.open(t).IdentityCertificate(t.Context()))(t); got != text {
		t.Error("the certificate changed")
	}
	if info := get(os.Stat(r.path("identity.pem")))(t); info.Mode().Perm() != 0o600 {
		t.Errorf("the key has the mode %v", info.Mode())
	}
}

// TestOpenSSLVerifies checks the signatures as docs/metadata.md says to.
func TestOpenSSLVerifies(t *testing.T) {
	h, r, _ := serving(t)
	inst := running(t, r)
	id := get(guestOf(t, h, inst.InstanceID).Facts())(t).Identity
	dir := t.TempDir()
	for name, text := range map[string]string{
		"certificate": get(r.IdentityCertificate(t.Context()))(t), "document": id.Document, "signature.b64": id.Signature,
		"pkcs7": "-----BEGIN PKCS7-----\n" + id.PKCS7 + "\n-----END PKCS7-----\n",
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	for _, script := range []string{
		"openssl smime -verify -in pkcs7 -inform PEM -certfile certificate -CAfile certificate | cmp - document",
		"openssl smime -verify -in pkcs7 -inform PEM -certfile certificate -noverify -content document >/dev/null",
		"openssl cms -verify -in pkcs7 -inform PEM -certfile certificate -noverify | cmp - document",
		"openssl x509 -pubkey -noout -in certificate >key && tr -d '\\n' <signature.b64 | openssl base64 -d -A >signature && openssl dgst -sha256 -verify key -signature signature document",
		"! { sed s/local-1/local-2/ document >forged && openssl dgst -sha256 -verify key -signature signature forged; }",
	} {
		cmd := exec.CommandContext(t.Context(), "bash", "-o", "pipefail", "-c", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
}
