package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/folbricht/desync"
	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
)

func soundManifest() Manifest {
	m := testManifest()
	m.Version, m.Size, m.Digest, m.ChunkSizes = ManifestVersion, 1<<20, digest.Of(nil), DefaultChunkSizes
	m.Index = IndexFile{"web.caibx", indexOverhead + tableItem, digest.Of([]byte("x"))}
	m.BlockDeviceMappings = []ami.BlockDeviceMapping{{DeviceName: "/dev/sdb", VirtualName: "ephemeral0"}}
	m.KernelID, m.ProductCodes = ami.PVGrub, []string{"774F4FF8"}
	return m
}

func TestManifestRoundTrip(t *testing.T) {
	want := soundManifest()
	b, err := want.Encode()
	must(t, err)
	got, err := ParseManifest(b)
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseManifestRefuses(t *testing.T) {
	sound := soundManifest()
	text, err := sound.Encode()
	must(t, err)
	with := func(change func(*Manifest)) []byte {
		m := soundManifest()
		change(&m)
		b, err := json.Marshal(m)
		must(t, err)
		return b
	}
	for name, c := range map[string]struct {
		text []byte
		says string
	}{
		"empty":            {nil, "EOF"},
		"cut off":          {text[:len(text)/2], "unexpected"},
		"no object":        {[]byte(`[]`), "cannot unmarshal"},
		"behind its end":   {append(bytes.Clone(text), "{}"...), "behind its end"},
		"unknown field":    {bytes.Replace(text, []byte(`"Name"`), []byte(`"Nome": "x", "Name"`), 1), "Nome"},
		"a name twice":     {bytes.Replace(text, []byte(`"Name"`), []byte(`"Name": "x", "Name"`), 1), "twice"},
		"in another case":  {bytes.Replace(text, []byte(`"Name"`), []byte(`"NAME": "x", "Name"`), 1), "twice"},
		"beyond ASCII":     {bytes.Replace(text, []byte(`"Size"`), []byte(`"\u017fize": 5, "Size"`), 1), "the name"},
		"twice inside":     {bytes.Replace(text, []byte(`"Min"`), []byte(`"Min": 1, "Min"`), 1), "twice"},
		"newer":            {with(func(m *Manifest) { m.Version = 2 }), "newer kami"},
		"older":            {with(func(m *Manifest) { m.Version = 0 }), "ManifestVersion"},
		"no name":          {with(func(m *Manifest) { m.Name = "" }), "Name is empty"},
		"control":          {with(func(m *Manifest) { m.Name = "a\x1b[2J" }), "control characters"},
		"long":             {with(func(m *Manifest) { m.Description = strings.Repeat("x", 2000) }), "2000 bytes"},
		"huge":             {bytes.Repeat([]byte(" "), maxManifest+1), "more than"},
		"architecture":     {with(func(m *Manifest) { m.Architecture = "vax" }), "vax"},
		"virtualization":   {with(func(m *Manifest) { m.VirtualizationType = "xen" }), "xen"},
		"boot mode":        {with(func(m *Manifest) { m.BootMode = "net" }), "net"},
		"partition":        {with(func(m *Manifest) { m.Partition = "apm" }), "apm"},
		"kernel":           {with(func(m *Manifest) { m.KernelID = "../aki" }), "KernelId"},
		"mapping twice":    {with(func(m *Manifest) { m.BlockDeviceMappings = append(m.BlockDeviceMappings, m.BlockDeviceMappings[0]) }), "mapped twice"},
		"size":             {with(func(m *Manifest) { m.Size = -1 }), "Size"},
		"odd size":         {with(func(m *Manifest) { m.Size++ }), "Size"},
		"enormous":         {with(func(m *Manifest) { m.Size = 1 << 60 }), "Size"},
		"digest":           {with(func(m *Manifest) { m.Digest = "x" }), "ContentDigest"},
		"chunk sizes":      {with(func(m *Manifest) { m.ChunkSizes.Max = 1 << 30 }), "ChunkSizes"},
		"index climbs":     {with(func(m *Manifest) { m.Index.Name = "../other.caibx" }), "Index.Name"},
		"index elsewhere":  {with(func(m *Manifest) { m.Index.Name = "a/b.caibx" }), "Index.Name"},
		"index of no kind": {with(func(m *Manifest) { m.Index.Name = "web.manifest" }), "Index.Name"},
		"index size":       {with(func(m *Manifest) { m.Index.Size = 1 << 40 }), "Index.Size"},
		"index digest":     {with(func(m *Manifest) { m.Index.Digest = "sha" }), "Index.Digest"},
		"deep":             {bytes.Repeat([]byte("["), 100000), "nested"},
	} {
		_, err := ParseManifest(c.text)
		if !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want ErrManifest and %q", name, err, c.says)
		}
	}
	_, err = ParseManifest(with(func(m *Manifest) { m.Name, m.Size, m.Digest = "", 0, "" }))
	for _, field := range []string{"Name", "Size", "ContentDigest"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("not all faults are told at once: %v lacks %s", err, field)
		}
	}
}

// FuzzManifest: what is read is within its bounds, and the same once more.
func FuzzManifest(f *testing.F) {
	sound := soundManifest()
	text, err := sound.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"ManifestVersion":1,"Name":"a","name":"b"}`))
	f.Add(bytes.Repeat([]byte(`{"a":[`), 20))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b)
		if err != nil {
			if !errors.Is(err, ErrManifest) {
				t.Fatalf("got %v", err)
			}
			return
		}
		again, err := m.Encode()
		must(t, err)
		n, err := ParseManifest(again)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if diff := cmp.Diff(m, n); diff != "" {
			t.Error(diff)
		}
	})
}

func testIndex() *index {
	x := &index{sizes: DefaultChunkSizes}
	for i := range 5 {
		x.add(int64(20000+i), chunkID{byte(i)})
	}
	return x
}

func TestIndexIsDesyncs(t *testing.T) {
	x := testIndex()
	b := x.encode()
	d := desync.NewFormatDecoder(bytes.NewReader(b))
	head, err := d.Next()
	must(t, err)
	if h, ok := head.(desync.FormatIndex); !ok || h.ChunkSizeAvg != uint64(x.sizes.Avg) || h.FeatureFlags&desync.CaFormatSHA512256 != 0 {
		t.Errorf("got %+v", head)
	}
	table, err := d.Next()
	must(t, err)
	items := table.(desync.FormatTable).Items
	if len(items) != x.count() || int64(items[4].Offset) != x.size() {
		t.Errorf("got %+v", items)
	}
	got, err := parseIndex(b)
	must(t, err)
	if !bytes.Equal(got.table, x.table) || got.sizes != x.sizes {
		t.Error("it came back as another")
	}
	for off, want := range map[int64]int{0: 0, 19999: 0, 20000: 1, x.size() - 1: 4, x.size(): 5} {
		if got := x.at(off); got != want {
			t.Errorf("at %d: got chunk %d, want %d", off, got, want)
		}
	}
}

func TestParseIndexRefuses(t *testing.T) {
	sound := testIndex().encode()
	for name, change := range map[string]func(b []byte) []byte{
		"empty":      func([]byte) []byte { return nil },
		"cut off":    func(b []byte) []byte { return b[:len(b)-1] },
		"an item":    func(b []byte) []byte { return b[:len(b)-tableItem] },
		"longer":     func(b []byte) []byte { return append(b, make([]byte, tableItem)...) },
		"no index":   func(b []byte) []byte { b[8]++; return b },
		"sha512":     func(b []byte) []byte { b[16+7] |= 0x20; return b },
		"sizes":      func(b []byte) []byte { b[24+7] = 1; return b },
		"backwards":  func(b []byte) []byte { copy(b[64:], make([]byte, 8)); return b },
		"too large":  func(b []byte) []byte { b[64+4] = 1; return b },
		"the tail":   func(b []byte) []byte { b[len(b)-1]++; return b },
		"table size": func(b []byte) []byte { b[len(b)-16]++; return b },
	} {
		if _, err := parseIndex(change(bytes.Clone(sound))); !errors.Is(err, ErrIndex) {
			t.Errorf("%s: got %v, want ErrIndex", name, err)
		}
	}
}

// FuzzIndex: what is read is the same when it is written.
func FuzzIndex(f *testing.F) {
	sound := testIndex().encode()
	f.Add(sound)
	f.Add(sound[:indexOverhead])
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := parseIndex(b)
		if err != nil {
			if !errors.Is(err, ErrIndex) {
				t.Fatalf("got %v", err)
			}
			return
		}
		for i := range x.count() {
			start, size, _ := x.chunk(i)
			if size <= 0 || size > int64(x.sizes.Max) || x.at(start) != i {
				t.Fatalf("chunk %d: %d+%d", i, start, size)
			}
		}
		again := x.encode()
		copy(b[16:24], again[16:24]) // flags that are not looked at
		if !bytes.Equal(again, b) {
			t.Error("it was written as another")
		}
	})
}
