package region

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// ec2Files are the files of a bundle's folder, without the store's own.
func ec2Files(t *testing.T, dir string) (names []string) {
	t.Helper()
	for _, e := range get(os.ReadDir(dir))(t) {
		if !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestEC2BundleThereAndBack(t *testing.T) {
	r, _ := open(t)
	img := image(t, r, "web")
	snap := rootSnapshot(img)
	raw := filepath.Join(t.TempDir(), "disk.raw")
	must(t, r.ExportSnapshot(t.Context(), ExportInput{SnapshotID: snap, Path: raw}))
	want := get(os.ReadFile(raw))(t)
	for _, source := range []string{raw, string(snap), string(img.ImageID)} {
		to, out := filepath.Join(t.TempDir(), "bundles"), filepath.Join(t.TempDir(), "out.raw")
		b := get(r.ExportEC2Bundle(t.Context(), ExportEC2Input{Source: source, To: to, User: "1234-5678-9012"}))(t)
		name := filepath.Base(source)
		if got := ec2Files(t, to); !slices.Equal(got, []string{name + ".manifest.xml", name + ".part.00"}) {
			t.Errorf("got %q", got)
		}
		back := get(r.UnpackEC2Bundle(t.Context(), UnpackEC2Input{ReadEC2Input: ReadEC2Input{Manifest: name + ".manifest.xml", From: to}, File: out}))(t)
		if got := get(os.ReadFile(out))(t); !bytes.Equal(got, want) {
			t.Errorf("%s: the image is another", source)
		}
		if !back.Signed || back.User != "123456789012" || back.Manifest != b.Manifest || back.ImageBytes != int64(len(want)) || back.Architecture != "x86_64" {
			t.Errorf("%s: got %+v", source, back)
		}
		if strings.HasPrefix(source, "ami-") && !slices.Equal(back.Ancestry, []string{source}) {
			t.Errorf("got the ancestors %q", back.Ancestry)
		}
		wantCode(t, second(r.UnpackEC2Bundle(t.Context(), UnpackEC2Input{ReadEC2Input: ReadEC2Input{Manifest: name + ".manifest.xml", From: to}, File: out})), ami.CodeInvalidParameterValue)
	}
}

// The keys are made once, whoever asks, for nobody but their owner.
func TestEC2KeysOfARegion(t *testing.T) {
	h := newHouse(t)
	told := &listener{}
	r := h.open(t, tellingTo(told))
	raw := rawDisk(t, "disk")
	dir := t.TempDir()
	var all sync.WaitGroup
	for _, prefix := range []string{"a", "b", "c"} {
		all.Go(func() {
			if _, err := r.ExportEC2Bundle(t.Context(), ExportEC2Input{Source: raw, To: dir, Prefix: prefix}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	keys := get(os.ReadDir(r.path("ec2-bundles")))(t)
	if len(keys) != 5 || !told.noted("made a key for EC2's own bundles: "+r.path("ec2-bundles", "pk-"+r.account+".pem")) {
		t.Errorf("got %v", keys)
	}
	for _, k := range keys {
		if st := get(k.Info())(t); st.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v", k.Name(), st.Mode())
		}
	}
	for _, prefix := range []string{"a", "b", "c"} {
		must(t, second(r.UnpackEC2Bundle(t.Context(), UnpackEC2Input{ReadEC2Input: ReadEC2Input{Manifest: prefix + ".manifest.xml", From: dir}, File: filepath.Join(t.TempDir(), "out")})))
	}

	// Another account is another user: it reads by the cloud's key, and is asked
	// whom to believe.
	other := h.open(t, as("210987654321"), tellingTo(told))
	in := UnpackEC2Input{ReadEC2Input: ReadEC2Input{Manifest: "a.manifest.xml", From: dir}, File: filepath.Join(t.TempDir(), "out")}
	err := second(other.UnpackEC2Bundle(t.Context(), in))
	wantCode(t, err, ami.CodeInvalidManifest)
	wantSays(t, err, "not known who signed")
	in.Cert = r.path("ec2-bundles", "cert-"+r.account+".pem")
	if b := get(other.UnpackEC2Bundle(t.Context(), in))(t); !b.Signed {
		t.Error("a good signature is not said to be one")
	}
	in.Cert, in.NoVerifySignature, in.File = "", true, in.File+"2"
	if b := get(other.UnpackEC2Bundle(t.Context(), in))(t); b.Signed || !told.noted("was not verified") {
		t.Error("it is not told that nothing was verified")
	}
}

func TestEC2ExportRefuses(t *testing.T) {
	h := newHouse(t)
	r, o := h.open(t), h.open(t, as(stranger))
	theirs, off := image(t, o, "theirs"), image(t, r, "off")
	share(t, o, theirs.ImageID, accountOf(r.account))
	get(r.DisableImage(t.Context(), off.ImageID, false))(t)
	raw := rawDisk(t, "disk")
	empty := filepath.Join(t.TempDir(), "empty")
	must(t, os.WriteFile(empty, nil, 0o600))
	secret := encryptedSnapshot(t, r, snapshotOf(t, r, 1<<20, marks{0: 1}), "")
	tests := []struct {
		name   string
		change func(in *ExportEC2Input)
		want   ami.Code
	}{
		{"no file", func(in *ExportEC2Input) { in.Source = "/nowhere" }, ami.CodeInvalidParameterValue},
		{"a folder", func(in *ExportEC2Input) { in.Source = "/" }, ami.CodeInvalidParameterValue},
		{"an empty file", func(in *ExportEC2Input) { in.Source = empty }, ami.CodeInvalidParameterValue},
		{"no image", func(in *ExportEC2Input) { in.Source = "ami-0123456789abcdef0" }, ami.CodeInvalidAMIIDNotFound},
		{"another's image", func(in *ExportEC2Input) { in.Source = string(theirs.ImageID) }, ami.CodeAuthFailure},
		{"another's snapshot", func(in *ExportEC2Input) { in.Source = string(rootSnapshot(theirs)) }, ami.CodeInvalidSnapshotNotFound},
		{"a disabled image", func(in *ExportEC2Input) { in.Source = string(off.ImageID) }, ami.CodeInvalidAMIIDUnavailable},
		{"no snapshot", func(in *ExportEC2Input) { in.Source = "snap-0123456789abcdef0" }, ami.CodeInvalidSnapshotNotFound},
		{"encrypted", func(in *ExportEC2Input) { in.Source = string(secret.SnapshotID) }, ami.CodeOperationNotPermitted},
		{"a prefix with a folder", func(in *ExportEC2Input) { in.Prefix = "a/b" }, ami.CodeInvalidParameterValue},
		{"a kernel that is none", func(in *ExportEC2Input) { in.KernelID = "<aki>" }, ami.CodeInvalidParameterValue},
		{"a mapping of one", func(in *ExportEC2Input) { in.Mapping = []string{"root"} }, ami.CodeInvalidBlockDeviceMapping},
		{"a certificate alone", func(in *ExportEC2Input) { in.Cert = raw }, ami.CodeInvalidParameterCombination},
		{"a certificate that is none", func(in *ExportEC2Input) { in.EC2Cert = raw }, ami.CodeInvalidKeyFormat},
		{"no store", func(in *ExportEC2Input) { in.To = "ftp://host/dir" }, ami.CodeInvalidParameterValue},
		{"a store that is a file", func(in *ExportEC2Input) { in.To = raw }, ami.CodeInternalError},
		{"a dry run", func(in *ExportEC2Input) { in.DryRun = true }, ami.CodeDryRunOperation},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := ExportEC2Input{Source: raw, To: t.TempDir(), Prefix: "web"}
			dir := in.To
			tt.change(&in)
			wantCode(t, second(r.ExportEC2Bundle(t.Context(), in)), tt.want)
			if got := ec2Files(t, dir); len(got) > 0 {
				t.Errorf("left %q", got)
			}
		})
	}
	to := t.TempDir()
	must(t, second(r.ExportEC2Bundle(t.Context(), ExportEC2Input{Source: string(secret.SnapshotID), To: to, Decrypt: true})))
}

// A bundle that is damaged leaves no file, and is told of by its part.
func TestEC2ImportOfADamagedBundle(t *testing.T) {
	r, _ := open(t)
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	must(t, second(r.ExportEC2Bundle(t.Context(), ExportEC2Input{Source: rawDisk(t, "disk"), To: dir, Prefix: "web"})))
	part := filepath.Join(dir, "web.part.00")
	b := get(os.ReadFile(part))(t)
	b[len(b)/2] ^= 1
	must(t, os.Remove(part))
	must(t, os.WriteFile(part, b, 0o600))
	err := second(r.UnpackEC2Bundle(t.Context(), UnpackEC2Input{ReadEC2Input: ReadEC2Input{Manifest: "web.manifest.xml", From: dir}, File: out}))
	wantCode(t, err, ami.CodeInvalidManifest)
	if got := err.Error(); !strings.HasPrefix(got, "InvalidManifest: The bundle's part \"web.part.00\" is damaged") {
		t.Errorf("got %q", got)
	}
	if got := ec2Files(t, filepath.Dir(out)); len(got) > 0 {
		t.Errorf("left %q", got)
	}
}
