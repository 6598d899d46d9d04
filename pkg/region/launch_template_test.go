package region

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

func TestLaunchTemplates(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	one, two := image(t, r, "one"), image(t, r, "two")
	del := true
	in := TemplateInput{Name: "web", Data: ami.LaunchTemplateData{
		ImageID: "one", InstanceType: "t3.nano", UserData: []byte("#!"), Tags: []ami.Tag{{Key: "a", Value: "1"}, {Key: "b", Value: "1"}},
		BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/dev/sdf", Ebs: &ami.EBSBlockDevice{VolumeSize: new(int64(1)), DeleteOnTermination: &del}}},
	}}
	tmpl := get(r.CreateLaunchTemplate(t.Context(), in))(t)
	_, err := r.CreateLaunchTemplate(t.Context(), in)
	wantCode(t, err, ami.CodeTemplateExists)
	_, err = r.CreateLaunchTemplate(t.Context(), TemplateInput{Name: "web", DryRun: true})
	wantCode(t, err, ami.CodeTemplateExists)
	_, err = r.CreateLaunchTemplate(t.Context(), TemplateInput{Name: "other", DryRun: true})
	wantCode(t, err, ami.CodeDryRunOperation)
	_, err = r.CreateLaunchTemplate(t.Context(), TemplateInput{Name: "a b"})
	wantCode(t, err, ami.CodeTemplateNameMalformed)
	get(r.CreateLaunchTemplateVersion(t.Context(), TemplateInput{Name: "web", SourceVersion: ami.TemplateLatest, Data: ami.LaunchTemplateData{ImageID: "two"}}))(t)
	get(r.CreateLaunchTemplateVersion(t.Context(), TemplateInput{Name: "web", Data: ami.LaunchTemplateData{InstanceType: "t3.small"}}))(t)

	tests := []struct {
		in      RunInstancesInput
		image   ami.ImageID
		kind    string
		tags    string
		devices int
		version string
	}{
		{RunInstancesInput{Template: "web"}, one.ImageID, "t3.nano", "a=1 b=1", 2, "1"},
		{RunInstancesInput{Template: "web:$Default"}, one.ImageID, "t3.nano", "a=1 b=1", 2, "1"},
		{RunInstancesInput{Template: "web:2"}, two.ImageID, "t3.nano", "a=1 b=1", 2, "2"},
		{RunInstancesInput{Template: string(tmpl.LaunchTemplateID) + ":2", Image: "one"}, one.ImageID, "t3.nano", "a=1 b=1", 2, "2"},
		{RunInstancesInput{Template: "web:$Latest", Image: "two"}, two.ImageID, "t3.small", "", 1, "3"},
		{
			RunInstancesInput{
				Template: "web", InstanceType: "t3.micro", Tags: []ami.Tag{{Key: "b", Value: "2"}},
				BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/dev/sdf", NoDevice: new(string)}},
			},
			one.ImageID, "t3.micro", "a=1 b=2", 1, "1",
		},
	}
	for _, tt := range tests {
		got := launched(t, r, tt.in)
		var tags []string
		for _, tag := range got.Tags {
			if !isReserved(tag) {
				tags = append(tags, tag.Key+"="+tag.Value)
			}
		}
		is := fmt.Sprint(got.ImageID, got.InstanceType, tags, len(got.BlockDeviceMappings), tagOf(got.Tags, ami.TagTemplateVersion), tagOf(got.Tags, ami.TagTemplateID))
		if want := fmt.Sprint(tt.image, tt.kind, strings.Fields(tt.tags), tt.devices, tt.version, tmpl.LaunchTemplateID); is != want {
			t.Errorf("%s: got %s, want %s", tt.in.Template, is, want)
		}
	}
	for ref, want := range map[string]ami.Code{
		"web:$Latest": ami.CodeMissingParameter, "web:9": ami.CodeTemplateVersionNotFound, "web:x": ami.CodeInvalidParameterValue, "none": ami.CodeTemplateNotFound, "web:": ami.CodeTemplateNotFound,
	} {
		_, err := r.RunInstances(t.Context(), RunInstancesInput{Template: ref})
		wantCode(t, err, want)
	}
	_, err = h.open(t, as(stranger)).LaunchTemplate(t.Context(), "web")
	wantCode(t, err, ami.CodeTemplateNotFound)

	// A number is given once; the default is not deleted alone.
	wantCode(t, r.DeleteLaunchTemplate(t.Context(), "web", "1", false), ami.CodeInvalidParameterValue)
	must(t, r.DeleteLaunchTemplate(t.Context(), "web", "3", false))
	get(r.SetDefaultTemplateVersion(t.Context(), "web", ami.TemplateLatest, false))(t)
	made := get(r.CreateLaunchTemplateVersion(t.Context(), TemplateInput{Name: "web", Default: true}))(t)
	numbers := []int64{}
	for _, v := range made.Versions {
		numbers = append(numbers, v.VersionNumber)
	}
	if !slices.Equal(numbers, []int64{1, 2, 4}) || made.DefaultVersionNumber != 4 {
		t.Errorf("got the versions %v and the default %d, want 1, 2 and 4, which is the default", numbers, made.DefaultVersionNumber)
	}
	for _, all := range [][]ami.LaunchTemplate{{made}, get(r.LaunchTemplates(t.Context()))(t), {get(r.LaunchTemplate(t.Context(), "web"))(t)}} {
		if len(all) != 1 {
			t.Fatalf("got the templates %+v, want one", all)
		}
		for _, v := range all[0].Versions {
			if v.DefaultVersion != (v.VersionNumber == 4) {
				t.Errorf("version %d: got that it is the default: %t", v.VersionNumber, v.DefaultVersion)
			}
		}
	}

	// What a group launches, or is rolled to, is not deleted.
	get(r.CreateGroup(t.Context(), GroupInput{Name: "g", Launch: &ami.GroupLaunch{Template: "web:1"}}))(t)
	wantCode(t, r.DeleteLaunchTemplate(t.Context(), "web", "", false), ami.CodeGroupInUse)
	get(r.editGroup(t.Context(), "g", func(g *ami.Group) error {
		g.Refresh = &ami.GroupRefresh{Status: ami.RefreshInProgress, Target: g.Launch}
		g.Launch = *imageGroup("one")
		return nil
	}))(t)
	wantCode(t, r.DeleteLaunchTemplate(t.Context(), "web", "", false), ami.CodeGroupInUse)
	get(r.editGroup(t.Context(), "g", func(g *ami.Group) error { g.Refresh.Status = ami.RefreshFailed; return nil }))(t)
	must(t, r.DeleteLaunchTemplate(t.Context(), "web", "", false))
}
