package region

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
)

// rootfs makes a tree of a few files.
func rootfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"etc/hostname": "h", "root/.bash_history": "secret", "boot/vmlinuz-1": "k"} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	return dir
}

func newBundle(t *testing.T, r *Region, location string) Bundle {
	t.Helper()
	b, err := r.CreateBundle(t.Context(), CreateBundleInput{Source: rootfs(t), Size: 8 << 20, BundleSpec: BundleSpec{Location: location}})
	must(t, err)
	return b
}

func TestBundle(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	b := newBundle(t, r, "images/web")
	m := b.Manifest
	if m.Name != "web" || m.VirtualizationType != ami.VirtualizationParavirtual || m.KernelID != ami.PVGrub || m.Partition != "none" || m.OwnerID != r.account || !b.Trusted {
		t.Errorf("got %+v", b)
	}
	if b.Left == nil || b.Left.Files != 1 || b.Left.Paths[0] != "/root/.bash_history" {
		t.Errorf("got %+v left out", b.Left)
	}
	all, err := r.ListBundles(t.Context(), "", "", false)
	must(t, err)
	if len(all) != 1 || all[0].Location != "images/web.manifest" {
		t.Errorf("got %+v", all)
	}
	shown, err := r.DescribeBundle(t.Context(), BundleRef{Location: "images/web.manifest"})
	must(t, err)
	if diff := cmp.Diff(m, shown.Manifest); diff != "" {
		t.Error(diff)
	}
	rep, err := r.VerifyBundle(t.Context(), BundleRef{Location: "images/web"})
	if err != nil || len(rep.Faults) > 0 {
		t.Errorf("got %+v, %v", rep, err)
	}
	for _, name := range []string{"out.raw", "out.qcow2"} {
		path := filepath.Join(t.TempDir(), name)
		must(t, r.UnpackBundle(t.Context(), UnpackBundleInput{BundleRef: BundleRef{Location: "images/web"}, Path: path}))
		err := r.UnpackBundle(t.Context(), UnpackBundleInput{BundleRef: BundleRef{Location: "images/web"}, Path: path})
		wantCode(t, err, ami.CodeInvalidParameterValue)
	}
	_, err = r.CreateBundle(t.Context(), CreateBundleInput{Source: rootfs(t), BundleSpec: BundleSpec{Location: "images/web"}})
	wantCode(t, err, ami.CodeInvalidParameterValue)
	wantSays(t, err, "exists")
	_, err = r.DeleteBundle(t.Context(), DeleteBundleInput{Location: "images/web"})
	must(t, err)
	_, err = r.DescribeBundle(t.Context(), BundleRef{Location: "images/web"})
	wantCode(t, err, ami.CodeInvalidBundleIDNotFound)
	if left, err := filepath.Glob(r.path("tmp", "*")); err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %q, %v", left, err)
	}
}

// TestBundlesOfOthers: another region's bundle is refused until its key is trusted.
func TestBundlesOfOthers(t *testing.T) {
	t.Parallel()
	ours, _ := open(t)
	theirs, _ := open(t)
	store := t.TempDir()
	for location, unsigned := range map[string]bool{"b/signed": false, "b/unsigned": true} {
		_, err := theirs.CreateBundle(t.Context(), CreateBundleInput{
			Source: rootfs(t), Size: 8 << 20, BundleSpec: BundleSpec{Location: location, Store: store, Unsigned: unsigned},
		})
		must(t, err)
	}
	show := func(location string, allow bool) error {
		_, err := ours.DescribeBundle(t.Context(), BundleRef{Location: location, Store: store, AllowUnsigned: allow})
		return err
	}
	wantCode(t, show("b/signed", false), ami.CodeAuthFailure)
	wantCode(t, show("b/unsigned", false), ami.CodeInvalidManifest)
	must(t, show("b/signed", true))
	must(t, show("b/unsigned", true))
	all, err := ours.ListBundles(t.Context(), store, "b", false)
	must(t, err)
	if len(all) != 1 || all[0].Trusted || !strings.Contains(all[0].Problem, "not trusted") {
		t.Errorf("got %+v", all)
	}

	keys, err := theirs.BundleKeys(t.Context())
	must(t, err)
	pub := filepath.Join(t.TempDir(), "theirs.pub")
	must(t, os.WriteFile(pub, []byte(keys[0].PublicKey+" theirs\n"), 0o600))
	_, err = ours.TrustBundles(t.Context(), pub, true)
	wantCode(t, err, ami.CodeDryRunOperation)
	wantCode(t, show("b/signed", false), ami.CodeAuthFailure)
	_, err = ours.TrustBundles(t.Context(), pub, false)
	must(t, err)
	must(t, show("b/signed", false))
	wantCode(t, show("b/unsigned", false), ami.CodeInvalidManifest)
	mine, err := ours.BundleKeys(t.Context())
	must(t, err)
	if len(mine) != 2 || !mine[0].Own || mine[1].Fingerprint != keys[0].Fingerprint {
		t.Errorf("got %+v", mine)
	}
	wantCode(t, ours.DistrustBundles(t.Context(), mine[0].Fingerprint, false), ami.CodeOperationNotPermitted)
	must(t, ours.DistrustBundles(t.Context(), keys[0].Fingerprint, false))
	wantCode(t, show("b/signed", false), ami.CodeAuthFailure)
	wantCode(t, ours.DistrustBundles(t.Context(), "SHA256:none", false), ami.CodeInvalidParameterValue)
	must(t, os.WriteFile(pub, []byte("hello"), 0o600))
	_, err = ours.TrustBundles(t.Context(), pub, false)
	wantCode(t, err, ami.CodeInvalidKeyFormat)
}

func TestCreateBundleRefuses(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	for name, c := range map[string]struct {
		change func(*CreateBundleInput)
		says   string
	}{
		"no source":   {func(in *CreateBundleInput) { in.Source = "/none" }, "cannot be read"},
		"kind":        {func(in *CreateBundleInput) { in.Kind = "zip" }, "not one of"},
		"partition":   {func(in *CreateBundleInput) { in.Partition = "apm" }, "not one of"},
		"location":    {func(in *CreateBundleInput) { in.Location = "x" }, "bucket/prefix"},
		"climbing":    {func(in *CreateBundleInput) { in.Location = "../x/y" }, "is no name"},
		"chunk sizes": {func(in *CreateBundleInput) { in.ChunkSizes = "1:2" }, "MIN:AVG:MAX"},
		"uneven":      {func(in *CreateBundleInput) { in.ChunkSizes = "16:60:256" }, "MIN:AVG:MAX"},
		"pattern":     {func(in *CreateBundleInput) { in.Exclude = []string{"[x"} }, "pattern"},
		"too small":   {func(in *CreateBundleInput) { in.Size = 100 << 10 }, "cannot be packed"},
		"boot mode":   {func(in *CreateBundleInput) { in.BootMode = ami.BootUEFI }, "boot mode"},
		"text":        {func(in *CreateBundleInput) { in.Description = "a\nb" }, "control characters"},
	} {
		t.Run(name, func(t *testing.T) {
			in := CreateBundleInput{Source: rootfs(t), Size: 8 << 20, BundleSpec: BundleSpec{Location: "b/x"}}
			c.change(&in)
			_, err := r.CreateBundle(t.Context(), in)
			wantSays(t, err, c.says)
			if code := ami.ErrorCode(err); !slices.Contains([]ami.Code{ami.CodeInvalidParameterValue, ami.CodeInvalidParameterCombination, ami.CodeInvalidManifest}, code) {
				t.Errorf("got the code %s (%v)", code, err)
			}
			if all, err := r.ListBundles(t.Context(), "", "", true); err != nil || len(all) > 0 {
				t.Errorf("got %+v, %v", all, err)
			}
		})
	}
}

func TestBundleInstance(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	for state, inst := range map[string]ami.Instance{"running": running(t, r), "stopped": stopped(t, r)} {
		in := BundleInstanceInput{InstanceID: inst.InstanceID, BundleSpec: BundleSpec{Location: "b/" + state}}
		_, err := r.BundleInstance(t.Context(), in)
		wantCode(t, err, ami.CodeUnsupportedOperation) // a boot sector is no filesystem
		in.NoFilter, in.ProductCodes = true, []string{"774F4FF8"}
		in.DryRun = true
		_, err = r.BundleInstance(t.Context(), in)
		wantCode(t, err, ami.CodeDryRunOperation)
		in.DryRun = false
		b, err := r.BundleInstance(t.Context(), in)
		must(t, err)
		m := b.Manifest
		if m.SourceInstanceID != inst.InstanceID || m.VirtualizationType != inst.VirtualizationType || m.RootDeviceName != inst.RootDeviceName || len(m.ProductCodes) != 1 {
			t.Errorf("%s: got %+v", state, m)
		}
		rep, err := r.VerifyBundle(t.Context(), BundleRef{Location: "b/" + state})
		if err != nil || len(rep.Faults) > 0 {
			t.Errorf("%s: got %+v, %v", state, rep, err)
		}
	}
	_, err := r.BundleInstance(t.Context(), BundleInstanceInput{InstanceID: "i-00000000000000000", BundleSpec: BundleSpec{Location: "b/x"}})
	wantCode(t, err, ami.CodeInvalidInstanceIDNotFound)
}

// TestBundleDryRun: nothing is made, not even the key.
func TestBundleDryRun(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	_, err := r.CreateBundle(t.Context(), CreateBundleInput{Source: rootfs(t), BundleSpec: BundleSpec{Location: "b/x", DryRun: true}})
	wantCode(t, err, ami.CodeDryRunOperation)
	if _, err := os.Stat(r.path("bundle-keys")); !os.IsNotExist(err) {
		t.Errorf("got %v", err)
	}
	newBundle(t, r, "b/x")
	_, err = r.DeleteBundle(t.Context(), DeleteBundleInput{Location: "b/x", DryRun: true})
	wantCode(t, err, ami.CodeDryRunOperation)
	err = r.UnpackBundle(t.Context(), UnpackBundleInput{BundleRef: BundleRef{Location: "b/x"}, Path: filepath.Join(t.TempDir(), "x"), DryRun: true})
	wantCode(t, err, ami.CodeDryRunOperation)
	if _, err := r.DescribeBundle(t.Context(), BundleRef{Location: "b/x"}); err != nil {
		t.Error(err)
	}
}

// Who packs into a bucket waits for one who deletes from it, and not for ever.
func TestBundlingInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := &listener{}
		waits := 0
		told.onStep = func(name string) {
			if strings.HasPrefix(name, "waiting for another command that deletes from images") {
				waits++
			}
		}
		r, _ := open(t, tellingTo(told))
		dir := r.path("objects", "images", ".making")
		must(t, os.MkdirAll(dir, 0o700))
		must(t, os.WriteFile(filepath.Join(dir, "sweep"), []byte("held\n"), 0o600))
		begun := time.Now()
		_, err := r.CreateBundle(t.Context(), CreateBundleInput{BundleSpec: BundleSpec{Location: "images/web"}, Source: rawDisk(t, "web")})
		wantCode(t, err, ami.CodeBundlingInProgress)
		if waited := time.Since(begun); waited < time.Minute || waited > time.Hour {
			t.Errorf("it waited %s", waited)
		}
		if waits != 1 {
			t.Errorf("it told %d times that it waits, want once", waits)
		}
		must(t, os.Remove(filepath.Join(dir, "sweep")))
		get(r.CreateBundle(t.Context(), CreateBundleInput{BundleSpec: BundleSpec{Location: "images/web"}, Source: rawDisk(t, "web")}))(t)
	})
}

// TestBundleErrorCodes: what a store of bundles says has EC2's code, and keeps it.
func TestBundleErrorCodes(t *testing.T) {
	for from, want := range map[error]ami.Code{
		bundle.ErrInUse:     ami.CodeBundlingInProgress,
		bundle.ErrNotFound:  ami.CodeInvalidBundleIDNotFound,
		bundle.ErrUnsigned:  ami.CodeInvalidManifest,
		bundle.ErrUntrusted: ami.CodeAuthFailure,
		bundle.ErrChunk:     ami.CodeInvalidManifest,
		bundle.ErrBadKey:    ami.CodeInvalidKeyFormat,
		bundle.ErrTemplate:  ami.CodeInvalidParameterValue,
	} {
		err := bundleError(fmt.Errorf("the store: %w", from), "b/x", "file:///b")
		wantCode(t, err, want)
		if again := bundleError(err, "b/x", "file:///b"); !errors.Is(again, err) {
			t.Errorf("%v became %v", err, again)
		}
	}
}
