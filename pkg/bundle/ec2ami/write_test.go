package ec2ami

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rsa"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// pair is a key with its certificate, as PEM too.
type pair struct {
	key       *rsa.PrivateKey
	cert      *rsa.PublicKey
	pem, pemC []byte
}

func newPair(name string) (p pair) {
	var err error
	if p.pem, p.pemC, err = GenerateKey(name, time.Now()); err != nil {
		panic(err)
	}
	p.key, p.cert = made(ParsePrivateKey(name, p.pem)), made(ParseCertificate(name, p.pemC))
	return p
}

// made is for what tests share, which is made before any of them runs.
func made[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// pairs are made once: making them is slow.
var pairs = sync.OnceValue(func() [3]pair {
	return [3]pair{newPair("user"), newPair("cloud"), newPair("stranger")}
})

func user() pair     { return pairs()[0] }
func cloud() pair    { return pairs()[1] }
func stranger() pair { return pairs()[2] }

// picture is an image of size bytes: some that nothing compresses, holes between.
func picture(size int64, extents []Extent) []byte {
	b := make([]byte, size)
	src := rand.NewChaCha8([32]byte{1})
	if extents == nil {
		extents = []Extent{{0, size}}
	}
	for _, e := range extents {
		src.Read(b[e.Offset : e.Offset+e.Length])
	}
	return b
}

func input(store *memory, image []byte) WriteInput {
	return WriteInput{
		Store: store, Prefix: "web", Image: bytes.NewReader(image), Size: int64(len(image)),
		User: "123456789012", Key: user().key, Cert: user().cert, Cloud: cloud().cert,
		Machine: Machine{
			Architecture: "x86_64", KernelID: "aki-0123456789abcdef0", RamdiskID: "ari-0123456789abcdef0",
			Mapping:      []Mapping{{"ami", "sda1"}, {"root", "/dev/sda1"}, {"ephemeral0", "sdb"}},
			ProductCodes: []string{"774F4FF8", "A<&>'\"B"},
		},
		Ancestry: []string{"ami-0123456789abcdef0"},
		Bundler:  Bundler{"kami", "1", "0"},
	}
}

func openInput(store *memory) OpenInput {
	return OpenInput{Store: store, Manifest: "web.manifest.xml", Keys: []*rsa.PrivateKey{user().key}, Signers: []*rsa.PublicKey{user().cert}}
}

// sink is what an image is unpacked to.
type sink []byte

func (s sink) WriteAt(b []byte, at int64) (int, error) { return copy(s[at:], b), nil }

func (s sink) ReadAt(b []byte, at int64) (int, error) { return bytes.NewReader(s).ReadAt(b, at) }

func unpack(t testing.TB, in OpenInput) ([]byte, *Bundle, error) {
	t.Helper()
	b, err := Open(t.Context(), in)
	if err != nil {
		return nil, nil, err
	}
	out := make(sink, b.Size)
	copied := int64(0)
	_, err = b.Unpack(t.Context(), out, func(n int64) { copied += n })
	if err == nil && copied != b.Size {
		t.Errorf("the progress came to %d of %d bytes", copied, b.Size)
	}
	return out, b, err
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	const mib = 1 << 20
	scattered := []Extent{}
	for at := int64(0); at < 8*mib; at += 3 * 8192 {
		scattered = append(scattered, Extent{at, 5000})
	}
	tests := []struct {
		name    string
		size    int64
		extents []Extent
		parts   int
	}{
		{"one byte", 1, nil, 1},
		{"less than a block", 511, nil, 1},
		{"one part", 3*mib + 17, nil, 1},
		{"more parts than are on their way", 75*mib + 1, nil, 8},
		{"sparse", 50 * mib, []Extent{{mib, mib}, {20 * mib, 100}, {30*mib + 5, 4 * mib}}, 1},
		{"sparse to the end", 50*mib + 3, []Extent{{49 * mib, mib + 3}}, 1},
		{"a map of many", 8*mib + 6000, scattered, 1},
		{"all holes", 30 * mib, []Extent{}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			image, store := picture(tt.size, tt.extents), newMemory()
			in := input(store, image)
			in.Extents = tt.extents
			read := int64(0)
			in.Progress = func(n int64) { read += n }
			m, err := Write(t.Context(), in)
			must(t, err)
			if len(m.Parts) != tt.parts || read != tt.size {
				t.Errorf("got %d parts and a progress of %d, want %d and %d", len(m.Parts), read, tt.parts, tt.size)
			}
			for _, key := range []*rsa.PrivateKey{user().key, cloud().key} {
				open := openInput(store)
				open.Keys = []*rsa.PrivateKey{stranger().key, key}
				got, b, err := unpack(t, open)
				must(t, err)
				if !bytes.Equal(got, image) {
					t.Error("the image is another")
				}
				if !b.Signed || !reflect.DeepEqual(b.Manifest, *m) {
					t.Errorf("got the manifest %+v, want %+v", b.Manifest, *m)
				}
			}
		})
	}
}

// GNU's way of holes is not ours alone: Go's own reader knows it.
func TestTheTarIsATar(t *testing.T) {
	const size = 1<<20 + 100
	for _, extents := range [][]Extent{nil, {}, {{0, 10}}, {{8192, 100}, {100000, 1}}, {{size - 1, 1}}} {
		image := picture(size, extents)
		var b bytes.Buffer
		must(t, writeTar(&b, "image", bytes.NewReader(image), size, extents, func(int64) {}))
		if b.Len()%tarRecord != 0 {
			t.Errorf("%v: it is of %d bytes", extents, b.Len())
		}
		r := tar.NewReader(&b)
		h, err := r.Next()
		must(t, err)
		got, err := io.ReadAll(r)
		must(t, err)
		if h.Name != "image" || h.Size != size || !bytes.Equal(got, image) {
			t.Errorf("%v: got %+v with %d bytes", extents, h, len(got))
		}
	}
}

func TestTidy(t *testing.T) {
	many := make([]Extent, 100_000)
	for i := range many {
		many[i] = Extent{int64(i) * 8192, 1}
	}
	tests := []struct {
		name string
		in   []Extent
		size int64
		want []Extent
	}{
		{"nil is all", nil, 100, []Extent{{0, 100}}},
		{"none", []Extent{}, 100, nil},
		{"to blocks", []Extent{{5000, 10}, {20000, 4000}}, 1 << 20, []Extent{{4096, 4096}, {16384, 8192}}},
		{"touching", []Extent{{0, 4096}, {4096, 1}, {4097, 1}}, 1 << 20, []Extent{{0, 8192}}},
		{"within one another", []Extent{{0, 20000}, {4096, 1}}, 1 << 20, []Extent{{0, 20480}}},
		{"the end is no block's", []Extent{{4096, 10}}, 4200, []Extent{{4096, 104}}},
		{"nothing", []Extent{{4096, 0}}, 8192, nil},
	}
	for _, tt := range tests {
		if got := tidy(tt.in, tt.size); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
	if got := tidy(many, 100_000*8192); len(got) > maxExtents {
		t.Errorf("got %d extents", len(got))
	}
}

func TestTarNumbers(t *testing.T) {
	var b bytes.Buffer
	const size = 9 << 30
	b.Write(tarHeader("image", size, size, []Extent{{0, size}}))
	h, err := tar.NewReader(&b).Next()
	must(t, err)
	if h.Size != size {
		t.Errorf("got %d, want %d", h.Size, int64(size))
	}
}

func TestWriteRefuses(t *testing.T) {
	image := []byte("an image")
	tests := []struct {
		name   string
		change func(*WriteInput)
		want   ami.Code
	}{
		{"a prefix with a folder", func(in *WriteInput) { in.Prefix = "a/b" }, ami.CodeInvalidParameterValue},
		{"no prefix", func(in *WriteInput) { in.Prefix = "" }, ami.CodeInvalidParameterValue},
		{"a long prefix", func(in *WriteInput) { in.Prefix = strings.Repeat("a", 91) }, ami.CodeInvalidParameterValue},
		{"no image", func(in *WriteInput) { in.Size = 0 }, ami.CodeInvalidParameterValue},
		{"too much", func(in *WriteInput) { in.Size = MaxSize + 1 }, ami.CodeInvalidParameterValue},
		{"another's certificate", func(in *WriteInput) { in.Cert = stranger().cert }, ami.CodeInvalidKeyFormat},
	}
	for _, tt := range tests {
		store := newMemory()
		in := input(store, image)
		tt.change(&in)
		_, err := Write(t.Context(), in)
		if got := ami.ErrorCode(err); got != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
		if got := store.names(); len(got) > 0 {
			t.Errorf("%s: wrote %q", tt.name, got)
		}
	}
}

func TestWriteWhereABundleIs(t *testing.T) {
	old, image := picture(25<<20, nil), picture(11<<20, nil)
	store := newMemory()
	must(t, second(Write(t.Context(), input(store, old))))
	store.objects["web.part.two"] = []byte("not a part")
	before := store.copyOf()

	_, err := Write(t.Context(), input(store, image))
	if ami.ErrorCode(err) != ami.CodeInvalidParameterValue || !reflect.DeepEqual(store.objects, before.objects) {
		t.Errorf("got %v and %q", err, store.names())
	}
	// Parts without a manifest are what a killed one left, or what another writes now.
	delete(store.objects, "web.manifest.xml")
	delete(store.objects, "web.part.00")
	want := store.names()
	_, err = Write(t.Context(), input(store, image))
	if got := store.names(); ami.ErrorCode(err) != ami.CodeInvalidParameterValue || !slices.Equal(got, want) {
		t.Errorf("got %v and %q, want %q", err, got, want)
	}

	in := input(store, image)
	in.Replace = true
	must(t, second(Write(t.Context(), in)))
	want = []string{"web.manifest.xml", "web.part.00", "web.part.01", "web.part.two"}
	if got := store.names(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	got, _, err := unpack(t, openInput(store))
	if must(t, err); !bytes.Equal(got, image) {
		t.Error("the image is another")
	}
}

func second[T any](_ T, err error) error { return err }

type badReader struct{ after int64 }

func (r badReader) ReadAt(b []byte, at int64) (int, error) {
	if at+int64(len(b)) > r.after {
		return 0, errors.New("the disk broke")
	}
	rand.NewChaCha8([32]byte{byte(at >> 20)}).Read(b)
	return len(b), nil
}

// Whatever fails, nothing is left, and nothing goes on.
func TestWriteFails(t *testing.T) {
	image := picture(64<<20, nil)
	broken := errors.New("the store broke")
	goroutines := runtime.NumGoroutine()
	tests := []struct {
		name   string
		change func(in *WriteInput, store *memory, stop func())
		want   string
	}{
		{"a part", func(_ *WriteInput, store *memory, _ func()) {
			store.before = func(verb, name string) error {
				if verb == "put" && name == "web.part.02" {
					return broken
				}
				return nil
			}
		}, "the store broke"},
		{"the manifest", func(_ *WriteInput, store *memory, _ func()) {
			store.before = func(verb, name string) error {
				if verb == "put" && name == "web.manifest.xml" {
					return broken
				}
				return nil
			}
		}, "the store broke"},
		{"the image", func(in *WriteInput, _ *memory, _ func()) { in.Image = badReader{30 << 20} }, "the disk broke"},
		{"interrupted", func(_ *WriteInput, store *memory, stop func()) {
			store.before = func(verb, name string) error {
				if verb == "put" && name == "web.part.03" {
					stop()
				}
				return nil
			}
		}, "context canceled"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			store := newMemory()
			in := input(store, image)
			tt.change(&in, store, stop)
			_, err := Write(ctx, in)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
			if got := store.names(); len(got) > 0 {
				t.Errorf("left %q", got)
			}
		})
	}
	for i := 0; runtime.NumGoroutine() > goroutines+1; i++ {
		if i > 500 {
			stacks := make([]byte, 64<<10)
			t.Fatalf("%d goroutines go on, there were %d\n%s", runtime.NumGoroutine(), goroutines, stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
}
