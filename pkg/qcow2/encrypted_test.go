package qcow2

import (
	"bytes"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// chain are a file and what it stands on as QEMU's options, with the secrets that
// they need.
func chain(t *testing.T, paths ...string) string {
	t.Helper()
	var opts []string
	prefix := ""
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		info, err := Inspect(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		opts = append(opts, prefix+"driver=qcow2", prefix+"file.filename="+p)
		if info.Encrypted {
			opts = append(opts, prefix+"encrypt.key-secret=k"+info.KeyID)
		}
		prefix += "backing."
	}
	return strings.Join(opts, ",")
}

// secrets gives QEMU the keys of the tests.
func secrets() []string {
	var args []string
	for id, pass := range ring() {
		args = append(args, "--object", "secret,id=k"+id+",data="+pass)
	}
	return args
}

// keyedImg runs a command of qemu-img on chains.
func keyedImg(t *testing.T, command string, args ...string) string {
	t.Helper()
	return qemuImg(t, append(append([]string{command}, secrets()...), append([]string{"--image-opts"}, args...)...)...)
}

func keyedIO(t *testing.T, chain string, cmds ...string) {
	t.Helper()
	args := append(secrets(), "--image-opts", chain)
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-io", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
}

// patiently runs qemu-img where it makes a LUKS slot: it measures the speed of
// the machine, and gives up where the kernel tells it of no time that passed
// ("Unable to get accurate CPU usage").
func patiently(t *testing.T, args ...string) {
	t.Helper()
	for try := 1; ; try++ {
		out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput()
		if err == nil {
			return
		}
		if try == 50 || !bytes.Contains(out, []byte("accurate CPU usage")) {
			t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
		}
	}
}

// qemuRaw is what QEMU reads of a chain.
func qemuRaw(t *testing.T, paths ...string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	keyedImg(t, "convert", "-O", "raw", chain(t, paths...), raw)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ownFile makes an encrypted file of QEMU's and has it write something to it.
func ownFile(t *testing.T, opts string) (path string, want []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "own.qcow2")
	args := append([]string{"create", "-q", "-f", "qcow2"}, secrets()...)
	patiently(t, append(args, "-o", "encrypt.format=luks,encrypt.key-secret=k"+opts, path, "8M")...)
	keyedIO(t, chain(t, path), "write -P 7 1000000 100000", "write -P 8 3M 512", "write -z 1M 4k", "write -P 9 8388096 512")
	want = make([]byte, 8<<20)
	copy(want[1_000_000:], bytes.Repeat([]byte{7}, 100_000))
	copy(want[3<<20:], bytes.Repeat([]byte{8}, 512))
	clear(want[1<<20 : 1<<20+4096])
	copy(want[8388096:], bytes.Repeat([]byte{9}, 512))
	return path, want
}

// TestQEMUsEncryptedFilesRead reads what QEMU made, on clusters of all kinds. As it
// comes it takes two seconds of QEMU's work to open.
func TestQEMUsEncryptedFilesRead(t *testing.T) {
	for name, opts := range map[string]string{
		"as it comes":       "",
		"clusters of 512 B": ",encrypt.iter-time=10,cluster_size=512",
		"clusters of 2 MiB": ",encrypt.iter-time=10,cluster_size=2M",
	} {
		t.Run(name, func(t *testing.T) {
			path, want := ownFile(t, opts)
			img := openKeyed(t, path)
			if id := img.Encryption().KeyID(); id != "" || img.Info().KeyID != "" || !img.Info().Encrypted {
				t.Errorf("QEMU's file names the key %q", id)
			}
			if got := readAll(t, img); !bytes.Equal(got, want) {
				t.Errorf("it reads otherwise from byte %d on", firstDifference(got, want))
			}
			for _, at := range []int64{999_999, 1_000_001, 3<<20 + 511, 1<<20 - 3} {
				p := make([]byte, 1027)
				if _, err := img.ReadAt(p, at); err != nil || !bytes.Equal(p, want[at:at+1027]) {
					t.Errorf("reading at %d gave something else, %v", at, err)
				}
			}
			if opts == "" {
				return
			}
			// Its header serves for layers too.
			dir := t.TempDir()
			layer := filepath.Join(dir, encryptLayer(t, dir, img, nil, img.Encryption()).Layer.Hex()+".qcow2")
			keyedImg(t, "check", chain(t, layer))
			keyedImg(t, "compare", chain(t, path), chain(t, layer))
		})
	}
}

// TestEncryptedHead has QEMU write to a head over an encrypted layer, and makes
// the next layer of it, as an image of a volume is made.
func TestEncryptedHead(t *testing.T) {
	dir := t.TempDir()
	enc := encryption(t, keyA)
	raw := filepath.Join(dir, "disk.raw")
	disk(t, raw, 16<<20, 3)
	base := encryptLayer(t, dir, rawFile(t, raw), nil, enc)
	basePath := filepath.Join(dir, base.Layer.Hex()+".qcow2")
	head := filepath.Join(dir, "head.qcow2")
	if err := CreateHead(head, 16<<20, base.Layer.Hex()+".qcow2", "kami-test", enc); err != nil {
		t.Fatal(err)
	}
	keyedImg(t, "check", chain(t, head, basePath))
	keyedImg(t, "compare", chain(t, head, basePath), chain(t, basePath))
	keyedIO(t, chain(t, head, basePath), "write -P 7 3M 64k", "write -z 0 1M", "write -P 5 5000000 4000", "discard 9M 64k", "write -P 0 8M 64k")
	// Writing the list of bitmaps makes QEMU write the header anew.
	keyedImg(t, "bitmap", "--add", chain(t, head), "another")
	keyedImg(t, "check", chain(t, head, basePath))
	if _, _, _, bitmaps := infoOf(t, head); len(bitmaps) != 2 {
		t.Errorf("the head has the bitmaps %v, want 2", bitmaps)
	}
	if err := CheckTables(t.Context(), head); err != nil {
		t.Errorf("the tables can be checked without a key, but got %v", err)
	}
	top := openKeyed(t, head, basePath)
	if top.Info().KeyID != keyA || !bytes.Equal(top.Encryption().header, enc.header) || top.Encryption().length != enc.length {
		t.Errorf("QEMU has left the key %q and another LUKS header", top.Info().KeyID)
	}
	want := qemuRaw(t, head, basePath)
	if got := readAll(t, top); !bytes.Equal(got, want) {
		t.Errorf("the head reads otherwise from byte %d on", firstDifference(got, want))
	}
	parent := &Parent{Image: openKeyed(t, basePath), Layer: base.Layer, Blocks: base.Blocks}
	res := encryptLayer(t, dir, top, parent, top.Encryption())
	if res.DataClusters != 2 {
		t.Errorf("%d data clusters, want 2", res.DataClusters)
	}
	path := filepath.Join(dir, res.Layer.Hex()+".qcow2")
	keyedImg(t, "check", chain(t, path, basePath))
	keyedImg(t, "compare", chain(t, head, basePath), chain(t, path, basePath))
	if got, err := ReadEncryption(ring().keys, path); err != nil || !bytes.Equal(got.header, enc.header) || got.secret().key != enc.secret().key {
		t.Errorf("the layer does not have the head's encryption, %v", err)
	}
	// From the same content, however told, and with the Encryption read from any of
	// the files, the same layer is made; with another one it is not.
	fromLayer, err := ReadEncryption(ring().keys, path)
	if err != nil {
		t.Fatal(err)
	}
	if got := encryptLayer(t, dir, Flatten(top), parent, fromLayer); got.Layer != res.Layer {
		t.Errorf("made again, the layer is %s, want %s", got.Layer.Short(), res.Layer.Short())
	}
	if got := encryptLayer(t, dir, Flatten(top), parent, encryption(t, keyA)); got.Layer == res.Layer || got.Content != res.Content {
		t.Error("with another data key, the layer is the same or its content is not")
	}
}

// TestASecondSlot: QEMU gives a second passphrase a slot, and both open the file.
func TestASecondSlot(t *testing.T) {
	head := encryptedHead(t, 1<<20, "", encryption(t, keyA))
	args := append([]string{"amend", "-q"}, secrets()...)
	patiently(t, append(args, "--image-opts", "-o", "encrypt.new-secret=k"+keyB+",encrypt.state=active,encrypt.iter-time=10", chain(t, head))...)
	for _, pass := range []string{ring()[keyA], ring()[keyB]} {
		enc, err := ReadEncryption(keyring{keyA: pass}.keys, head)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		layer := encryptLayer(t, dir, memory{data: bytes.Repeat([]byte("x"), 1<<20)}, nil, enc)
		got, err := ReadEncryption(ring().keys, filepath.Join(dir, layer.Layer.Hex()+".qcow2"))
		if err != nil || !bytes.Equal(got.header, enc.header) {
			t.Errorf("a layer of it does not have both slots, %v", err)
		}
	}
}

// TestMixedChain stands files with different keys, and with none, on one another.
func TestMixedChain(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 3<<20+512)
	var paths []string
	var parent *Parent
	for i, enc := range []*Encryption{nil, encryption(t, keyA), nil, encryption(t, keyB), encryption(t, keyB)} {
		scribble(data, []byte{byte(40 * i), 2, 200, byte(50*i + 20), 0, 90, byte(30 * i), 1, 3}, int64(i))
		res := encryptLayer(t, dir, memory{data: data}, parent, enc)
		paths = append([]string{filepath.Join(dir, res.Layer.Hex()+".qcow2")}, paths...)
		img := openKeyed(t, paths[0], paths[1:]...)
		if got := readAll(t, img); !bytes.Equal(got, data) {
			t.Errorf("the chain of %d reads otherwise from byte %d on", i+1, firstDifference(got, data))
		}
		if got := qemuRaw(t, paths...); !bytes.Equal(got, data) {
			t.Errorf("QEMU reads the chain of %d otherwise from byte %d on", i+1, firstDifference(got, data))
		}
		parent = &Parent{Image: img, Layer: res.Layer, Blocks: res.Blocks}
	}
	_, err := OpenKeyed(keyring{keyB: ring()[keyB]}.keys, paths[0], paths[1:]...)
	wantError(t, "without one of the keys", err, ErrNoKey)
}

// peeking is a source of one sentence that looks at what has been staged of it.
type peeking struct {
	memory
	staged *[]byte
}

const sentence = "No plain data comes to the disk. "

func (p peeking) Finish() {
	names, _ := filepath.Glob("/proc/self/fd/*")
	for _, name := range names {
		if to, _ := os.Readlink(name); strings.Contains(to, ".stage-") {
			f, err := os.Open(name)
			if err != nil {
				continue
			}
			b, _ := io.ReadAll(f)
			*p.staged = append(*p.staged, b...)
			f.Close()
		}
	}
}

func TestNoPlainDataOnDisk(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 8<<20)
	rand.New(rand.NewSource(1)).Read(data) // what cannot be compressed is stored as it is
	for off := 0; off < len(data); off += 4096 {
		copy(data[off+100:], sentence)
	}
	for _, enc := range []*Encryption{nil, encryption(t, keyA)} {
		var staged []byte
		res := encryptLayer(t, dir, peeking{memory{data: data}, &staged}, nil, enc)
		file, err := os.ReadFile(filepath.Join(dir, res.Layer.Hex()+".qcow2"))
		if err != nil {
			t.Fatal(err)
		}
		if enc == nil { // what is looked for can be found
			if !bytes.Contains(file, []byte(sentence)) || !bytes.Contains(staged, []byte(sentence)) {
				t.Error("a plain layer does not show its data: the test looks at the wrong place")
			}
			continue
		}
		if len(staged) < 4<<20 {
			t.Errorf("%d bytes were staged, want at least 4 MiB", len(staged))
		}
		for name, b := range map[string][]byte{"the layer": file, "the stage": staged} {
			if bytes.Contains(b, []byte(sentence[:16])) || bytes.Contains(b, []byte(ring()[keyA])) || bytes.Contains(b, enc.secret().key[:16]) {
				t.Errorf("%s shows the data or a key", name)
			}
		}
	}
}

// TestLUKSHeaderIsMostlyHoles: 2 MiB are its length and 256 KiB its contents.
func TestLUKSHeaderIsMostlyHoles(t *testing.T) {
	enc := encryption(t, keyA)
	dir := t.TempDir()
	layer := encryptLayer(t, dir, memory{data: make([]byte, 1<<30)}, nil, enc)
	for _, path := range []string{filepath.Join(dir, layer.Layer.Hex()+".qcow2"), encryptedHead(t, 1<<40, "", enc)} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if on := st.Sys().(*syscall.Stat_t).Blocks * 512; on > 768<<10 {
			t.Errorf("an empty encrypted disk of %d bytes has %d on the disk, want at most 768 KiB", st.Size(), on)
		}
		keyedImg(t, "check", chain(t, path))
	}
}
