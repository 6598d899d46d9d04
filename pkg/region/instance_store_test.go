package region

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/hypervisor/hypervisortest"
	"github.com/kamivm/kami/pkg/qcow2"
)

// bundled packs a disk that boots and says text into images/NAME.
func bundled(t *testing.T, r *Region, name string, edit ...func(*BundleSpec, *bundle.Manifest)) Bundle {
	t.Helper()
	f := get(os.Open(diskOf(t, hypervisortest.BootSector(name), 2<<20)))(t)
	defer f.Close()
	return bundledFrom(t, r, f, name, edit...)
}

func bundledFrom(t *testing.T, r *Region, disk *os.File, name string, edit ...func(*BundleSpec, *bundle.Manifest)) Bundle {
	t.Helper()
	spec := BundleSpec{Location: "images/" + name}
	m := bundle.Manifest{
		Name: name, Architecture: ami.ArchX8664, VirtualizationType: ami.VirtualizationHVM, BootMode: ami.BootLegacyBIOS,
		RootDeviceName: "/dev/sda1", Partition: bundle.PartitionGPT, OwnerID: r.account,
	}
	for _, e := range edit {
		e(&spec, &m)
	}
	store, sizes, err := r.bundleTarget(t.Context(), spec)
	must(t, err)
	defer store.Close()
	return get(r.writeBundle(t.Context(), store, spec, bundle.CreateInput{Source: get(qcow2.RawSource(disk))(t), Manifest: m, ChunkSizes: sizes}))(t)
}

func ofBundle(name string) RegisterImageInput {
	return RegisterImageInput{Name: name, BundleImageInput: BundleImageInput{ImageLocation: "images/" + name + ".manifest"}}
}

// storeImage is an instance-store image whose guests say its name.
func storeImage(t *testing.T, r *Region, name string) ami.Image {
	t.Helper()
	bundled(t, r, name)
	return get(r.RegisterImage(t.Context(), ofBundle(name)))(t)
}

// storeGuest is a guest of such an image.
func storeGuest(t *testing.T, r *Region) ami.Instance {
	t.Helper()
	i := storeImage(t, r, "web")
	return launched(t, r, RunInstancesInput{Image: string(i.ImageID)})
}

func manifestPath(r *Region, name string) string {
	return r.path("objects", "images", name+".manifest")
}

func TestRegisterBundle(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	base := image(t, r, "base")
	data := rootSnapshot(base)
	b := bundled(t, r, "web", func(_ *BundleSpec, m *bundle.Manifest) {
		m.Description, m.Consistency, m.SourceImageID, m.SourceInstanceID = "the bundle's", ami.ConsistencyFrozen, base.ImageID, "i-0123456789abcdef0"
		m.BlockDeviceMappings = []ami.BlockDeviceMapping{{DeviceName: "/dev/sdb", VirtualName: "ephemeral0"}, {DeviceName: "/dev/sdc", VirtualName: "ephemeral1"}}
	})
	in := ofBundle("web")
	in.Tags, in.BootMode, in.ImdsSupport = []ami.Tag{{Key: "Name", Value: "web"}}, ami.BootUEFIPreferred, ami.IMDSv2
	in.BlockDeviceMappings = mapping(t, "/dev/sdc=none", "/dev/sdf="+string(data))
	wantCode(t, second(r.RegisterImage(t.Context(), dryly(in))), ami.CodeDryRunOperation)
	got := get(r.RegisterImage(t.Context(), in))(t)
	manifest := get(os.ReadFile(manifestPath(r, "web")))(t)
	want := ami.Image{
		ImageID: got.ImageID, Name: "web", Description: "the bundle's", OwnerID: ami.DefaultAccount, State: ami.ImageAvailable, CreationDate: got.CreationDate,
		Architecture: ami.ArchX8664, VirtualizationType: "hvm", Hypervisor: "kvm", ImageType: "machine", RootDeviceType: "instance-store",
		RootDeviceName: "/dev/sda1", BootMode: ami.BootUEFIPreferred, PlatformDetails: "Linux/UNIX", UsageOperation: ami.LinuxUsage, ImageLocation: "images/web.manifest", ImdsSupport: "v2.0", Tags: in.Tags,
		BlockDeviceMappings: []ami.BlockDeviceMapping{
			{DeviceName: "/dev/sdb", VirtualName: "ephemeral0"},
			{DeviceName: "/dev/sdf", Ebs: &ami.EBSBlockDevice{SnapshotID: data, DeleteOnTermination: new(false)}},
		},
		SourceImageID: base.ImageID, SourceInstanceID: "i-0123456789abcdef0", Consistency: ami.ConsistencyFrozen,
		Bundle: &ami.BundleSource{
			ManifestDigest: digest.Of(manifest), IndexDigest: b.Manifest.Index.Digest, ContentDigest: b.Manifest.Digest, SizeBytes: 2 << 20, Signer: b.Signer,
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
	for _, f := range []Filter{
		{Name: "root-device-type", Values: []string{"instance-store"}},
		{Name: "manifest-location", Values: []string{"images/*"}},
		{Name: "block-device-mapping.snapshot-id", Values: []string{string(data)}},
	} {
		found := get(r.DescribeImages(t.Context(), DescribeInput{Filters: []Filter{f, {Name: "name", Values: []string{"web"}}}}))(t)
		if len(found) != 1 || cmp.Diff(want, found[0]) != "" {
			t.Errorf("%s: got %v, want the image", f.Name, found)
		}
	}
	// The snapshot is in use by it.
	wantCode(t, r.DeleteSnapshot(t.Context(), data, false), ami.CodeInvalidSnapshotInUse)
}

// spoil changes a byte in the middle of a file.
func spoil(t *testing.T, path string) {
	t.Helper()
	b := get(os.ReadFile(path))(t)
	b[len(b)/2] ^= 1
	overwrite(t, path, b)
}

// overwrite is for files that nobody is meant to write to.
func overwrite(t *testing.T, path string, b []byte) {
	t.Helper()
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, b, 0o444))
}

func dryly(in RegisterImageInput) RegisterImageInput { in.DryRun = true; return in }

func TestRegisterBundleRefused(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	storeImage(t, r, "taken")
	bundled(t, r, "web")
	bundled(t, r, "unsigned", func(s *BundleSpec, _ *bundle.Manifest) { s.Unsigned = true })
	bundled(t, r, "damaged")
	spoil(t, manifestPath(r, "damaged"))
	bundled(t, r, "pv", func(_ *BundleSpec, m *bundle.Manifest) {
		m.VirtualizationType, m.BootMode, m.Partition = ami.VirtualizationParavirtual, "", bundle.PartitionNone
		m.KernelID = "aki-0123456789abcdef0"
	})
	foreign, _ := open(t)
	bundled(t, foreign, "theirs")
	before := look(t, r, d)
	tests := []struct {
		name string
		edit func(*RegisterImageInput)
		code ami.Code
		says string
	}{
		{"not there", func(in *RegisterImageInput) { in.ImageLocation = "images/none.manifest" }, ami.CodeInvalidManifest, "does not exist"},
		{"no location", func(in *RegisterImageInput) { in.ImageLocation = "images" }, ami.CodeInvalidParameterValue, "bucket/prefix"},
		{"not signed", func(in *RegisterImageInput) { in.ImageLocation = "images/unsigned.manifest" }, ami.CodeInvalidManifest, "not signed"},
		{"damaged", func(in *RegisterImageInput) { in.ImageLocation = "images/damaged.manifest" }, ami.CodeInvalidManifest, "not sound"},
		{"somebody else's", func(in *RegisterImageInput) {
			in.ImageLocation, in.Store = "images/theirs.manifest", foreign.path("objects")
		}, ami.CodeInvalidManifest, "cannot be trusted"},
		{"no store", func(in *RegisterImageInput) { in.Store = "gopher://x" }, ami.CodeInvalidParameterValue, "gopher"},
		{"its name is taken", func(in *RegisterImageInput) { in.Name = "taken" }, ami.CodeInvalidAMINameDuplicate, "taken"},
		{"another architecture", func(in *RegisterImageInput) { in.Architecture = ami.ArchARM64 }, ami.CodeInvalidParameterCombination, "is x86_64, not arm64"},
		{"paravirtual", func(in *RegisterImageInput) { in.VirtualizationType = ami.VirtualizationParavirtual }, ami.CodeInvalidParameterCombination, "is hvm, not paravirtual"},
		{"with a kernel", func(in *RegisterImageInput) { in.KernelID = ami.PVGrub }, ami.CodeInvalidParameterCombination, "not with hvm"},
		{"another region's kernel", func(in *RegisterImageInput) { in.ImageLocation = "images/pv.manifest" }, ami.CodeInvalidAMIIDNotFound, "aki-0123456789abcdef0"},
		{"a boot mode without firmware", func(in *RegisterImageInput) {
			in.ImageLocation, in.KernelID, in.BootMode = "images/pv.manifest", ami.PVGrub, ami.BootUEFI
		}, ami.CodeInvalidParameterCombination, "boot mode"},
		{"no boot mode", func(in *RegisterImageInput) { in.BootMode = "floppy" }, ami.CodeInvalidParameterValue, "floppy"},
		{"its root mapped", func(in *RegisterImageInput) { in.BlockDeviceMappings = mapping(t, "/dev/sda1=:4") }, ami.CodeInvalidBlockDeviceMapping, "its bundle"},
		{"a snapshot that is not there", func(in *RegisterImageInput) {
			in.BlockDeviceMappings = mapping(t, "/dev/sdf=snap-0123456789abcdef0")
		}, ami.CodeInvalidSnapshotNotFound, "snap-0123456789abcdef0"},
		{"a store without a bundle", func(in *RegisterImageInput) { in.ImageLocation, in.Store = "", t.TempDir() }, ami.CodeInvalidParameterCombination, "location of a bundle"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := ofBundle("web")
			tt.edit(&in)
			err := second(r.RegisterImage(t.Context(), in))
			wantCode(t, err, tt.code)
			wantSays(t, err, tt.says)
		})
	}
	if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
		t.Errorf("it left something (-before +after):\n%s", diff)
	}
	// What is refused for its signature alone can be asked for.
	for name, store := range map[string]string{"unsigned": "", "theirs": foreign.path("objects")} {
		in := ofBundle(name)
		in.AllowUnsigned, in.Store = true, store
		got := get(r.RegisterImage(t.Context(), in))(t)
		if (got.Bundle.Store != "") != (store != "") || (got.Bundle.Signer != "") != (name == "theirs") {
			t.Errorf("%s: got %+v", name, *got.Bundle)
		}
		launched(t, r, RunInstancesInput{Image: name})
	}
}

// A paravirtual bundle's kernel is pv-grub where it says none.
func TestRegisterParavirtualBundle(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	bundled(t, r, "pv-1", func(_ *BundleSpec, m *bundle.Manifest) {
		m.VirtualizationType, m.BootMode, m.Partition, m.KernelCmdline = ami.VirtualizationParavirtual, "", bundle.PartitionNone, "quiet"
	})
	got := get(r.RegisterImage(t.Context(), ofBundle("pv-1")))(t)
	if got.VirtualizationType != ami.VirtualizationParavirtual || got.KernelID != ami.PVGrub || got.BootMode != "" || got.KernelCmdline != "quiet" {
		t.Errorf("got %s %s %q %q", got.VirtualizationType, got.KernelID, got.BootMode, got.KernelCmdline)
	}
}

// A bundle is launched as it was registered, or not at all.
func TestBundleThatWasChanged(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		harm  func(t *testing.T, r *Region)
		code  ami.Code // of a launch
		first bool     // only where the root is not in the cache
	}{
		{"another manifest", func(t *testing.T, r *Region) {
			text := get(os.ReadFile(manifestPath(r, "web")))(t)
			overwrite(t, manifestPath(r, "web"), append(text, '\n'))
		}, ami.CodeInvalidManifest, false},
		{"the manifest is gone", func(t *testing.T, r *Region) { must(t, os.Remove(manifestPath(r, "web"))) }, ami.CodeInvalidManifest, false},
		{"the bundle is gone", func(t *testing.T, r *Region) {
			get(r.DeleteBundle(t.Context(), DeleteBundleInput{Location: "images/web"}))(t)
		}, ami.CodeInvalidManifest, false},
		{"another one in its place", func(t *testing.T, r *Region) {
			get(r.DeleteBundle(t.Context(), DeleteBundleInput{Location: "images/web"}))(t)
			bundled(t, r, "web", func(_ *BundleSpec, m *bundle.Manifest) { m.Description = "another" })
		}, ami.CodeInvalidManifest, false},
		{"its chunks are gone", func(t *testing.T, r *Region) { must(t, os.RemoveAll(r.path("objects", "images", "chunks"))) }, ami.CodeInvalidManifest, true},
		{"a chunk is damaged", func(t *testing.T, r *Region) {
			for _, c := range get(filepath.Glob(r.path("objects", "images", "chunks", "*", "*")))(t) {
				spoil(t, c)
			}
		}, ami.CodeInvalidManifest, true},
		{"its index is another", func(t *testing.T, r *Region) { spoil(t, r.path("objects", "images", "web.caibx")) }, ami.CodeInvalidManifest, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, d := open(t)
			i := storeImage(t, r, "web")
			run := func() error {
				return second(r.RunInstances(t.Context(), RunInstancesInput{Image: string(i.ImageID)}))
			}
			must(t, run())
			tt.harm(t, r)
			if tt.first {
				must(t, run())
			} else {
				wantCode(t, run(), tt.code)
				wantCode(t, second(r.RunInstances(t.Context(), RunInstancesInput{Image: string(i.ImageID), DryRun: true})), tt.code)
			}
			for _, inst := range get(r.DescribeInstances(t.Context(), DescribeInput{}))(t) {
				terminate(t, r, inst.InstanceID)
			}
			before := look(t, r, d)
			get(r.RemoveGarbage(t.Context(), get(r.PlanGarbage(t.Context(), GCInput{Cache: true}))(t)))(t)
			wantCode(t, run(), tt.code)
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("it left something (-before +after):\n%s", diff)
			}
			found := get(r.verifyRecords(t.Context(), get(r.readRecords(t.Context()))(t)))(t)
			if told := slices.ContainsFunc(found, func(v VerifyResult) bool { return v.Resource == string(i.ImageID) }); told == tt.first {
				t.Errorf("got %v of a verify, want to be told of the image: %v", found, !tt.first)
			}
			// Registered again, what is sound is launched again.
			if strings.HasPrefix(tt.name, "another") {
				get(r.DeregisterImage(t.Context(), i.ImageID, false, false))(t)
				in := ofBundle("web")
				in.AllowUnsigned = true
				i = get(r.RegisterImage(t.Context(), in))(t)
				must(t, run())
			}
		})
	}
}

// Where the store is away, what is in the cache is launched all the same.
func TestLaunchWithoutTheStore(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "one")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "two")
	l := &listener{}
	r, _ := open(t, tellingTo(l))
	i := storeImage(t, r, "web")
	launched(t, r, RunInstancesInput{Image: "web"})
	i.Bundle.Store = "s3://kami/away?endpoint=http://127.0.0.1:1&path_style=true"
	must(t, r.checkBundle(t.Context(), i, true))
	if !l.noted("the root comes from the cache") {
		t.Errorf("got the notes %q, want to be told", l.notes)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.checkBundle(ctx, i, false); err == nil {
		t.Error("a bundle that cannot be asked for is taken for sound")
	}
}
