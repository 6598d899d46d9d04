package ec2ami

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rsa"
	"crypto/sha1"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

func TestOpenRefuses(t *testing.T) {
	nobody := func(in *OpenInput) { in.Signers = nil }
	tests := []struct {
		name   string
		change func(in *OpenInput, store *memory)
		code   ami.Code
		want   string
	}{
		{"no manifest", func(in *OpenInput, _ *memory) { in.Manifest = "web2.manifest.xml" }, ami.CodeInvalidManifest, "no manifest web2"},
		{"an unknown signer", func(in *OpenInput, _ *memory) { nobody(in) }, ami.CodeInvalidManifest, "not known who signed"},
		{"another signer", func(in *OpenInput, _ *memory) { in.Signers = []*rsa.PublicKey{stranger().cert} }, ami.CodeInvalidManifest, "somebody else signed"},
		{"no signature", func(_ *OpenInput, s *memory) { cutOut(s, "<signature>", "</signature>") }, ami.CodeInvalidManifest, "is not signed"},
		{"a forged image", func(_ *OpenInput, s *memory) { replace(s, "<name>web<", "<name>wab<") }, ami.CodeInvalidManifest, "changed after it was signed"},
		{"a forged machine", func(_ *OpenInput, s *memory) { replace(s, "aki-0", "aki-1") }, ami.CodeInvalidManifest, "changed after it was signed"},
		{"another's key", func(in *OpenInput, _ *memory) { in.Keys = []*rsa.PrivateKey{stranger().key} }, ami.CodeInvalidKeyFormat, "to other keys"},
		{"no key", func(in *OpenInput, _ *memory) { in.Keys = nil }, ami.CodeInvalidKeyFormat, "no key to read it with"},
		{"parts of another", func(in *OpenInput, s *memory) { in.Unsigned = true; replace(s, "web.part.01", "wab.part.01") }, ami.CodeInvalidManifest, "it should be web.part.01"},
		{"a part that is none", func(in *OpenInput, s *memory) { in.Unsigned = true; replace(s, "web.part.01", "web.manifest.xml") }, ami.CodeInvalidManifest, "it should be web.part.01"},
		{"another number", func(in *OpenInput, s *memory) { in.Unsigned = true; replace(s, "web.part.01", "web.part.03") }, ami.CodeInvalidManifest, "it should be web.part.01"},
		{"too long", func(_ *OpenInput, s *memory) { s.objects["web.manifest.xml"] = make([]byte, MaxManifest+1) }, ami.CodeInvalidManifest, "longer than 32 MiB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			store := someBundle().copyOf()
			in := openInput(store)
			tt.change(&in, store)
			_, err := Open(t.Context(), in)
			if ami.ErrorCode(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s %s", err, tt.code, tt.want)
			}
		})
	}
}

func TestUnsigned(t *testing.T) {
	store := someBundle().copyOf()
	replace(store, "aki-0", "aki-1")
	in := openInput(store)
	in.Unsigned = true
	got, b, err := unpack(t, in)
	must(t, err)
	if b.Signed || b.Machine.KernelID != "aki-1123456789abcdef0" || !bytes.Equal(got, picture(25<<20, nil)) {
		t.Errorf("got %+v", b.Machine)
	}
	b, err = Open(t.Context(), OpenInput{Store: someBundle(), Manifest: in.Manifest, Keys: in.Keys, Signers: in.Signers, Unsigned: true})
	if must(t, err); !b.Signed {
		t.Error("a good signature is not said to be one")
	}
}

func replace(s *memory, old, with string) {
	s.objects["web.manifest.xml"] = bytes.Replace(s.objects["web.manifest.xml"], []byte(old), []byte(with), 1)
}

func cutOut(s *memory, from, to string) {
	text := string(s.objects["web.manifest.xml"])
	s.objects["web.manifest.xml"] = []byte(text[:strings.Index(text, from)] + text[strings.Index(text, to)+len(to):])
}

// Whatever is wrong with the parts is found before the end, and by its name.
func TestPartsRefuse(t *testing.T) {
	tests := []struct {
		name   string
		change func(s *memory)
		want   string
	}{
		{"one is missing", func(s *memory) { delete(s.objects, "web.part.01") }, "part \"web.part.01\" is missing"},
		{"a bit is another", func(s *memory) { s.objects["web.part.02"][100] ^= 1 }, "part \"web.part.02\" is damaged"},
		{"two are swapped", func(s *memory) {
			s.objects["web.part.00"], s.objects["web.part.01"] = s.objects["web.part.01"], s.objects["web.part.00"]
		}, "part \"web.part.00\" is damaged"},
		{"one is short", func(s *memory) { s.objects["web.part.00"] = s.objects["web.part.00"][1:] }, "part \"web.part.00\" is damaged"},
		{"one is empty", func(s *memory) { s.objects["web.part.00"] = nil }, "of 0 bytes"},
		{"one is long", func(s *memory) { s.objects["web.part.00"] = append(s.objects["web.part.00"], 0) }, "of 10485761 bytes"},
		{"the store fails", func(s *memory) {
			s.before = func(_, name string) error {
				if name == "web.part.02" {
					return errors.New("the store broke")
				}
				return nil
			}
		}, "the store broke"},
	}
	goroutines := runtime.NumGoroutine()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			store := someBundle().copyOf()
			tt.change(store)
			_, _, err := unpack(t, openInput(store))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
			if code := ami.ErrorCode(err); code != ami.CodeInvalidManifest && tt.want != "the store broke" {
				t.Errorf("got %s", code)
			}
		})
	}
	for i := 0; runtime.NumGoroutine() > goroutines+1; i++ {
		if i > 500 {
			t.Fatalf("%d goroutines go on, there were %d", runtime.NumGoroutine(), goroutines)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// member is a tar of one file, as bundles have it.
func member(name string, content []byte) []byte {
	var b bytes.Buffer
	must2(writeTar(&b, name, bytes.NewReader(content), int64(len(content)), nil, func(int64) {}))
	return b.Bytes()
}

func must2(err error) {
	if err != nil {
		panic(err)
	}
}

func zipped(b ...[]byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	for _, b := range b {
		_ = made(w.Write(b))
	}
	must2(w.Close())
	return out.Bytes()
}

// packed is an open bundle whose decrypted stream is plain, whatever that is.
func packed(plain []byte, size int64, digest [sha1.Size]byte) *Bundle {
	store := newMemory()
	b := &Bundle{Manifest: Manifest{Name: "web", Size: size, Digest: digest}, store: store}
	n := aes.BlockSize - len(plain)%aes.BlockSize
	enc := append(bytes.Clone(plain), bytes.Repeat([]byte{byte(n)}, n)...)
	cipher.NewCBCEncrypter(made(aes.NewCipher(b.key[:])), b.iv[:]).CryptBlocks(enc, enc)
	b.BundledSize = int64(len(enc))
	for len(enc) > 0 {
		n := min(len(enc), PartSize)
		name := partName("web", len(b.Parts))
		b.Parts = append(b.Parts, Part{name, sha1.Sum(enc[:n])})
		store.objects[name], enc = enc[:n], enc[n:]
	}
	return b
}

func TestUnpackRefuses(t *testing.T) {
	image := []byte("an image of some bytes")
	size := int64(len(image))
	good := member("web", image)
	goTar := func(h tar.Header, content []byte) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		h.Size = int64(len(content))
		must2(w.WriteHeader(&h))
		_ = made(w.Write(content))
		must2(w.Close())
		return b.Bytes()
	}
	header, rest := good[:2*tarBlock], good[2*tarBlock:]
	// A bomb: a small stream that unpacks to very much.
	zeros := make([]byte, 64<<20)
	tests := []struct {
		name  string
		plain []byte
		size  int64
		want  string
	}{
		{"nothing", nil, size, "do not hold a gzipped tar"},
		{"no gzip", []byte("no gzip at all, but long enough to be one"), size, "do not hold a gzipped tar"},
		{"no tar", zipped([]byte("no tar"), make([]byte, 1024)), size, "do not hold a gzipped tar"},
		{"an empty tar", zipped(make([]byte, tarRecord)), size, "do not hold a gzipped tar"},
		{"cut off", zipped(good)[:60], size, "do not hold a gzipped tar"},
		{"a tar that is cut off", zipped(good[:520]), size, "do not hold a gzipped tar"},
		{"another name", zipped(member("wab", image)), size, "holds \"wab\""},
		{"a name elsewhere", zipped(member("../web", image)), size, "holds \"../web\""},
		{"larger", zipped(member("web", append(image, '!'))), size, "of 23 bytes; the manifest says 22"},
		{"smaller", zipped(member("web", image[1:])), size, "of 21 bytes; the manifest says 22"},
		{"a folder", zipped(goTar(tar.Header{Name: "web", Typeflag: tar.TypeDir, Mode: 0o755}, nil)), size, "which is no file"},
		{"a link", zipped(goTar(tar.Header{Name: "web", Linkname: "/etc/passwd", Typeflag: tar.TypeSymlink}, nil)), size, "which is no file"},
		{"a device", zipped(goTar(tar.Header{Name: "web", Typeflag: tar.TypeBlock, Devmajor: 8}, nil)), size, "which is no file"},
		{"two members", zipped(header, member("more", []byte("more"))), size, "another member, \"more\""},
		{"more after its end", zipped(good, []byte("more")), size, "followed by something else"},
		{"something after the gzip", append(zipped(good), "more"...), size, "do not hold a gzipped tar"},
		{"another digest", zipped(header, rest[:len(rest)-tarRecord/2]), size, "its SHA-1 is not the manifest's"},
		{"a bomb of zeros", zipped(header, zeros), size, "more than its manifest says"},
		{"a bomb within the image", zipped(member("web", zeros)), size, "of 67108864 bytes; the manifest says 22"},
		{"a bomb of headers", zipped(bytes.Repeat(longName(), 3000), good), size, "more than its manifest says"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := packed(tt.plain, tt.size, sha1.Sum(good))
			_, err := b.Unpack(t.Context(), make(sink, tt.size), func(int64) {})
			if ami.ErrorCode(err) != ami.CodeInvalidManifest || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	b := packed(zipped(good), size, sha1.Sum(good))
	got := make(sink, size)
	if digested, err := b.Unpack(t.Context(), got, func(int64) {}); err != nil || digested != DigestOfTar || !bytes.Equal(got, image) {
		t.Errorf("the good one: %q, %v", digested, err)
	}
}

// longName is a member that gives the next a name, which tars can repeat.
func longName() []byte {
	b := tarHeader("././@LongLink", 1024, 1024, nil)
	b[156] = 'L'
	tarSum(b)
	return append(b, bytes.Repeat([]byte("a"), 1024)...)
}

// The end of what is encrypted is looked at before it is believed.
func TestPadding(t *testing.T) {
	good := member("web", []byte("x"))
	for _, pad := range []string{"\x00", "\x11", "\x03\x02"} {
		b := packed(zipped(good), 1, sha1.Sum(good))
		store := b.store.(*memory)
		part := store.objects["web.part.00"]
		block := made(aes.NewCipher(b.key[:]))
		cipher.NewCBCDecrypter(block, b.iv[:]).CryptBlocks(part, part)
		copy(part[len(part)-len(pad):], pad)
		cipher.NewCBCEncrypter(block, b.iv[:]).CryptBlocks(part, part)
		b.Parts[0].Digest = sha1.Sum(part)
		_, err := b.Unpack(t.Context(), make(sink, 1), func(int64) {})
		if ami.ErrorCode(err) != ami.CodeInvalidManifest || !strings.Contains(err.Error(), "does not end") {
			t.Errorf("%q: got %v", pad, err)
		}
	}
}

// The bundled size is what the parts are, and not only about that.
func TestBundledSize(t *testing.T) {
	good := member("web", []byte("x"))
	for _, by := range []int64{-16, 16} {
		b := packed(zipped(good), 1, sha1.Sum(good))
		b.BundledSize += by
		_, err := b.Unpack(t.Context(), make(sink, 1), func(int64) {})
		if ami.ErrorCode(err) != ami.CodeInvalidManifest || !strings.Contains(err.Error(), "bytes that its manifest says") {
			t.Errorf("by %d: got %v", by, err)
		}
	}
}

// What the tools of that age took the digest of.
func TestDigests(t *testing.T) {
	image := []byte("an image")
	good := member("web", image)
	tests := []struct {
		sum  [sha1.Size]byte
		want Digested
	}{
		{sha1.Sum(good), DigestOfTar},
		{sha1.Sum(image), DigestOfImage},
		{sha1.Sum(nil), DigestOfNothing},
		{sha1.Sum([]byte("another")), ""},
	}
	for _, tt := range tests {
		got, err := packed(zipped(good), int64(len(image)), tt.sum).Unpack(t.Context(), make(sink, len(image)), func(int64) {})
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("got %q and %v, want %q", got, err, tt.want)
		}
	}
}

func TestUnpackStops(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	b, err := Open(ctx, openInput(someBundle()))
	must(t, err)
	_, err = b.Unpack(ctx, make(sink, b.Size), func(int64) { stop() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	full := errors.New("the disk is full")
	_, err = b.Unpack(t.Context(), broken{full}, func(int64) {})
	if !errors.Is(err, full) || ami.ErrorCode(err) == ami.CodeInvalidManifest {
		t.Errorf("got %v", err)
	}
}

type broken struct{ err error }

func (b broken) WriteAt([]byte, int64) (int, error) { return 0, b.err }

// Several parts travel at once, but never more than are told.
func TestPartsTravelAtOnce(t *testing.T) {
	store := newMemory()
	must(t, second(Write(t.Context(), input(store, picture(100<<20, nil)))))
	slow := func(verb, name string) error {
		if strings.Contains(name, ".part.") {
			time.Sleep(20 * time.Millisecond)
		}
		return nil
	}
	store.before = slow
	_, _, err := unpack(t, openInput(store))
	must(t, err)
	if store.most < 2 || store.most > ahead+1 {
		t.Errorf("%d parts travelled at once", store.most)
	}
}

// countSink takes an image without keeping it.
type countSink struct{ n int64 }

func (c *countSink) WriteAt(b []byte, _ int64) (int, error) {
	c.n += int64(len(b))
	return len(b), nil
}

func FuzzParts(f *testing.F) {
	image := []byte("an image of some bytes")
	good := member("web", image)
	f.Add(good, int64(len(image)), true)
	f.Add(zipped(good), int64(len(image)), false)
	f.Add(tarHeader("web", 1<<20, 4096, []Extent{{8192, 4096}}), int64(1<<20), true)
	f.Add(append(longName(), good...), int64(1), true)
	f.Fuzz(func(t *testing.T, plain []byte, size int64, zip bool) {
		if size < 1 || size > 8<<20 || len(plain) > 1<<20 {
			return
		}
		if zip {
			plain = zipped(plain)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		out := &countSink{}
		_, err := packed(plain, size, sha1.Sum(nil)).Unpack(t.Context(), out, func(int64) {})
		runtime.ReadMemStats(&after)
		if err != nil && ami.ErrorCode(err) != ami.CodeInvalidManifest {
			t.Fatalf("got %v", err)
		}
		if out.n > size {
			t.Fatalf("wrote %d bytes of %d", out.n, size)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
			t.Fatalf("took %d MiB", got>>20)
		}
	})
}

var _ io.WriterAt = (*countSink)(nil)
