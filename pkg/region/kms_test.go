package region

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/kms"
)

func yes() *bool { b := true; return &b }
func no() *bool  { b := false; return &b }

// encryptedSnapshot is a copy of an image's root, encrypted with a key.
func encryptedSnapshot(t *testing.T, r *Region, of ami.SnapshotID, key string) ami.Snapshot {
	t.Helper()
	return get(r.CopySnapshot(t.Context(), CopySnapshotInput{SnapshotID: of, Encrypted: yes(), KmsKeyID: key}))(t)
}

func TestWhichKey(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	one := get(r.CreateKMSKey(t.Context(), "alias/one", "", false))(t)
	two := get(r.CreateKMSKey(t.Context(), "alias/two", "", false))(t)
	plain := get(r.snapshot(t.Context(), rootSnapshot(image(t, r, "base"))))(t)
	secret := encryptedSnapshot(t, r, plain.SnapshotID, "alias/one")
	own := encryptedSnapshot(t, r, plain.SnapshotID, "").KmsKeyID
	if k := get(r.keys.Find(t.Context(), kms.DefaultAlias))(t); k.ID != own {
		t.Errorf("the region's own key is %s, and %s was used", k.ID, own)
	}
	tests := []struct {
		name      string
		from      ami.SnapshotID
		encrypted *bool
		key       string
		want      string // a key
		code      ami.Code
	}{
		{"nothing is said", "", nil, "", "", ""},
		{"it is refused", "", no(), "", "", ""},
		{"no key is named", "", yes(), "", own, ""},
		{"by id", "", yes(), one.KeyID, one.KeyID, ""},
		{"by alias", "", yes(), "alias/two", two.KeyID, ""},
		{"a key alone", "", nil, "alias/two", "", ami.CodeInvalidParameterDependency},
		{"a key and no", "", no(), "alias/two", "", ami.CodeInvalidParameterDependency},
		{"an unknown key", "", yes(), "alias/none", "", ami.CodeKMSNotFound},
		{"of a plain snapshot", plain.SnapshotID, nil, "", "", ""},
		{"encrypted of a plain snapshot", plain.SnapshotID, yes(), "alias/two", two.KeyID, ""},
		{"of an encrypted snapshot", secret.SnapshotID, nil, "", one.KeyID, ""},
		{"encrypted of an encrypted snapshot", secret.SnapshotID, yes(), "", one.KeyID, ""},
		{"with another key", secret.SnapshotID, yes(), "alias/two", two.KeyID, ""},
		{"decrypted", secret.SnapshotID, no(), "", "", ami.CodeInvalidParameterCombination},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := CreateVolumeInput{SnapshotID: tt.from, Encrypted: tt.encrypted, KmsKeyID: tt.key}
			if tt.from == "" {
				in.Size = 1
			}
			v, err := r.CreateVolume(t.Context(), in)
			if tt.code != "" {
				wantCode(t, err, tt.code)
				return
			}
			must(t, err)
			if v.KmsKeyID != tt.want || v.Encrypted != (tt.want != "") {
				t.Errorf("the volume is encrypted: %v, with %q, want %q", v.Encrypted, v.KmsKeyID, tt.want)
			}
			if in := get(r.layers.KeyOf(r.layers.HeadPath(v.VolumeID)))(t); in != tt.want {
				t.Errorf("the head needs the key %q, want %q", in, tt.want)
			}
			s := get(r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: v.VolumeID}))(t)
			if s.KmsKeyID != tt.want || s.Encrypted != (tt.want != "") {
				t.Errorf("its snapshot is encrypted: %v, with %q, want %q", s.Encrypted, s.KmsKeyID, tt.want)
			}
			if in := get(r.layers.KeyOf(layerFile(r, s)))(t); in != tt.want {
				t.Errorf("its layer needs the key %q, want %q", in, tt.want)
			}
		})
	}
}

func layerFile(r *Region, s ami.Snapshot) string { return r.path("layers", s.Layer.Hex()+".qcow2") }

func TestDeleteKMSKey(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	key := get(r.CreateKMSKey(t.Context(), "alias/one", "", false))(t)
	wantCode(t, second(r.CreateKMSKey(t.Context(), "alias/one", "", false)), ami.CodeKMSAlreadyExists)
	v := get(r.CreateVolume(t.Context(), CreateVolumeInput{Size: 1, Encrypted: yes(), KmsKeyID: key.KeyID}))(t)
	s := get(r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: v.VolumeID}))(t)
	err := r.DeleteKMSKey(t.Context(), "alias/one", false)
	wantCode(t, err, ami.CodeOperationNotPermitted)
	wantSays(t, err, string(v.VolumeID))
	wantSays(t, err, string(s.SnapshotID))
	if all := get(r.DescribeKMSKeys(t.Context()))(t); len(all) != 1 || len(all[0].UsedBy) != 2 {
		t.Errorf("the keys are %+v", all)
	}
	must(t, r.DeleteVolume(t.Context(), v.VolumeID, false))
	must(t, r.DeleteSnapshot(t.Context(), s.SnapshotID, false))
	wantCode(t, r.DeleteKMSKey(t.Context(), "alias/one", true), ami.CodeDryRunOperation)
	must(t, r.DeleteKMSKey(t.Context(), "alias/one", false))
	wantCode(t, r.DeleteKMSKey(t.Context(), key.KeyID, false), ami.CodeKMSNotFound)
}

// TestDeleteKMSKeyUnderneath keeps a key that only a layer further down needs, and
// one that a copy under way needs.
func TestDeleteKMSKeyUnderneath(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	one := get(r.CreateKMSKey(t.Context(), "alias/one", "", false))(t)
	two := get(r.CreateKMSKey(t.Context(), "alias/two", "", false))(t)
	three := get(r.CreateKMSKey(t.Context(), "alias/three", "", false))(t)
	under := encryptedSnapshot(t, r, rootSnapshot(image(t, r, "base")), "alias/one")
	v := get(r.CreateVolume(t.Context(), CreateVolumeInput{SnapshotID: under.SnapshotID, Encrypted: yes(), KmsKeyID: "alias/two"}))(t)
	top := get(r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: v.VolumeID}))(t)
	must(t, r.DeleteVolume(t.Context(), v.VolumeID, false))
	must(t, r.DeleteSnapshot(t.Context(), under.SnapshotID, false))
	err := r.DeleteKMSKey(t.Context(), one.KeyID, false)
	wantCode(t, err, ami.CodeOperationNotPermitted)
	wantSays(t, err, string(top.SnapshotID))

	// The copy to a key needs that one alone.
	var deleting error
	l := &listener{}
	l.onStep = func(name string) {
		if strings.HasPrefix(name, "writing snap-") {
			deleting = h.open(t).DeleteKMSKey(t.Context(), "alias/three", false)
		}
	}
	telling := h.open(t, tellingTo(l))
	copied := get(telling.CopySnapshot(t.Context(), CopySnapshotInput{SnapshotID: top.SnapshotID, Encrypted: yes(), KmsKeyID: three.KeyID}))(t)
	wantCode(t, deleting, ami.CodeOperationNotPermitted)
	own := get(r.CopySnapshot(t.Context(), CopySnapshotInput{SnapshotID: top.SnapshotID, Encrypted: yes(), KmsKeyID: two.KeyID}))(t)
	must(t, r.DeleteSnapshot(t.Context(), top.SnapshotID, false))
	must(t, r.DeleteKMSKey(t.Context(), one.KeyID, false))
	for _, s := range []ami.Snapshot{copied, own} {
		diff := get(r.DiffSnapshots(t.Context(), s.SnapshotID, copied.SnapshotID))(t)
		if len(diff.Indexes) != 0 {
			t.Errorf("%s differs in %v", s.SnapshotID, diff.Indexes)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestMissingKey loses a key: what needs it says so by its code and name, and
// leaves nothing behind.
func TestMissingKey(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	base := image(t, r, "base")
	secret := encryptedSnapshot(t, r, rootSnapshot(base), "")
	img := get(r.RegisterImage(t.Context(), RegisterImageInput{Name: "secret", BlockDeviceMappings: []ami.BlockDeviceMapping{
		{DeviceName: "/dev/sda1", Ebs: &ami.EBSBlockDevice{SnapshotID: secret.SnapshotID}},
	}}))(t)
	if e := img.BlockDeviceMappings[0].Ebs.Encrypted; e == nil || !*e {
		t.Error("the image does not say that its root is encrypted")
	}
	inst := launched(t, r, RunInstancesInput{Image: string(img.ImageID)})
	stop(t, r, inst.InstanceID)
	must(t, os.Rename(r.path("kms", secret.KmsKeyID+".json"), filepath.Join(t.TempDir(), "kept")))
	before := files(t, r)
	_, volume := r.CreateVolume(t.Context(), CreateVolumeInput{SnapshotID: secret.SnapshotID})
	_, launch := r.RunInstances(t.Context(), RunInstancesInput{Image: string(img.ImageID)})
	_, start := r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false)
	_, create := r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "again"})
	_, again := r.CopySnapshot(t.Context(), CopySnapshotInput{SnapshotID: secret.SnapshotID, Encrypted: yes(), KmsKeyID: secret.KmsKeyID})
	export := r.ExportSnapshot(t.Context(), ExportInput{SnapshotID: secret.SnapshotID, Path: filepath.Join(t.TempDir(), "out"), Decrypt: true})
	for what, err := range map[string]error{"CreateVolume": volume, "RunInstances": launch, "StartInstances": start, "CreateImage": create, "ExportSnapshot": export} {
		t.Run(what, func(t *testing.T) {
			wantCode(t, err, ami.CodeInvalidKMSKeyState)
			wantSays(t, err, secret.KmsKeyID)
		})
	}
	wantCode(t, again, ami.CodeKMSNotFound)
	if after := files(t, r); strings.Join(before, "\n") != strings.Join(after, "\n") {
		t.Errorf("files before:\n%s\nand after:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}
