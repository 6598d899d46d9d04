package region

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/internal/durable"
)

func TestModifyMetadataOptions(t *testing.T) {
	h, r, _ := serving(t)
	inst := running(t, r)
	must(t, r.CreateTags(t.Context(), []string{string(inst.InstanceID)}, []ami.Tag{{Key: "Name", Value: "web"}}, false))
	modify := func(o ami.MetadataOptions) (ami.MetadataOptions, error) {
		return r.ModifyInstanceMetadataOptions(t.Context(), ModifyMetadataOptionsInput{InstanceID: inst.InstanceID, Options: o})
	}
	steps := []struct{ said, want ami.MetadataOptions }{
		{ami.MetadataOptions{HTTPTokens: "required"}, ami.MetadataOptions{HTTPTokens: "required", HopLimit: 1, HTTPEndpoint: "enabled", InstanceTags: "disabled"}},
		{ami.MetadataOptions{HopLimit: 3}, ami.MetadataOptions{HTTPTokens: "required", HopLimit: 3, HTTPEndpoint: "enabled", InstanceTags: "disabled"}},
		{ami.MetadataOptions{InstanceTags: "enabled"}, ami.MetadataOptions{HTTPTokens: "required", HopLimit: 3, HTTPEndpoint: "enabled", InstanceTags: "enabled"}},
		{ami.MetadataOptions{HTTPEndpoint: "disabled"}, ami.MetadataOptions{HTTPTokens: "required", HopLimit: 3, HTTPEndpoint: "disabled", InstanceTags: "enabled"}},
	}
	for _, s := range steps {
		if got := get(modify(s.said))(t); got != s.want {
			t.Errorf("%+v: got %+v, want %+v", s.said, got, s.want)
		}
		if got := get(guestOf(t, h, inst.InstanceID).Facts())(t); got.Options != s.want {
			t.Errorf("%+v: the guest is served with %+v, want %+v", s.said, got.Options, s.want)
		}
		if got := wantState(t, r, inst.InstanceID, ami.InstanceRunning).MetadataOptions; got != s.want {
			t.Errorf("%+v: the record has %+v", s.said, got)
		}
	}
	wantTags := func(want ...ami.Tag) {
		t.Helper()
		if d := cmp.Diff(want, get(guestOf(t, h, inst.InstanceID).Facts())(t).Tags); d != "" {
			t.Errorf("tags (-want +got):\n%s", d)
		}
	}
	wantTags(ami.Tag{Key: "Name", Value: "web"})
	must(t, r.CreateTags(t.Context(), []string{string(inst.InstanceID)}, []ami.Tag{{Key: "stage", Value: "test"}}, false))
	wantTags(ami.Tag{Key: "Name", Value: "web"}, ami.Tag{Key: "stage", Value: "test"})
	wantCode(t, r.CreateTags(t.Context(), []string{string(inst.InstanceID)}, []ami.Tag{{Key: "a/b"}}, false), ami.CodeInvalidParameterValue)
	must(t, r.DeleteTags(t.Context(), []string{string(inst.InstanceID)}, []string{"Name", "stage"}, false))
	wantTags()
	get(modify(ami.MetadataOptions{InstanceTags: "disabled"}))(t)
	must(t, r.CreateTags(t.Context(), []string{string(inst.InstanceID)}, []ami.Tag{{Key: "a/b"}}, false))
	wantTags()
	_, err := modify(ami.MetadataOptions{InstanceTags: "enabled"})
	wantCode(t, err, ami.CodeInvalidParameterValue)

	_, err = modify(ami.MetadataOptions{})
	wantCode(t, err, ami.CodeMissingParameter)
	_, err = modify(ami.MetadataOptions{HTTPTokens: "maybe"})
	wantCode(t, err, ami.CodeInvalidParameterValue)
	_, err = r.ModifyInstanceMetadataOptions(t.Context(), ModifyMetadataOptionsInput{InstanceID: inst.InstanceID, Options: ami.MetadataOptions{HopLimit: 9}, DryRun: true})
	wantCode(t, err, ami.CodeDryRunOperation)
	if got := get(guestOf(t, h, inst.InstanceID).Facts())(t).Options.HopLimit; got != 3 {
		t.Errorf("a dry run changed the hop limit to %d", got)
	}
	for _, id := range []ami.InstanceID{"i-0123456789abcdef0", "i-../../x"} {
		_, err := r.ModifyInstanceMetadataOptions(t.Context(), ModifyMetadataOptionsInput{InstanceID: id, Options: ami.MetadataOptions{HopLimit: 9}})
		if err == nil {
			t.Errorf("%s was changed", id)
		}
	}
	wantNoLocks(t, r)
}

func wantNoLocks(t *testing.T, r *Region) {
	t.Helper()
	if left := get(names(r.path("tmp"), "metadata-", ".lock"))(t); len(left) > 0 {
		t.Errorf("locks are left: %q", left)
	}
}

func TestLaunchRefusesTagsThatCannotBeTold(t *testing.T) {
	_, r, _ := serving(t)
	base := image(t, r, "base")
	in := RunInstancesInput{Image: string(base.ImageID), Tags: []ami.Tag{{Key: "a b"}}, MetadataOptions: ami.MetadataOptions{InstanceTags: ami.Enabled}}
	_, err := r.RunInstances(t.Context(), in)
	wantCode(t, err, ami.CodeInvalidParameterValue)
	in.MetadataOptions = ami.MetadataOptions{HTTPEndpoint: "on"}
	_, err = r.RunInstances(t.Context(), in)
	wantCode(t, err, ami.CodeInvalidParameterValue)
}

func TestModifyUserData(t *testing.T) {
	h, r, _ := serving(t)
	inst := running(t, r)
	id := inst.InstanceID
	wantCode(t, r.ModifyUserData(t.Context(), id, []byte("x"), false), ami.CodeIncorrectInstanceState)
	stop(t, r, id)
	wantCode(t, r.ModifyUserData(t.Context(), id, make([]byte, MaxUserData+1), false), ami.CodeInvalidParameterValue)
	wantCode(t, r.ModifyUserData(t.Context(), id, []byte("x"), true), ami.CodeDryRunOperation)
	must(t, r.ModifyUserData(t.Context(), id, []byte("#!/bin/sh\necho again\n"), false))
	if got := get(r.UserData(t.Context(), id))(t); string(got) != "#!/bin/sh\necho again\n" {
		t.Errorf("got the user data %q", got)
	}
	get(r.StartInstances(t.Context(), []ami.InstanceID{id}, false))(t)
	seed := get(os.ReadFile(r.seedPath(id)))(t)
	if !strings.Contains(string(seed), "echo again") || !strings.Contains(string(seed), "instance-id: "+string(id)) {
		t.Error("the seed has the old user data")
	}
	if got := get(guestOf(t, h, id).Facts())(t); string(got.UserData) != "#!/bin/sh\necho again\n" {
		t.Errorf("the guest is told %q", got.UserData)
	}
}

// TestKilledWhileTelling: a command that dies between the record and the guest is
// finished by the next one.
func TestKilledWhileTelling(t *testing.T) {
	h, r, _ := serving(t)
	inst := running(t, r)
	get(r.ModifyInstanceMetadataOptions(t.Context(), ModifyMetadataOptionsInput{InstanceID: inst.InstanceID, Options: ami.MetadataOptions{InstanceTags: "enabled"}}))(t)
	lock, _, err := durable.TryLock(r.metadataLock(inst.InstanceID)) // as the command had it
	must(t, err)
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error {
		now, err := tx.Instance(inst.InstanceID)
		now.Tags = []ami.Tag{{Key: "Name", Value: "late"}}
		return errors.Join(err, tx.PutInstance(now))
	}))
	h.open(t)
	if got := get(guestOf(t, h, inst.InstanceID).Facts())(t).Tags; len(got) != 0 {
		t.Errorf("a command that is alive was helped: %v", got)
	}
	must(t, lock.Unlock()) // it dies
	h.open(t)
	if got := get(guestOf(t, h, inst.InstanceID).Facts())(t).Tags; len(got) != 1 || got[0].Value != "late" {
		t.Errorf("the guest is told of the tags %v", got)
	}
	wantNoLocks(t, r)
}

// TestTellingMany: commands that change tags of the same instances at once come
// to an end, and the guests are told what the records say.
func TestTellingMany(t *testing.T) {
	h, r, _ := serving(t)
	base := image(t, r, "base")
	res := get(r.RunInstances(t.Context(), RunInstancesInput{Image: string(base.ImageID), Count: 3, MetadataOptions: ami.MetadataOptions{InstanceTags: ami.Enabled}}))(t)
	var ids []string
	for _, i := range res.Instances {
		ids = append(ids, string(i.InstanceID))
	}
	var wg sync.WaitGroup
	for n := range 6 {
		order := append(append([]string{}, ids[n%3:]...), ids[:n%3]...)
		wg.Go(func() {
			if err := r.CreateTags(t.Context(), order, []ami.Tag{{Key: "k" + strconv.Itoa(n)}}, false); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, i := range res.Instances {
		if got := get(guestOf(t, h, i.InstanceID).Facts())(t).Tags; len(got) != 6 {
			t.Errorf("the guest of %s is told of %d tags, want 6", i.InstanceID, len(got))
		}
	}
	wantNoLocks(t, r)
}

// TestMetadataOfAnOlderKami: a guest that was launched before there were metadata
// has none written down, and is described all the same.
func TestMetadataOfAnOlderKami(t *testing.T) {
	h, r, _ := serving(t)
	inst := running(t, r)
	must(t, os.Remove(r.metadataPath(inst.InstanceID)))
	must(t, r.CreateTags(t.Context(), []string{string(inst.InstanceID)}, []ami.Tag{{Key: "Name"}}, false))
	if _, err := guestOf(t, h, inst.InstanceID).Facts(); err == nil {
		t.Error("metadata came out of nothing")
	}
	if md := get(r.Metadata(t.Context(), inst.InstanceID))(t); md.InstanceID != inst.InstanceID || md.Identity.Document == "" {
		t.Errorf("got %+v", md)
	}
	if data := get(r.UserData(t.Context(), inst.InstanceID))(t); data != nil {
		t.Errorf("got the user data %q", data)
	}
}

func TestMetadataOfNobody(t *testing.T) {
	h, r, _ := serving(t)
	inst := running(t, r)
	for _, tt := range []struct {
		id   ami.InstanceID
		want ami.Code
	}{{"i-0123456789abcdef0", ami.CodeInvalidInstanceIDNotFound}, {"i-../..", ami.CodeInvalidInstanceIDMalformed}} {
		_, err := r.Metadata(t.Context(), tt.id)
		wantCode(t, err, tt.want)
	}
	other := h.open(t, as(stranger))
	_, err := other.Metadata(t.Context(), inst.InstanceID)
	wantCode(t, err, ami.CodeInvalidInstanceIDNotFound)
	_, err = other.ModifyInstanceMetadataOptions(t.Context(), ModifyMetadataOptionsInput{InstanceID: inst.InstanceID, Options: ami.MetadataOptions{HopLimit: 2}})
	wantCode(t, err, ami.CodeInvalidInstanceIDNotFound)
	terminate(t, r, inst.InstanceID)
	_, err = r.Metadata(t.Context(), inst.InstanceID)
	wantCode(t, err, ami.CodeIncorrectInstanceState)
	must(t, r.CreateTags(t.Context(), []string{string(inst.InstanceID)}, []ami.Tag{{Key: "after"}}, false))
	if _, err := os.Stat(r.instanceDir(inst.InstanceID)); err == nil {
		t.Error("the folder of what has ended is back")
	}
	wantNoLocks(t, r)
}

func TestOpenMetadataLooksAtNames(t *testing.T) {
	for _, tt := range []struct {
		region string
		id     ami.InstanceID
	}{{"../x", "i-0123456789abcdef0"}, {"local-1", "../i-0123456789abcdef0"}, {"local-1", ""}, {"", "i-0123456789abcdef0"}} {
		if g, err := OpenMetadata("/nowhere", tt.region, tt.id); err == nil {
			t.Errorf("%q %q is %v", tt.region, tt.id, g)
		}
	}
}

func TestSeats(t *testing.T) {
	h, r, _ := serving(t)
	g := guestOf(t, h, running(t, r).InstanceID)
	var leave func()
	for n := range maxAnswering {
		l, ok, err := g.Seat()
		must(t, err)
		if !ok {
			t.Fatalf("there are %d places, want %d", n, maxAnswering)
		}
		leave = l
	}
	if _, ok, err := g.Seat(); ok || err != nil {
		t.Errorf("one too many sits: %v, %v", ok, err)
	}
	leave()
	if _, ok, err := g.Seat(); !ok || err != nil {
		t.Errorf("a place that was left is not free: %v, %v", ok, err)
	}
}

func TestSecretThatIsDamaged(t *testing.T) {
	h, r, _ := serving(t)
	inst := running(t, r)
	path := filepath.Join(r.instanceDir(inst.InstanceID), secretName)
	must(t, os.WriteFile(path, nil, 0o600)) // with which anybody could sign
	if _, err := guestOf(t, h, inst.InstanceID).Secret(); err == nil {
		t.Error("a key of nothing was taken")
	}
}

func TestImageOfAnInstanceAsksAsItsSource(t *testing.T) {
	_, r, _ := serving(t)
	base := image(t, r, "base")
	get(r.RegisterImage(t.Context(), RegisterImageInput{
		Name: "asks", ImdsSupport: ami.IMDSv2,
		BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/dev/sda1", Ebs: &ami.EBSBlockDevice{SnapshotID: rootSnapshot(base)}}},
	}))(t)
	inst := launched(t, r, RunInstancesInput{Image: "asks"})
	stop(t, r, inst.InstanceID)
	made := get(r.CreateImage(context.WithoutCancel(t.Context()), CreateImageInput{InstanceID: inst.InstanceID, Name: "next"}))(t)
	if made.ImdsSupport != ami.IMDSv2 {
		t.Errorf("got the support %q", made.ImdsSupport)
	}
	child := launched(t, r, RunInstancesInput{Image: "next"})
	if got := get(r.Metadata(t.Context(), child.InstanceID))(t).Ancestors; len(got) != 1 || got[0] != inst.ImageID {
		t.Errorf("got the ancestors %v, want %s", got, inst.ImageID)
	}
	_, err := r.RegisterImage(t.Context(), RegisterImageInput{Name: "bad", ImdsSupport: "v3"})
	wantCode(t, err, ami.CodeInvalidParameterValue)
}
