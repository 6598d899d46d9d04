package region

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// blockOf is a block of EBS direct's that nothing but its mark tells from others;
// mark 0 is zeros.
func blockOf(mark byte) []byte {
	b := make([]byte, BlockSize)
	if mark > 0 {
		b[0], b[BlockSize/2], b[BlockSize-1] = mark, mark, mark
	}
	return b
}

func sumOf(b []byte) Checksum { return sha256.Sum256(b) }

// marks are the blocks of a disk that are not zeros.
type marks map[int64]byte

// snapshotOf is a completed snapshot of a disk of so many bytes.
func snapshotOf(t *testing.T, r *Region, size int64, blocks marks) ami.SnapshotID {
	t.Helper()
	path := diskOf(t, nil, size)
	f := get(os.OpenFile(path, os.O_RDWR, 0))(t)
	defer f.Close()
	for i, mark := range blocks {
		for _, off := range []int64{0, BlockSize / 2, BlockSize - 1} { // which leaves holes
			get(f.WriteAt([]byte{mark}, i*BlockSize+off))(t)
		}
	}
	i, err := r.ImportImage(t.Context(), ImportInput{Source: path, Format: "raw", Name: "of " + string(ami.NewImageID())})
	must(t, err)
	return rootSnapshot(i)
}

// pages reads a list of blocks to its end.
func pages(t *testing.T, list func(BlocksInput) (int, string, error), in BlocksInput) (sizes []int) {
	t.Helper()
	for {
		n, next, err := list(in)
		must(t, err)
		if sizes = append(sizes, n); next == "" {
			return sizes
		}
		in.NextToken = next
	}
}

func TestListSnapshotBlocks(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	want := marks{}
	for i := range int64(250) {
		want[3*i] = byte(1 + i%250)
	}
	id := snapshotOf(t, r, 1<<30, want)
	var got []Block
	list := func(in BlocksInput) (int, string, error) {
		p, err := r.ListSnapshotBlocks(t.Context(), id, in)
		if until := time.Until(p.ExpiryTime); err == nil && (p.VolumeSize != 1 || p.BlockSize != 524288 || until > blockExpiry || until < blockExpiry-time.Minute) {
			t.Errorf("got a page of %d GiB in blocks of %d bytes until %s", p.VolumeSize, p.BlockSize, p.ExpiryTime)
		}
		got = append(got, p.Blocks...)
		return len(p.Blocks), p.NextToken, err
	}
	tests := []struct {
		in    BlocksInput
		sizes []int
	}{
		{BlocksInput{}, []int{250}},
		{BlocksInput{MaxResults: 100}, []int{100, 100, 50}},
		{BlocksInput{MaxResults: 1}, []int{100, 100, 50}},
		{BlocksInput{MaxResults: 125}, []int{125, 125}},
		{BlocksInput{MaxResults: 10000}, []int{250}},
		{BlocksInput{MaxResults: 100, StartingBlockIndex: 3 * 100}, []int{100, 50}},
		{BlocksInput{MaxResults: 100, StartingBlockIndex: 3*100 - 1}, []int{100, 50}},
		{BlocksInput{StartingBlockIndex: 1 << 40}, []int{0}},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%+v", tt.in), func(t *testing.T) {
			got = nil
			if sizes := pages(t, list, tt.in); !slices.Equal(sizes, tt.sizes) {
				t.Errorf("got pages of %v blocks, want %v", sizes, tt.sizes)
			}
			first := 250 - len(got)
			for n, b := range got {
				if i := int64(3 * (first + n)); b.Index != i || b.Token != sumOf(blockOf(want[i])) {
					t.Fatalf("got block %d with %s, want block %d and its SHA-256", b.Index, b.Token, i)
				}
			}
		})
	}
	// A page is the same each time that it is asked for, and a token goes before an index.
	first := get(r.ListSnapshotBlocks(t.Context(), id, BlocksInput{MaxResults: 100}))(t)
	second := get(r.ListSnapshotBlocks(t.Context(), id, BlocksInput{MaxResults: 100, NextToken: first.NextToken}))(t)
	again := get(r.ListSnapshotBlocks(t.Context(), id, BlocksInput{MaxResults: 100, NextToken: first.NextToken, StartingBlockIndex: 7}))(t)
	if diff := cmp.Diff(second, again, cmp.Transformer("", Checksum.String)); diff != "" || len(second.NextToken) > 256 {
		t.Errorf("the second page again (-first +second):\n%s", diff)
	}
}

func TestListChangedBlocks(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	a := snapshotOf(t, r, 1<<30, marks{0: 1, 1: 1, 2: 1, 9: 1})
	b := snapshotOf(t, r, 1<<30, marks{0: 1, 1: 2, 3: 1, 9: 1})
	short := snapshotOf(t, r, BlockSize*3/2, marks{0: 7})
	one, two, zero := sumOf(blockOf(1)), sumOf(blockOf(2)), sumOf(blockOf(0))
	tests := []struct {
		name          string
		first, second ami.SnapshotID
		start         int64
		want          []ChangedBlock
	}{
		{"forth", a, b, 0, []ChangedBlock{{1, one, two}, {2, one, zero}, {3, Checksum{}, one}}},
		{"back", b, a, 0, []ChangedBlock{{1, two, one}, {2, Checksum{}, one}, {3, one, zero}}},
		{"from the middle", a, b, 2, []ChangedBlock{{2, one, zero}, {3, Checksum{}, one}}},
		{"with itself", a, a, 0, []ChangedBlock{}},
		{"with a smaller one", a, short, 0, []ChangedBlock{{0, one, sumOf(blockOf(7))}, {1, one, zero}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := get(r.ListChangedBlocks(t.Context(), tt.first, tt.second, BlocksInput{StartingBlockIndex: tt.start}))(t)
			if diff := cmp.Diff(tt.want, got.Blocks); diff != "" {
				t.Errorf("changed blocks (-want +got):\n%s", diff)
			}
			for _, c := range got.Blocks { // each can be read by its token
				get2(r.GetSnapshotBlock(t.Context(), tt.second, c.Index, c.Second))(t)
			}
		})
	}
	want := SnapshotDiff{
		First: a, Second: b, BlockSize: BlockSize, ChangedBytes: 3 * BlockSize, Indexes: []int64{1, 2, 3},
		Blocks: []ChangedBlock{{1, one, two}, {2, one, Checksum{}}, {3, Checksum{}, one}}, // zeros are nothing here
	}
	if diff := cmp.Diff(want, get(r.DiffSnapshots(t.Context(), a, b))(t)); diff != "" {
		t.Errorf("the difference (-want +got):\n%s", diff)
	}
	text := string(get(json.Marshal(get(r.ListChangedBlocks(t.Context(), a, b, BlocksInput{StartingBlockIndex: 3}))(t)))(t))
	if want := `{"ChangedBlocks":[{"BlockIndex":3,"SecondBlockToken":"` + one.String() + `"}],"ExpiryTime":`; !strings.HasPrefix(text, want) {
		t.Errorf("as JSON got %s, want it to begin with %s", text, want)
	}

	many := marks{}
	for i := range int64(150) {
		many[i] = 5
	}
	wide := snapshotOf(t, r, 1<<30, many)
	got := pages(t, func(in BlocksInput) (int, string, error) {
		p, err := r.ListChangedBlocks(t.Context(), a, wide, in)
		return len(p.Blocks), p.NextToken, err
	}, BlocksInput{MaxResults: 100})
	if !slices.Equal(got, []int{100, 50}) {
		t.Errorf("got pages of %v blocks, want 100 and 50", got)
	}
}

// get2 is get for what returns two values.
func get2[T, U any](v T, w U, err error) func(*testing.T) (T, U) {
	return func(t *testing.T) (T, U) {
		t.Helper()
		must(t, err)
		return v, w
	}
}

func TestGetSnapshotBlock(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	id := snapshotOf(t, r, BlockSize*5/2, marks{0: 1, 1: 2})
	for i, mark := range []byte{1, 2, 0} {
		for _, token := range []Checksum{{}, sumOf(blockOf(mark))} {
			data, sum := get2(r.GetSnapshotBlock(t.Context(), id, int64(i), token))(t)
			if !bytes.Equal(data, blockOf(mark)) || sum != sumOf(data) {
				t.Errorf("block %d: got other bytes, or not their SHA-256: %s", i, sum)
			}
		}
	}
}

func TestBlockErrors(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	r := h.open(t)
	id, other := snapshotOf(t, r, 1<<20, marks{0: 1, 1: 2}), snapshotOf(t, r, 1<<20, marks{0: 3})
	pending := r.newSnapshot("", "", gib, nil)
	must(t, r.catalog.Update(t.Context(), func(tx *catalog.Tx) error { return tx.PutSnapshot(pending) }))
	list := func(r *Region, id ami.SnapshotID, in BlocksInput) error {
		_, err := r.ListSnapshotBlocks(t.Context(), id, in)
		return err
	}
	changed := func(first, second ami.SnapshotID, in BlocksInput) error {
		_, err := r.ListChangedBlocks(t.Context(), first, second, in)
		return err
	}
	read := func(id ami.SnapshotID, index int64, token Checksum) error {
		_, _, err := r.GetSnapshotBlock(t.Context(), id, index, token)
		return err
	}
	token := func(text string) BlocksInput { return BlocksInput{NextToken: text} }
	foreign := base64.StdEncoding.EncodeToString(make([]byte, 16))
	tests := []struct {
		name string
		err  error
		want ami.Code
	}{
		{"list: no id", list(r, "x", BlocksInput{}), ami.CodeInvalidSnapshotIDMalformed},
		{"list: not there", list(r, ami.NewSnapshotID(), BlocksInput{}), ami.CodeInvalidSnapshotNotFound},
		{"list: another's", list(h.open(t, as(stranger)), id, BlocksInput{}), ami.CodeInvalidSnapshotNotFound},
		{"list: pending", list(r, pending.SnapshotID, BlocksInput{}), ami.CodeIncorrectState},
		{"list: too many", list(r, id, BlocksInput{MaxResults: 10001}), ami.CodeInvalidParameterValue},
		{"list: less than none", list(r, id, BlocksInput{MaxResults: -1}), ami.CodeInvalidParameterValue},
		{"list: before the start", list(r, id, BlocksInput{StartingBlockIndex: -1}), ami.CodeInvalidParameterValue},
		{"list: no token", list(r, id, token("?")), ami.CodeInvalidNextToken},
		{"list: a token of nothing", list(r, id, token(foreign)), ami.CodeInvalidNextToken},
		{"list: a token of another", list(r, id, token(pageToken(1, other))), ami.CodeInvalidNextToken},
		{"list: a token of a comparison", list(r, id, token(pageToken(1, id, other))), ami.CodeInvalidNextToken},
		{"list: its token", list(r, id, token(pageToken(1, id))), ""},
		{"compare: with nothing", changed("", id, BlocksInput{}), ami.CodeMissingParameter},
		{"compare: first not there", changed(ami.NewSnapshotID(), id, BlocksInput{}), ami.CodeInvalidSnapshotNotFound},
		{"compare: second not there", changed(id, ami.NewSnapshotID(), BlocksInput{}), ami.CodeInvalidSnapshotNotFound},
		{"compare: second pending", changed(id, pending.SnapshotID, BlocksInput{}), ami.CodeIncorrectState},
		{"compare: a token of the other way", changed(id, other, token(pageToken(1, other, id))), ami.CodeInvalidNextToken},
		{"compare: too many", changed(id, other, BlocksInput{MaxResults: 10001}), ami.CodeInvalidParameterValue},
		{"read: pending", read(pending.SnapshotID, 0, Checksum{}), ami.CodeIncorrectState},
		{"read: not there", read(ami.NewSnapshotID(), 0, Checksum{}), ami.CodeInvalidSnapshotNotFound},
		{"read: before the start", read(id, -1, Checksum{}), ami.CodeInvalidParameterValue},
		{"read: behind the end", read(id, 2, Checksum{}), ami.CodeInvalidParameterValue},
		{"read: another's token", read(id, 0, sumOf(blockOf(2))), ami.CodeInvalidParameterValue},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantCode(t, tt.err, tt.want) })
	}
}

// A block of a damaged layer is not given out.
func TestDamagedBlock(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	id := snapshotOf(t, r, 1<<20, marks{0: 1})
	twin := snapshotOf(t, r, 1<<20, marks{0: 2})
	layer := func(id ami.SnapshotID) string { return r.layerFile(get(r.snapshot(t.Context(), id))(t).Layer) }
	bytes := get(os.ReadFile(layer(twin)))(t)
	must(t, os.Remove(layer(id)))
	must(t, os.WriteFile(layer(id), bytes, 0o400))
	_, _, err := r.GetSnapshotBlock(t.Context(), id, 0, Checksum{})
	wantCode(t, err, ami.CodeInternalError)
	wantSays(t, err, "is damaged")
}

// The list of a layer's blocks is read once, for as long as not too many others are.
func TestKnownLists(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	a, b, c := snapshotOf(t, r, 1<<20, marks{0: 1}), snapshotOf(t, r, 1<<20, marks{0: 2}), snapshotOf(t, r, 1<<20, marks{0: 3})
	list := func(id ami.SnapshotID) string {
		layer := r.layerFile(get(r.snapshot(t.Context(), id))(t).Layer)
		return strings.TrimSuffix(layer, ".qcow2") + ".blocks"
	}
	isRead := func(id ami.SnapshotID) bool { // one that is gone is made again
		t.Helper()
		must(t, os.Remove(list(id)))
		data, _ := get2(r.GetSnapshotBlock(t.Context(), id, 0, Checksum{}))(t)
		if want := map[ami.SnapshotID]byte{a: 1, b: 2, c: 3}[id]; data[0] != want {
			t.Errorf("got the mark %d, want %d", data[0], want)
		}
		if _, err := os.Stat(list(id)); err == nil {
			return true
		}
		must(t, os.WriteFile(list(id), nil, 0o600))
		return false
	}
	get(r.ListChangedBlocks(t.Context(), a, b, BlocksInput{}))(t)
	for n, want := range []struct {
		id   ami.SnapshotID
		read bool
	}{{a, false}, {b, false}, {a, false}, {c, true}, {c, false}, {a, false}, {b, true}, {c, true}} {
		if got := isRead(want.id); got != want.read {
			t.Errorf("%d: the list of %s was read: %v, want %v", n, want.id, got, want.read)
		}
	}
}

// That a list is known opens an encrypted snapshot to nobody.
func TestKnownListWithoutItsKey(t *testing.T) {
	t.Parallel()
	r, _ := open(t)
	secret := encryptedSnapshot(t, r, snapshotOf(t, r, 1<<20, marks{0: 1}), "")
	get(r.ListSnapshotBlocks(t.Context(), secret.SnapshotID, BlocksInput{}))(t)
	must(t, os.Remove(r.path("kms", secret.KmsKeyID+".json")))
	_, err := r.ListSnapshotBlocks(t.Context(), secret.SnapshotID, BlocksInput{})
	wantCode(t, err, ami.CodeInvalidKMSKeyState)
}

func TestChecksum(t *testing.T) {
	t.Parallel()
	// head -c 524288 /dev/zero | openssl dgst -sha256 -binary | base64
	if got, want := sumOf(blockOf(0)).String(), "B4VNL+8pega6gWheZgwzLeNtXRjVRpJ9MNqtbX/aFUE="; got != want {
		t.Errorf("got the checksum %s of zeros, want %s", got, want)
	}
	sum := sumOf([]byte("kami"))
	got := get(ParseChecksum(sum.String()))(t)
	if got != sum || len(sum.String()) != 44 {
		t.Errorf("got %s of the text of %s", got, sum)
	}
	for _, bad := range []string{"", "?", sum.String()[:40], "A" + sum.String(), fmt.Sprintf("%x", sum[:])} {
		_, err := ParseChecksum(bad)
		wantCode(t, err, ami.CodeInvalidParameterValue)
	}
	var doc struct{ Sum Checksum }
	must(t, json.Unmarshal([]byte(`{"Sum":"`+sum.String()+`"}`), &doc))
	if doc.Sum != sum {
		t.Errorf("out of JSON got %s, want %s", doc.Sum, sum)
	}
	if err := json.Unmarshal([]byte(`{"Sum":"x"}`), &doc); err == nil {
		t.Error("out of bad JSON got no error, want one")
	}
}
