package region

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/object/objecttest"
)

func TestStoreAndRestore(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	_, child := twoLayers(t, r)
	must(t, r.CreateTags(t.Context(), []string{string(child.ImageID)}, []ami.Tag{{Key: "team", Value: "a"}}, false))
	dir := t.TempDir()
	done := get(r.StoreImage(t.Context(), StoreImageInput{Image: child.Name, To: dir}))(t)
	if want := filepath.Join(dir, string(child.ImageID)+".bin"); done.At != want {
		t.Errorf("got %s, want %s", done.At, want)
	}
	_, err := r.StoreImage(t.Context(), StoreImageInput{Image: child.Name, To: dir})
	wantCode(t, err, ami.CodeInvalidParameterValue)
	// The same image is the same file, wherever it is written to.
	second := filepath.Join(t.TempDir(), "x.bin")
	get(r.StoreImage(t.Context(), StoreImageInput{Image: child.Name, To: second}))(t)
	if !bytes.Equal(get(os.ReadFile(second))(t), get(os.ReadFile(done.At))(t)) {
		t.Error("two files of one image differ")
	}
	_, err = r.RestoreStoredImage(t.Context(), RestoreImageInput{From: done.At})
	wantCode(t, err, ami.CodeInvalidAMINameDuplicate)
	here := get(r.RestoreStoredImage(t.Context(), RestoreImageInput{From: done.At, Name: "again"}))(t)
	if here.LayersCopied != 0 || here.LayersShared != 2 {
		t.Errorf("got %+v, want no layer made", here)
	}
	h.region(t, "lab-1", "")
	lab := h.open(t, inRegion("lab-1"), as(stranger))
	_, err = lab.RestoreStoredImage(t.Context(), RestoreImageInput{From: done.At, DryRun: true})
	wantCode(t, err, ami.CodeDryRunOperation)
	there := get(lab.RestoreStoredImage(t.Context(), RestoreImageInput{From: done.At}))(t)
	got := get(lab.ResolveImage(t.Context(), string(there.ImageID), false))(t)
	if got.Name != child.Name || got.ImageID == child.ImageID || got.OwnerID != stranger || len(got.Tags) != 1 || got.SourceImageID != child.ImageID {
		t.Errorf("got %+v", got)
	}
	wantMarks(t, lab, there.ImageID, marks{0: 9, 1: 5, 7: 0})
	wantSound(t, r)
}

// Whom an image is shared with by name may store it, without what is its owner's alone
// to know; that it is public is not enough.
func TestStoreOfOthers(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r, o := h.open(t), h.open(t, as(stranger))
	i := image(t, r, "theirs")
	must(t, r.CreateTags(t.Context(), []string{string(i.ImageID), string(rootSnapshot(i))}, []ami.Tag{{Key: "Secret", Value: "x"}}, false))
	in := StoreImageInput{Image: string(i.ImageID), To: t.TempDir()}
	wantCode(t, second(o.StoreImage(t.Context(), in)), ami.CodeInvalidAMIIDNotFound)
	share(t, r, i.ImageID, everybody())
	wantCode(t, second(o.StoreImage(t.Context(), in)), ami.CodeAuthFailure)
	share(t, r, i.ImageID, accountOf(stranger))
	done := get(o.StoreImage(t.Context(), in))(t)
	if text := entriesOf(t, done.At)[0].data; bytes.Contains(text, []byte("Secret")) || bytes.Contains(text, []byte(stranger)) {
		t.Errorf("the record says what is the owner's to know: %s", text)
	}
	get(r.ShareImage(t.Context(), ShareImageInput{ImageID: i.ImageID, Remove: []ami.LaunchPermission{everybody(), accountOf(stranger)}}))(t)
	get(o.RestoreStoredImage(t.Context(), RestoreImageInput{From: done.At, Name: "mine"}))(t)
	if text := entriesOf(t, get(r.StoreImage(t.Context(), StoreImageInput{Image: "theirs", To: t.TempDir()}))(t).At)[0].data; !bytes.Contains(text, []byte("Secret")) {
		t.Errorf("the owner's record lacks the tags: %s", text)
	}
}

// A layer of the same content in another file does as well.
func TestRestoreOverAnotherFile(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	_, child := twoLayers(t, r)
	done := get(r.StoreImage(t.Context(), StoreImageInput{Image: child.Name, To: t.TempDir()}))(t)
	h.region(t, "lab-1", "")
	lab := h.open(t, inRegion("lab-1"))
	completeWith(t, lab, start(t, lab, over(completeWith(t, lab, start(t, lab), marks{0: 1}).SnapshotID)), marks{0: 9, 7: 9})
	there := get(lab.RestoreStoredImage(t.Context(), RestoreImageInput{From: done.At}))(t)
	if there.LayersShared != 1 {
		t.Errorf("got %+v, want one layer shared", there)
	}
	wantMarks(t, lab, there.ImageID, marks{0: 9, 1: 5, 7: 0})
}

func TestStoreInS3(t *testing.T) {
	at := objecttest.StartS3(t).URL(t)
	h := newHouse(t)
	r := h.open(t)
	_, child := twoLayers(t, r)
	get(r.StoreImage(t.Context(), StoreImageInput{Image: child.Name, To: at}))(t)
	_, err := r.StoreImage(t.Context(), StoreImageInput{Image: child.Name, To: at})
	wantCode(t, err, ami.CodeInvalidParameterValue)
	dir, name := placeOf(at, string(child.ImageID)+storedSuffix)
	from := bytes.Replace([]byte(dir), []byte("?"), []byte("/"+name+"?"), 1)
	h.region(t, "lab-1", "")
	lab := h.open(t, inRegion("lab-1"))
	there := get(lab.RestoreStoredImage(t.Context(), RestoreImageInput{From: string(from)}))(t)
	wantMarks(t, lab, there.ImageID, marks{0: 9, 1: 5, 7: 0})
	_, err = lab.RestoreStoredImage(t.Context(), RestoreImageInput{From: at})
	wantCode(t, err, ami.CodeInvalidParameterValue)
}

func TestStoreEncrypted(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	base, child := twoLayers(t, r)
	get(h.copied(t, DefaultRegion, CopyImageInput{SourceImageID: child.Name, Name: "secret", Encrypted: true}))(t)
	done := get(r.StoreImage(t.Context(), StoreImageInput{Image: "secret", To: t.TempDir()}))(t)
	here := get(r.RestoreStoredImage(t.Context(), RestoreImageInput{From: done.At, Name: "again"}))(t)
	wantMarks(t, r, here.ImageID, marks{0: 9, 1: 5, 7: 0})
	// Nobody is told that it is plain, where nothing plain has that content.
	for _, i := range []ami.ImageID{base.ImageID, child.ImageID} {
		get(r.DeregisterImage(t.Context(), i, true, false))(t)
	}
	plain := func(p *parcel) { p.Snapshots[0].Encrypted, p.Snapshots[0].KmsKeyID = false, "" }
	for name, edit := range map[string]func(*parcel){
		"the snapshot":            plain,
		"the snapshot's mark":     func(p *parcel) { p.Snapshots[0].Encrypted = false },
		"the snapshot's key":      func(p *parcel) { p.Snapshots[0].KmsKeyID = "" },
		"all that the record has": func(p *parcel) { plain(p); clearKeys(p) },
	} {
		entries := entriesOf(t, done.At)
		var p parcel
		must(t, json.Unmarshal(entries[0].data, &p))
		edit(&p)
		entries[0].data = get(json.Marshal(p))(t)
		path := filepath.Join(t.TempDir(), "x.bin")
		must(t, os.WriteFile(path, tarOf(t, entries), 0o600))
		_, err := r.RestoreStoredImage(t.Context(), RestoreImageInput{From: path, Name: "plain"})
		if code := ami.ErrorCode(err); code != ami.CodeInvalidParameterValue {
			t.Errorf("%s: got %v, want that it cannot be restored", name, err)
		}
	}
	h.region(t, "lab-1", "")
	lab := h.open(t, inRegion("lab-1"))
	_, err := lab.RestoreStoredImage(t.Context(), RestoreImageInput{From: done.At})
	wantCode(t, err, ami.CodeInvalidKMSKeyState)
	wantNone(t, lab)
}

func clearKeys(p *parcel) {
	for i := range p.Layers {
		p.Layers[i].KeyID = ""
	}
}

// storedEntry is an entry of a stored image.
type storedEntry struct {
	name string
	data []byte
}

func entriesOf(t *testing.T, path string) (out []storedEntry) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(get(os.ReadFile(path))(t)))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		must(t, err)
		out = append(out, storedEntry{h.Name, get(io.ReadAll(r))(t)})
	}
}

func tarOf(t *testing.T, entries []storedEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: e.name, Size: int64(len(e.data))}))
		get(w.Write(e.data))(t)
	}
	must(t, w.Close())
	return b.Bytes()
}

// What is not as it was stored is no image, and leaves nothing.
func TestRestoreHostile(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	_, child := twoLayers(t, r)
	done := get(r.StoreImage(t.Context(), StoreImageInput{Image: child.Name, To: t.TempDir()}))(t)
	entries := entriesOf(t, done.At)
	if len(entries) != 3 {
		t.Fatalf("got %d entries, want the record and two layers", len(entries))
	}
	record := func(edit func(*parcel)) func([]storedEntry) []storedEntry {
		return func(e []storedEntry) []storedEntry {
			var p parcel
			must(t, json.Unmarshal(e[0].data, &p))
			edit(&p)
			e[0].data = get(json.Marshal(p))(t)
			return e
		}
	}
	// A layer that names another file as what it stands on, with its digest.
	foreign := func(e []storedEntry) []storedEntry {
		bad := bytes.Replace(e[2].data, []byte(".qcow2"), []byte(".raw\x00\x00"), 1)
		e[2] = storedEntry{storedLayer(digest.Of(bad)), bad}
		return record(func(p *parcel) {
			p.Layers[1].Digest, p.Snapshots[0].Layer = digest.Of(bad), digest.Of(bad)
		})(e)
	}
	for name, edit := range map[string]func([]storedEntry) []storedEntry{
		"nothing":                 func([]storedEntry) []storedEntry { return nil },
		"no record":               func(e []storedEntry) []storedEntry { return e[1:] },
		"no layer":                func(e []storedEntry) []storedEntry { return e[:2] },
		"layers in another order": func(e []storedEntry) []storedEntry { return []storedEntry{e[0], e[2], e[1]} },
		"a name with a path":      record(func(p *parcel) { p.Layers[0].Digest = "../../../etc/passwd" }),
		"another layer's bytes":   func(e []storedEntry) []storedEntry { e[2].data = e[1].data; return e },
		"a damaged layer":         func(e []storedEntry) []storedEntry { e[2].data[len(e[2].data)-9] ^= 1; return e },
		"a longer layer":          func(e []storedEntry) []storedEntry { e[1].data = append(e[1].data, 0); return e },
		"a foreign backing file":  foreign,
		"another content":         record(func(p *parcel) { p.Layers[1].Content = digest.Of(nil); p.Snapshots[0].ContentDigest = digest.Of(nil) }),
		"another parent":          record(func(p *parcel) { p.Layers[1].Parent = "" }),
		"a newer version":         record(func(p *parcel) { p.Version++ }),
		"no image":                record(func(p *parcel) { p.Image.ImageID = "x" }),
		"a bad name":              record(func(p *parcel) { p.Image.Name = "\n" }),
		"a huge disk":             record(func(p *parcel) { p.Layers[0].Size = 1 << 60 }),
		"a smaller disk":          record(func(p *parcel) { p.Snapshots[0].SizeBytes = 512 }),
		"a layer twice":           record(func(p *parcel) { p.Layers = append(p.Layers, p.Layers[0]) }),
		"no root":                 record(func(p *parcel) { p.Image.RootDeviceName = "/dev/sdz" }),
		"another snapshot":        record(func(p *parcel) { p.Snapshots[0].SnapshotID = ami.NewSnapshotID() }),
		"paravirtual":             record(func(p *parcel) { p.Image.VirtualizationType = "paravirtual" }),
		"an instance store":       record(func(p *parcel) { p.Image.RootDeviceType = "instance-store" }),
		"another region's name":   record(func(p *parcel) { p.Region = "../x" }),
		"an object":               record(func(p *parcel) { p.Image.UEFIData = digest.Of([]byte("x")) }),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			to := h.open(t)
			path := filepath.Join(t.TempDir(), "x.bin")
			must(t, os.WriteFile(path, tarOf(t, edit(entriesOf(t, done.At))), 0o600))
			_, err := to.RestoreStoredImage(t.Context(), RestoreImageInput{From: path, Name: "back"})
			if code := ami.ErrorCode(err); code != ami.CodeInvalidParameterValue {
				t.Errorf("got %v (%s), want that it cannot be restored", err, code)
			}
			wantNone(t, to)
		})
	}
	whole := get(os.ReadFile(done.At))(t)
	to := newHouse(t).open(t)
	for n := 0; n < len(whole)-1024; n += 7001 {
		path := filepath.Join(t.TempDir(), "x.bin")
		must(t, os.WriteFile(path, whole[:n], 0o600))
		_, err := to.RestoreStoredImage(t.Context(), RestoreImageInput{From: path})
		wantCode(t, err, ami.CodeInvalidParameterValue)
	}
	wantNone(t, to)
}

func FuzzParcel(f *testing.F) {
	f.Add([]byte(`{"Version":1,"Region":"a","Image":{"ImageId":"ami-0123456789abcdef0"},"Layers":[{"LayerDigest":"x"}],"Snapshots":[{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseParcel(b)
		if err != nil {
			return
		}
		text, err := p.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseParcel(text); err != nil {
			t.Errorf("what was read cannot be read again: %v", err)
		}
	})
}

func TestExportImage(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	img := image(t, r, "base")
	extra := snapshotOf(t, r, 2<<20, marks{1: 7})
	img = get(r.RegisterImage(t.Context(), RegisterImageInput{Name: "two", BlockDeviceMappings: mapping(t, "/dev/sda1="+string(rootSnapshot(img)), "/dev/sdb="+string(extra))}))(t)
	for _, format := range []string{"raw", "qcow2", "vmdk", "vhd", "vhdx"} {
		path := filepath.Join(t.TempDir(), "two."+format)
		done := get(r.ExportImage(t.Context(), ExportImageInput{Image: "two", Path: path}))(t)
		if len(done) != 2 || done[0].Path != path || filepath.Base(done[1].Path) != "two-sdb."+format || done[0].Format != format {
			t.Fatalf("got %+v", done)
		}
		// There and back.
		for i, want := range []ami.SnapshotID{rootSnapshot(img), extra} {
			back := get(r.ImportImage(t.Context(), ImportInput{Source: done[i].Path, Name: format + string(want), Format: format, BootMode: ami.BootLegacyBIOS, NoRelative: true}))(t)
			if diff := get(r.DiffSnapshots(t.Context(), want, rootSnapshot(back)))(t); len(diff.Blocks) > 0 {
				t.Errorf("%s: %s comes back with other blocks: %v", format, done[i].DeviceName, diff.Blocks)
			}
		}
		_, err := r.ExportImage(t.Context(), ExportImageInput{Image: "two", Path: path})
		wantCode(t, err, ami.CodeInvalidParameterValue)
	}
}
