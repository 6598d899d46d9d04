package region

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

// A dry run says that it would have succeeded, and changes nothing.
func TestDryRun(t *testing.T) {
	t.Parallel()
	r, d := open(t)
	i := image(t, r, "base")
	inst := running(t, r)
	off := stopped(t, r)
	attached, free := newVolume(t, r), newVolume(t, r)
	_, err := r.AttachVolume(t.Context(), AttachVolumeInput{VolumeID: attached.VolumeID, InstanceID: inst.InstanceID})
	must(t, err)
	shot, err := r.CreateSnapshot(t.Context(), CreateSnapshotInput{VolumeID: free.VolumeID})
	must(t, err)
	key, _, err := r.CreateKeyPair(t.Context(), "mine", "", false)
	must(t, err)
	recipe := t.TempDir()
	must(t, os.WriteFile(filepath.Join(recipe, "recipe.yaml"), []byte("version: 1\nname: web\ndescription: it\nfrom: base\n"), 0o600))
	ctx, on := t.Context(), []ami.InstanceID{inst.InstanceID}
	tests := map[string]func() error{
		"import": func() error {
			_, err := r.ImportImage(ctx, ImportInput{Source: rawDisk(t, "x"), Name: "new", DryRun: true})
			return err
		},
		"build": func() error { _, err := r.BuildImage(ctx, BuildInput{Recipe: recipe, DryRun: true}); return err },
		"launch": func() error {
			_, err := r.RunInstances(ctx, RunInstancesInput{Image: "base", Count: 2, DryRun: true})
			return err
		},
		"start":     func() error { _, err := r.StartInstances(ctx, []ami.InstanceID{off.InstanceID}, true); return err },
		"stop":      func() error { _, err := r.StopInstances(ctx, StopInput{InstanceIDs: on, DryRun: true}); return err },
		"reboot":    func() error { return r.RebootInstances(ctx, on, true) },
		"terminate": func() error { _, err := r.TerminateInstances(ctx, on, true); return err },
		"create image": func() error {
			_, err := r.CreateImage(ctx, CreateImageInput{InstanceID: inst.InstanceID, Name: "new", DryRun: true})
			return err
		},
		"register": func() error {
			_, err := r.RegisterImage(ctx, RegisterImageInput{Name: "new", BlockDeviceMappings: mapping(t, "/dev/sda1="+string(rootSnapshot(i))), DryRun: true})
			return err
		},
		"deregister": func() error { _, err := r.DeregisterImage(ctx, i.ImageID, true, true); return err },
		"create snapshot": func() error {
			_, err := r.CreateSnapshot(ctx, CreateSnapshotInput{VolumeID: attached.VolumeID, DryRun: true})
			return err
		},
		"delete snapshot": func() error { return r.DeleteSnapshot(ctx, shot.SnapshotID, true) },
		"create volume":   func() error { _, err := r.CreateVolume(ctx, CreateVolumeInput{Size: 1, DryRun: true}); return err },
		"attach": func() error {
			_, err := r.AttachVolume(ctx, AttachVolumeInput{VolumeID: free.VolumeID, InstanceID: inst.InstanceID, DryRun: true})
			return err
		},
		"detach":        func() error { _, err := r.DetachVolume(ctx, attached.VolumeID, true, true); return err },
		"delete volume": func() error { return r.DeleteVolume(ctx, free.VolumeID, true) },
		"create tags":   func() error { return r.CreateTags(ctx, []string{string(i.ImageID)}, []ami.Tag{{Key: "k"}}, true) },
		"delete tags":   func() error { return r.DeleteTags(ctx, []string{string(i.ImageID)}, []string{"k"}, true) },
		"create key":    func() error { _, _, err := r.CreateKeyPair(ctx, "new", "", true); return err },
		"import key":    func() error { _, err := r.ImportKeyPair(ctx, "new", []byte(key.PublicKey), true); return err },
		"delete key":    func() error { return r.DeleteKeyPair(ctx, "mine", true) },
		"create region": func() error { _, err := Create(ctx, r.opts.Home, "lab-1", true); return err },
	}
	before := look(t, r, d)
	for name, try := range tests {
		t.Run(name, func(t *testing.T) {
			err := try()
			wantCode(t, err, ami.CodeDryRunOperation)
			wantSays(t, err, "Request would have succeeded")
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("it changed something (-before +after):\n%s", diff)
			}
			if _, err := os.Stat(filepath.Join(r.opts.Home, "regions", "lab-1")); !os.IsNotExist(err) {
				t.Errorf("there is a region now: %v", err)
			}
		})
	}
}
