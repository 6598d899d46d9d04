package object_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/folbricht/desync"

	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/object/objecttest"
)

// useSHA256 sets desync's global digest for a test of desync itself.
func useSHA256(t *testing.T) {
	was := desync.Digest
	desync.Digest = desync.SHA256{}
	t.Cleanup(func() { desync.Digest = was })
}

// desyncs is our store as desync uses one.
type desyncs struct {
	*object.Chunks
	ctx context.Context //nolint:containedctx // desync's methods take none
}

func (d desyncs) GetChunk(id desync.ChunkID) (*desync.Chunk, error) {
	plain, err := d.Get(d.ctx, object.ChunkID(id))
	if err != nil {
		return nil, err
	}
	return desync.NewChunkWithID(id, plain, true)
}

func (d desyncs) HasChunk(id desync.ChunkID) (bool, error) { return d.Has(d.ctx, object.ChunkID(id)) }

func (d desyncs) StoreChunk(chunk *desync.Chunk) error {
	plain, err := chunk.Data()
	if err == nil {
		_, err = d.Put(d.ctx, object.ChunkID(chunk.ID()), plain)
	}
	return err
}

func (d desyncs) Close() error { return nil }

// blob is data that has equal chunks, zeros and noise in it.
func blob() []byte {
	b := noise(3 << 20)
	b = append(b, make([]byte, 2<<20)...)
	b = append(b, b[:1<<20]...)
	return append(b, bytes.Repeat([]byte("some text. "), 100_000)...)
}

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = t.TempDir()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.String())
	}
	return out
}

// casync reads what is written here: its own program, with an index by desync
// over our chunks.
func TestCasyncReadsOurs(t *testing.T) {
	useSHA256(t)
	s, dir := dirStore(t)
	c := newChunks(t, s, "chunks")
	data, tmp := blob(), t.TempDir()
	chunker, err := desync.NewChunker(bytes.NewReader(data), 16<<10, 64<<10, 256<<10)
	must(t, err)
	index, err := desync.ChunkStream(t.Context(), chunker, desyncs{c, t.Context()}, 4)
	must(t, err)
	index.Index = desync.FormatIndex{
		FormatHeader: desync.FormatHeader{Size: 48, Type: desync.CaFormatIndex},
		FeatureFlags: desync.CaFormatExcludeNoDump, ChunkSizeMin: 16 << 10, ChunkSizeAvg: 64 << 10, ChunkSizeMax: 256 << 10,
	}
	f, err := os.Create(filepath.Join(tmp, "blob.caibx"))
	must(t, err)
	_, err = index.WriteTo(f)
	must(t, err)
	must(t, f.Close())
	out := filepath.Join(tmp, "out")
	run(t, "casync", "extract", "--store="+filepath.Join(dir, "chunks"), f.Name(), out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, data) {
		t.Errorf("casync got %d other bytes of %d, %v", len(got), len(data), err)
	}
	// So does desync, by its own reader of directories.
	local, err := desync.NewLocalStore(filepath.Join(dir, "chunks"), desync.NewStoreOptionsWithDefaults())
	must(t, err)
	var whole bytes.Buffer
	for _, part := range index.Chunks {
		chunk, err := local.GetChunk(part.ID)
		must(t, err)
		b, err := chunk.Data()
		must(t, err)
		whole.Write(b)
	}
	if !bytes.Equal(whole.Bytes(), data) {
		t.Errorf("desync got %d other bytes of %d", whole.Len(), len(data))
	}
}

// What casync writes is read here, from a directory and from S3, through a cache.
func TestWeReadCasyncs(t *testing.T) {
	useSHA256(t)
	data, tmp := blob(), t.TempDir()
	in, idx, dir := filepath.Join(tmp, "in"), filepath.Join(tmp, "in.caibx"), filepath.Join(tmp, "store")
	must(t, os.WriteFile(in, data, 0o600))
	run(t, "casync", "make", "--digest=sha256", "--compression=zstd", "--store="+dir, idx, in)
	f, err := os.Open(idx)
	must(t, err)
	defer f.Close()
	index, err := desync.IndexFromReader(f)
	must(t, err)
	local, err := object.OpenDir(dir)
	must(t, err)
	defer local.Close()
	server := objecttest.StartS3(t)
	remote := opener(t, server.URL(t), quick())()
	must(t, local.List(t.Context(), "", func(o object.Info) error { return transfer(t.Context(), local, remote, o) }))
	far, err := newChunks(t, remote, "").Cached(filepath.Join(tmp, "cache"), 1<<30)
	must(t, err)
	for _, c := range []*object.Chunks{newChunks(t, local, ""), far} {
		// desync itself puts the blob together from our store.
		out := filepath.Join(t.TempDir(), "out")
		_, err := desync.AssembleFile(t.Context(), out, index, desyncs{c, t.Context()}, nil, desync.AssembleOptions{N: 4})
		must(t, err)
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: got %d other bytes of %d, %v", c, len(got), len(data), err)
		}
	}
}

func transfer(ctx context.Context, from, to object.Store, o object.Info) error {
	body, _, err := from.Get(ctx, o.Name)
	if err != nil {
		return err
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	return to.Put(ctx, o.Name, bytes.NewReader(b), o.Size)
}
