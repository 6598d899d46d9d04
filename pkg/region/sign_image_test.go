package region

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
)

// keyPairFile is the private key of a fresh pair of ssh-keygen's; the public one is
// beside it.
func keyPairFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "id")
	out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path).CombinedOutput()
	if err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	return path
}

func sign(t *testing.T, r *Region, id ami.ImageID, key string) ami.Image {
	t.Helper()
	return get(r.SignImage(t.Context(), SignImageInput{ImageID: id, Key: key}))(t)
}

func trusts(t *testing.T, r *Region, key string) {
	t.Helper()
	get(r.TrustBundles(t.Context(), key+".pub", false))(t)
}

func policy(t *testing.T, r *Region, s SignatureState, at ...SignedAction) {
	t.Helper()
	get(r.SetSignaturePolicy(t.Context(), s, at, false))(t)
}

// edited changes an image's record past everybody who looks after it.
func edited(t *testing.T, r *Region, id ami.ImageID, edit func(*ami.Image)) {
	t.Helper()
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		i, err := tx.Image(id)
		if err == nil {
			edit(&i)
			err = tx.PutImage(i)
		}
		return err
	}))
}

func imageVerified(t *testing.T, r *Region, id ami.ImageID) (VerifyImageResult, error) {
	t.Helper()
	return r.VerifyImage(t.Context(), get(r.image(t.Context(), id))(t))
}

func manifestOf(t *testing.T, r *Region, id ami.ImageID) string {
	t.Helper()
	return string(get(r.ImageManifest(t.Context(), get(r.image(t.Context(), id))(t)))(t))
}

// The text that is signed, byte for byte, and the content digest in it as anybody can
// make it of a raw disk.
func TestImageManifest(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	disk := rawDisk(t, "web")
	i := get(r.ImportImage(t.Context(), ImportInput{Source: disk, Name: "web", BootMode: ami.BootUEFI}))(t)
	whole := get(os.ReadFile(disk))(t)
	var sums []byte
	for block := range slices.Chunk(whole, 512<<10) {
		sum := sumOf(block)
		sums = append(sums, sum[:]...)
	}
	want := "kami-image 1\narchitecture x86_64\nboot-mode uefi\nvirtualization-type hvm\nroot-device /dev/sda1\n" +
		"disk /dev/sda1 2097152 sha256:" + digest.Of(sums).Hex() + "\n"
	if got := manifestOf(t, r, i.ImageID); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	aki, ari := kernel(t, r, "linux"), ramdisk(t, r, "initrd")
	pv := pvImage(t, r, image(t, r, "base"), "web-pv", PVBoot{KernelID: aki, RamdiskID: ari, KernelCmdline: "root=/dev/vda ro"})
	for _, id := range []string{string(aki), string(ari)} {
		k := get(r.ownImage(t.Context(), ami.ImageID(id)))(t)
		if line := k.ImageType + " sha256:" + k.Data.Hex() + "\n"; !strings.Contains(manifestOf(t, r, pv.ImageID), line) {
			t.Errorf("got %s, which has no line %s", manifestOf(t, r, pv.ImageID), line)
		}
		_, err := r.SignImage(t.Context(), SignImageInput{ImageID: ami.ImageID(id)})
		wantCode(t, err, ami.CodeUnsupportedOperation)
	}
	if line := "kernel-command-line root=/dev/vda ro\n"; !strings.Contains(manifestOf(t, r, pv.ImageID), line) {
		t.Errorf("got %s, which has no line %s", manifestOf(t, r, pv.ImageID), line)
	}
	edited(t, r, pv.ImageID, func(i *ami.Image) { i.KernelCmdline = "a\nkernel pv-grub" })
	_, err := r.SignImage(t.Context(), SignImageInput{ImageID: pv.ImageID})
	wantCode(t, err, ami.CodeUnsupportedOperation)
}

func TestSignImage(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	i := image(t, r, "web")
	_, err := imageVerified(t, r, i.ImageID)
	wantCode(t, err, ami.CodeOperationNotPermitted)
	wantSays(t, err, "is not signed")

	mine, theirs := keyPairFile(t), keyPairFile(t)
	sign(t, r, i.ImageID, mine)
	sign(t, r, i.ImageID, mine) // again is once
	signed := sign(t, r, i.ImageID, "")
	if len(signed.Signatures) != 2 {
		t.Fatalf("got %d signatures, want those of two keys", len(signed.Signatures))
	}
	v, err := imageVerified(t, r, i.ImageID)
	must(t, err) // the region's own key is trusted
	if s := v.Signatures; len(s) != 2 || !s[0].Valid || s[0].Trusted || !s[1].Valid || !s[1].Trusted {
		t.Errorf("got %+v, want both valid and the region's trusted", s)
	}
	get(r.UnsignImage(t.Context(), i.ImageID, strings.TrimPrefix(signed.Signatures[1].KeyFingerprint, "SHA256:"), false))(t)
	_, err = r.UnsignImage(t.Context(), i.ImageID, signed.Signatures[1].KeyFingerprint, false)
	wantCode(t, err, ami.CodeInvalidParameterValue)
	_, err = imageVerified(t, r, i.ImageID)
	wantCode(t, err, ami.CodeAuthFailure)
	trusts(t, r, mine)
	must(t, second(imageVerified(t, r, i.ImageID)))

	// One that ssh-keygen has made is taken, and only of this image.
	text := filepath.Join(t.TempDir(), "manifest")
	must(t, os.WriteFile(text, []byte(manifestOf(t, r, i.ImageID)), 0o600))
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-Y", "sign", "-f", theirs, "-n", bundle.ImageNamespace, text).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	attach := SignImageInput{ImageID: i.ImageID, Signature: text + ".sig"}
	if got := get(r.SignImage(t.Context(), attach))(t); len(got.Signatures) != 2 {
		t.Errorf("got %d signatures, want the one that was made elsewhere too", len(got.Signatures))
	}
	attach.Key = mine + ".pub" // who has not made it
	_, err = r.SignImage(t.Context(), attach)
	wantCode(t, err, ami.CodeInvalidManifest)
	attach.ImageID, attach.Key = image(t, r, "data").ImageID, ""
	_, err = r.SignImage(t.Context(), attach)
	wantCode(t, err, ami.CodeInvalidManifest)

	// What kami has signed, ssh-keygen takes, with the region's own file of who is trusted.
	for n, s := range get(r.image(t.Context(), i.ImageID))(t).Signatures[:1] {
		path := filepath.Join(t.TempDir(), "sig")
		must(t, os.WriteFile(path, []byte(s.Signature), 0o600))
		cmd := exec.CommandContext(t.Context(), "ssh-keygen", "-Y", "verify", "-f", r.keyring().TrustedPath(), "-I", bundle.Signer, "-n", bundle.ImageNamespace, "-s", path)
		cmd.Stdin = strings.NewReader(manifestOf(t, r, i.ImageID))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("signature %d: ssh-keygen: %v\n%s", n, err, out)
		}
	}

	for name, tt := range map[string]struct {
		in   SignImageInput
		want ami.Code
	}{
		"no such key":       {SignImageInput{ImageID: i.ImageID, Key: text + ".none"}, ami.CodeInvalidKeyFormat},
		"no key":            {SignImageInput{ImageID: i.ImageID, Key: text}, ami.CodeInvalidKeyFormat},
		"no public key":     {SignImageInput{ImageID: i.ImageID, Key: text, Signature: text + ".sig"}, ami.CodeInvalidKeyFormat},
		"no such signature": {SignImageInput{ImageID: i.ImageID, Signature: text + ".none"}, ami.CodeInvalidParameterValue},
		"no signature":      {SignImageInput{ImageID: i.ImageID, Signature: text}, ami.CodeInvalidManifest},
		"a dry run":         {SignImageInput{ImageID: i.ImageID, Key: mine, DryRun: true}, ami.CodeDryRunOperation},
		"no image":          {SignImageInput{ImageID: ami.NewImageID(), Key: mine}, ami.CodeInvalidAMIIDNotFound},
	} {
		_, err := r.SignImage(t.Context(), tt.in)
		if got := ami.ErrorCode(err); got != tt.want {
			t.Errorf("%s: got the code %q (%v), want %q", name, got, err, tt.want)
		}
	}
	share(t, r, i.ImageID, accountOf(stranger))
	_, err = h.open(t, as(stranger)).SignImage(t.Context(), SignImageInput{ImageID: i.ImageID, Key: mine})
	wantCode(t, err, ami.CodeAuthFailure)
	must(t, second(imageVerified(t, h.open(t, as(stranger)), i.ImageID))) // who may launch it may verify it
	for range maxSignatures {
		_, err = r.SignImage(t.Context(), SignImageInput{ImageID: i.ImageID, Key: keyPairFile(t)})
	}
	wantCode(t, err, ami.CodeResourceLimitExceeded)
}

// A signature goes with all that has the same content, and with nothing else.
func TestSignatureTravels(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	key := keyPairFile(t)
	_, child := twoLayers(t, r)
	sign(t, r, child.ImageID, key)
	text := manifestOf(t, r, child.ImageID)
	h.region(t, "lab-1", "")
	h.region(t, "far-1", "file://"+filepath.Join(h.home, "far"))
	lab := h.open(t, inRegion("lab-1"))
	trusts(t, lab, key)
	policy(t, lab, SignaturesRequire)
	check := func(what string, id ami.ImageID) {
		t.Helper()
		if got := manifestOf(t, lab, id); got != text {
			t.Errorf("%s: got the manifest\n%swant\n%s", what, got, text)
		}
		if v, err := imageVerified(t, lab, id); err != nil || len(v.Signatures) != 1 || !v.Signatures[0].Valid {
			t.Errorf("%s: got %+v (%v), want it signed", what, v.Signatures, err)
		}
		launched(t, lab, RunInstancesInput{Image: string(id)})
	}
	from := CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: string(child.ImageID), Name: "near"}
	check("a copy", get(h.copied(t, "lab-1", from))(t).ImageID)
	from.Name, from.Encrypted = "sealed", true
	sealed := get(h.copied(t, "lab-1", from))(t).ImageID
	if s := described(t, lab, rootSnapshot(get(lab.image(t.Context(), sealed))(t))); !s.Encrypted {
		t.Errorf("got %+v, want it encrypted", s)
	}
	check("an encrypted copy", sealed)
	from.Name, from.Encrypted = "there", false
	get(h.copied(t, "far-1", from))(t)
	check("a copy by way of an object store", get(h.copied(t, "lab-1", CopyImageInput{SourceRegion: "far-1", SourceImageID: "there", Name: "back"}))(t).ImageID)
	file := filepath.Join(t.TempDir(), "web.bin")
	get(r.StoreImage(t.Context(), StoreImageInput{Image: string(child.ImageID), To: file}))(t)
	check("what was stored", get(lab.RestoreStoredImage(t.Context(), RestoreImageInput{From: file, Name: "restored"}))(t).ImageID)

	inst := launched(t, lab, RunInstancesInput{Image: "near"})
	next := get(lab.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "next"}))(t)
	if len(next.Signatures) > 0 {
		t.Errorf("got %+v, want an image that was made of a guest not signed", next.Signatures)
	}
	wantCode(t, launchErr(t, lab, "next"), ami.CodeOperationNotPermitted)
}

// What the policy refuses, each with its code and a sentence that says what to do.
func TestSignaturePolicy(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	told := &listener{}
	r := h.open(t, tellingTo(told))
	h.region(t, "lab-1", "")
	lab := h.open(t, inRegion("lab-1"), tellingTo(told))
	key := keyPairFile(t)
	bare, web := image(t, r, "bare"), image(t, r, "web")
	sign(t, r, web.ImageID, key)
	broken := image(t, r, "broken")
	sign(t, r, broken.ImageID, key)
	edited(t, r, broken.ImageID, func(i *ami.Image) { i.RootDeviceName = "/dev/sda" })

	if p := get(r.SignaturePolicy(t.Context()))(t); p != (SignaturePolicy{SignaturesOff, SignaturesOff, SignaturesOff}) {
		t.Errorf("got %+v, want it off", p)
	}
	for _, i := range []ami.Image{bare, web, broken} {
		launched(t, r, RunInstancesInput{Image: string(i.ImageID)})
	}
	policy(t, r, SignaturesWarn)
	launched(t, r, RunInstancesInput{Image: string(bare.ImageID)})
	if !told.noted("is not signed") {
		t.Errorf("got the notes %q, want one of the image that is not signed", told.notes)
	}
	policy(t, r, SignaturesRequire, SignedLaunch)
	if p := get(h.open(t, as(stranger)).SignaturePolicy(t.Context()))(t); p != (SignaturePolicy{SignaturesRequire, SignaturesWarn, SignaturesWarn}) {
		t.Errorf("got %+v, want it required at a launch, for all accounts", p)
	}
	wantCode(t, launchErr(t, r, string(bare.ImageID)), ami.CodeOperationNotPermitted)
	wantCode(t, launchErr(t, r, string(web.ImageID)), ami.CodeAuthFailure)
	trusts(t, r, key)
	launched(t, r, RunInstancesInput{Image: string(web.ImageID)})
	wantCode(t, launchErr(t, r, string(broken.ImageID)), ami.CodeInvalidManifest)
	edited(t, r, broken.ImageID, func(i *ami.Image) { i.KernelID = "aki-0123456789abcdef0" }) // which is gone
	err := launchErr(t, r, string(broken.ImageID))
	wantCode(t, err, ami.CodeInvalidManifest)
	wantSays(t, err, "cannot be said")
	edited(t, r, broken.ImageID, func(i *ami.Image) { i.KernelID = "" })
	edited(t, r, web.ImageID, func(i *ami.Image) {
		other := i.Signatures[0]
		other.KeyFingerprint, other.Signature = "SHA256:x", strings.Replace(other.Signature, "U1NIU0lH", "AAAAAAAA", 1)
		i.Signatures = append([]ami.ImageSignature{other}, i.Signatures...)
	})
	inst := launched(t, r, RunInstancesInput{Image: string(web.ImageID)}) // one good one is enough
	_, err = r.RunInstances(t.Context(), RunInstancesInput{Image: string(bare.ImageID), DryRun: true})
	wantCode(t, err, ami.CodeOperationNotPermitted)

	// Nothing is slipped under what is signed.
	disk := func(device string, of ami.Image) ami.BlockDeviceMapping {
		return ami.BlockDeviceMapping{DeviceName: device, Ebs: &ami.EBSBlockDevice{SnapshotID: rootSnapshot(of)}}
	}
	two := get(r.RegisterImage(t.Context(), RegisterImageInput{Name: "two", BlockDeviceMappings: []ami.BlockDeviceMapping{disk("/dev/sda1", web), disk("/dev/sdb", web)}}))(t)
	sign(t, r, two.ImageID, key)
	over := []ami.BlockDeviceMapping{disk("/dev/sdb", bare)}
	_, err = r.RunInstances(t.Context(), RunInstancesInput{Image: "two", BlockDeviceMappings: over})
	wantCode(t, err, ami.CodeOperationNotPermitted)
	wantSays(t, err, "something else")
	over[0].DeviceName = "/dev/sdf" // beside it
	get(r.RunInstances(t.Context(), RunInstancesInput{Image: "two", BlockDeviceMappings: over}))(t)
	_, err = r.ReplaceRootVolume(t.Context(), ReplaceRootInput{InstanceID: inst.InstanceID, ImageID: bare.ImageID})
	wantCode(t, err, ami.CodeOperationNotPermitted)
	get(r.ReplaceRootVolume(t.Context(), ReplaceRootInput{InstanceID: inst.InstanceID, ImageID: web.ImageID}))(t)

	// A copy and an import, by the policy of where they go.
	policy(t, lab, SignaturesRequire, SignedCopy, SignedImport)
	trusts(t, lab, key)
	copied := func(name string) error {
		_, err := h.copied(t, "lab-1", CopyImageInput{SourceRegion: DefaultRegion, SourceImageID: name, Name: name})
		return err
	}
	wantCode(t, copied("bare"), ami.CodeOperationNotPermitted)
	wantCode(t, copied("broken"), ami.CodeInvalidManifest)
	must(t, copied("web"))
	_, err = lab.ImportImage(t.Context(), ImportInput{Source: rawDisk(t, "x"), Name: "disk"})
	wantCode(t, err, ami.CodeOperationNotPermitted)
	file := filepath.Join(t.TempDir(), "bare.bin")
	get(r.StoreImage(t.Context(), StoreImageInput{Image: "bare", To: file}))(t)
	_, err = lab.RestoreStoredImage(t.Context(), RestoreImageInput{From: file, Name: "bare"})
	wantCode(t, err, ami.CodeOperationNotPermitted)
	if all := get(lab.DescribeImages(t.Context(), DescribeInput{}))(t); len(all) != 1 {
		t.Errorf("got %d images, want the one that is signed", len(all))
	}
	policy(t, lab, SignaturesWarn, SignedImport)
	get(lab.RestoreStoredImage(t.Context(), RestoreImageInput{From: file, Name: "bare"}))(t)

	_, err = r.SetSignaturePolicy(t.Context(), "sometimes", nil, false)
	wantCode(t, err, ami.CodeInvalidParameterValue)
	_, err = r.SetSignaturePolicy(t.Context(), SignaturesOff, []SignedAction{"dream"}, false)
	wantCode(t, err, ami.CodeInvalidParameterValue)
	_, err = r.SetSignaturePolicy(t.Context(), SignaturesOff, nil, true)
	wantCode(t, err, ami.CodeDryRunOperation)

	// What is for all accounts is for the one that keeps the region to say.
	other := h.open(t, as(stranger))
	_, err = other.SetSignaturePolicy(t.Context(), SignaturesOff, nil, false)
	wantCode(t, err, ami.CodeUnauthorizedOperation)
	_, err = other.TrustBundles(t.Context(), key+".pub", false)
	wantCode(t, err, ami.CodeUnauthorizedOperation)
	own := get(other.BundleKeys(t.Context()))(t)[0].Fingerprint
	wantCode(t, other.DistrustBundles(t.Context(), own, false), ami.CodeUnauthorizedOperation)
}

// Verifying reads the bytes: a record that says what was signed is not believed.
func TestVerifyImageReads(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	i, other := image(t, r, "web"), image(t, r, "evil")
	sign(t, r, i.ImageID, "")
	must(t, second(imageVerified(t, r, i.ImageID)))
	was := described(t, r, rootSnapshot(i))
	put := func(layer digest.Digest) {
		t.Helper()
		must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
			s := was
			s.Layer = layer
			return tx.PutSnapshot(s)
		}))
	}
	put(layerOf(t, r, other)) // sound in itself, and not what was signed
	v, err := imageVerified(t, r, i.ImageID)
	wantCode(t, err, ami.CodeInternalError)
	wantSays(t, err, "content digest")
	if len(v.Signatures) != 1 || !v.Signatures[0].Valid {
		t.Errorf("got %+v, want the signature told of all the same", v.Signatures)
	}
	put(was.Layer)
	must(t, second(imageVerified(t, r, i.ImageID)))
	damage(t, r, was.Layer, 70_000)
	_, err = imageVerified(t, r, i.ImageID)
	wantCode(t, err, ami.CodeInternalError)
}

// An instance-store image is signed by what is in its bundle.
func TestSignStoreImage(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	i := storeImage(t, r, "web")
	if line := "bundle " + i.RootDeviceName + " "; !strings.Contains(manifestOf(t, r, i.ImageID), line) {
		t.Errorf("got %s, which has no line %s", manifestOf(t, r, i.ImageID), line)
	}
	policy(t, r, SignaturesRequire)
	wantCode(t, launchErr(t, r, string(i.ImageID)), ami.CodeOperationNotPermitted)
	sign(t, r, i.ImageID, "")
	must(t, second(imageVerified(t, r, i.ImageID)))
	launched(t, r, RunInstancesInput{Image: string(i.ImageID)})
	overwriteAll(t, r.path("objects"), "images/chunks/*/*.cacnk", []byte("xxxx"))
	_, err := imageVerified(t, r, i.ImageID)
	wantCode(t, err, ami.CodeInvalidManifest)
}
