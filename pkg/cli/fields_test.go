package cli

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/region"
)

// answers are what -o json prints, by the noun or verb that prints it.
var answers = []struct {
	name string
	doc  any
}{
	{"images", imagesDoc(nil)},
	{"kernels", imagesDoc(nil)},
	{"image copy", region.CopiedImage{}},
	{"image store", region.StoredImage{}},
	{"image export", exportDoc(nil)},
	{"image deregister", deregisterDoc(nil)},
	{"image permission", permissionsDoc(region.ImagePermissions{})},
	{"image prune", pruneDoc(region.PrunePlan{})},
	{"image usage", usageDoc(region.ImageUsage{})},
	{"image references", referencesDoc(nil)},
	{"image ancestry", ancestryDoc(nil)},
	{"bin", binDoc(nil)},
	{"bin rule", rulesDoc(nil)},
	{"offers", offersDoc(nil)},
	{"subscriptions", subscriptionsDoc(nil)},
	{"image signatures", signaturesDoc(region.VerifyImageResult{})},
	{"region image-signatures", region.SignaturePolicy{}},
	{"region allowed-images", allowedDoc(region.AllowedImages{})},
	{"region block-public-access", accessBlockDoc("")},
	{"launch", ami.Reservation{}},
	{"instances", instancesDoc(nil)},
	{"instance metadata", factsDoc(nil)},
	{"instance metadata options", metadataOptionsDoc("", ami.MetadataOptions{})},
	{"volumes", volumesDoc(nil)},
	{"volume attachment", ami.VolumeAttachment{}},
	{"volume modify", modificationDoc(region.VolumeModification{})},
	{"instance replace-root", taskDoc(region.ReplaceRootTask{})},
	{"snapshots", snapshotsDoc(nil)},
	{"snapshot diff", region.SnapshotDiff{}},
	{"key pairs", keysDoc(nil)},
	{"regions", regionsDoc(nil)},
	{"accounts", accountsDoc(nil)},
	{"bill", region.Bill{}},
	{"templates", templatesDoc(nil)},
	{"template versions", versionsDoc(nil)},
	{"groups", groupsDoc(nil)},
	{"group activities", actionsDoc(nil)},
	{"store du", region.StoreUsage{}},
	{"store gc", region.GCPlan{}},
	{"store merge", mergeDoc(nil)},
	{"store verify", verifyDoc(nil)},
	{"doctor", checksDoc(nil)},
	{"ssh target", region.SSHTarget{}},
	{"bundles", bundlesDoc(nil)},
	{"bundle verify", region.BundleReport{}},
	{"bundle keys", bundleKeysDoc(nil)},
}

// TestJSONFields: programs read these names, so none changes unseen. A field may
// be added (-update); one that is renamed or removed breaks somebody.
func TestJSONFields(t *testing.T) {
	var b strings.Builder
	for _, a := range answers {
		for _, path := range fieldsOf(reflect.ValueOf(a.doc)) {
			fmt.Fprintf(&b, "%s: %s\n", a.name, path)
		}
	}
	golden(t, "testdata/json-fields.txt", b.String())
}

// fieldsOf returns the paths of all fields that v's JSON can have.
func fieldsOf(v reflect.Value) []string {
	if v.Kind() != reflect.Map {
		return fieldsOfType(v.Type())
	}
	var out []string
	for _, k := range v.MapKeys() { // a document: its values say what it holds
		for _, sub := range fieldsOf(v.MapIndex(k).Elem()) {
			out = append(out, k.String()+sub)
		}
	}
	slices.Sort(out)
	return out
}

func fieldsOfType(t reflect.Type) []string {
	switch {
	case t.Kind() == reflect.Pointer:
		return fieldsOfType(t.Elem())
	case t.Kind() == reflect.Slice:
		var out []string
		for _, sub := range fieldsOfType(t.Elem()) {
			out = append(out, "[]"+sub)
		}
		return out
	case t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]():
		return []string{" " + t.Kind().String()}
	}
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "-" {
			continue
		}
		for _, sub := range fieldsOfType(f.Type) {
			out = append(out, "."+name+sub)
		}
	}
	return out
}

// TestAnswersAreFrozen: what commands really print has the fields of the golden
// file and no others.
func TestAnswersAreFrozen(t *testing.T) {
	o := furnish(t)
	frozen := map[string][]string{}
	for _, a := range answers {
		frozen[a.name] = fieldsOf(reflect.ValueOf(a.doc))
	}
	for _, c := range []struct {
		answer string
		args   []string
	}{
		{"images", []string{"image", "list"}},
		{"images", []string{"image", "show", "web-1"}},
		{"images", []string{"image", "register", "--name", "web-2", "--block-device-mapping", "/dev/sda1=" + o.snapshot}},
		{"kernels", []string{"kernel", "list"}},
		{"instances", []string{"instance", "list"}},
		{"volumes", []string{"volume", "list"}},
		{"volumes", []string{"volume", "show", o.volume}},
		{"volumes", []string{"volume", "create", "--size", "1"}},
		{"snapshots", []string{"snapshot", "show", o.snapshot}},
		{"snapshots", []string{"snapshot", "create", o.blank}},
		{"key pairs", []string{"key", "list"}},
		{"regions", []string{"region", "list"}},
		{"regions", []string{"region", "show", "local-1"}},
		{"store du", []string{"store", "du"}},
		{"store gc", []string{"store", "gc"}},
		{"store verify", []string{"store", "verify"}},
		{"image permission", []string{"image", "permission", "add", "web-1", "123456789012", "all"}},
		{"image ancestry", []string{"image", "ancestry", "web-1"}},
		{"image usage", []string{"image", "usage", "web-1"}},
		{"image prune", []string{"image", "prune", "--name", "web-*", "--keep", "9"}},
		{"bin rule", []string{"bin", "rule", "create", "--type", "EC2_IMAGE", "--days", "1", "--tag", "never"}},
		{"region allowed-images", []string{"region", "allowed-images", "disabled", "--name", "web-*", "--max-age-days", "9"}},
		{"region block-public-access", []string{"region", "block-public-access"}},
		{"image copy", []string{"image", "copy", "web-1", "--name", "web-1-copy"}},
		{"image store", []string{"image", "store", "web-1", t.TempDir()}},
		{"image export", []string{"image", "export", "web-1", filepath.Join(t.TempDir(), "web-1.raw")}},
		{"image prune", []string{"image", "prune", "--name", "web-2", "--keep", "0", "--keep-snapshots", "--dry-run"}},
		{"image deregister", []string{"image", "deregister", "web-2", "--delete-snapshots"}},
	} {
		var v any
		if err := json.Unmarshal([]byte(mustKami(t, append(c.args, "-o", "json")...)), &v); err != nil {
			t.Errorf("kami %s: %v", strings.Join(c.args, " "), err)
		}
		got := fieldsIn(v)
		if len(got) == 0 && c.answer != "instances" {
			t.Errorf("kami %s answered nothing", strings.Join(c.args, " "))
		}
		for _, path := range got {
			known := slices.ContainsFunc(frozen[c.answer], func(f string) bool {
				return strings.TrimSuffix("."+strings.TrimPrefix(f, "."), f[strings.LastIndex(f, " "):]) == path
			})
			if !known {
				t.Errorf("kami %s printed the field %s, which is not frozen", strings.Join(c.args, " "), path)
			}
		}
	}
}

// fieldsIn returns the paths of the fields in a JSON value.
func fieldsIn(v any) []string {
	var out []string
	switch v := v.(type) {
	case map[string]any:
		for k, sub := range v {
			for _, path := range fieldsIn(sub) {
				out = append(out, "."+k+path)
			}
		}
	case []any:
		for _, item := range v {
			for _, path := range fieldsIn(item) {
				out = append(out, "[]"+path)
			}
		}
	case nil:
		out = []string{" is null"} // a list of nothing is []
	default:
		out = []string{""}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
