package foreign

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/kamivm/kami/pkg/ami"
)

// enlarged is an xz file whose last block asks for the largest dictionary.
func enlarged(t *testing.T, b []byte, block int) []byte {
	t.Helper()
	out := bytes.Clone(b)
	size := (int(out[block]) + 1) * 4
	head := out[block : block+size]
	i := bytes.Index(head, []byte{0x21, 1})
	if i < 0 {
		t.Fatal("the block has no LZMA2 filter")
	}
	head[i+2] = 40
	sum := crc32.ChecksumIEEE(head[:size-4])
	for n := range 4 {
		head[size-4+n] = byte(sum >> (8 * n))
	}
	return out
}

func TestXZ(t *testing.T) {
	dir := workshop(t)
	content := bytes.Repeat([]byte("some of it compresses well; "), 40000)
	put(t, dir, "text", content)
	for name, args := range map[string][]string{
		"plain": {"-0"}, "no check": {"-C", "none"}, "sha256": {"-C", "sha256"}, "crc32": {"-C", "crc32"},
		"best": {"-9e"}, "blocks": {"-0", "--block-size=100000"}, "sizes in the headers": {"-0", "-T2", "--block-size=200000"},
	} {
		tool(t, dir, "xz", append([]string{"-kf"}, append(args, "text")...)...)
		one := get(t, dir, "text.xz")
		for _, file := range [][]byte{one, append(append(bytes.Clone(one), make([]byte, 8)...), one...)} {
			r, err := xzReader(bytes.NewReader(file))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, bytes.Repeat(content, len(got)/len(content))) || len(got) == 0 {
				t.Errorf("%s: unpacks to something else: %v", name, err)
			}
		}
		// In the first block, and in one behind another stream.
		for _, file := range [][]byte{enlarged(t, one, 12), append(bytes.Clone(one), enlarged(t, one, 12)...)} {
			put(t, dir, "hostile.xz", file)
			_, err := Open(t.Context(), filepath.Join(dir, "hostile.xz"), Auto, dir, noStep())
			if !errors.Is(err, ErrUnsupported) {
				t.Errorf("%s: a dictionary of 4 GiB: %v, want ErrUnsupported", name, err)
			}
		}
		for _, cut := range []int{5, 13, 30, len(one) / 2, len(one) - 13, len(one) - 1} {
			if _, err := xzReader(bytes.NewReader(one[:cut])); !errors.Is(err, ErrTruncated) {
				t.Errorf("%s: cut after %d bytes: %v, want ErrTruncated", name, cut, err)
			}
		}
	}
	tool(t, dir, "xz", "-kf", "--x86", "--lzma2=preset=0", "text")
	if _, err := xzReader(bytes.NewReader(get(t, dir, "text.xz"))); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a filter that is not LZMA2: %v, want ErrUnsupported", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "unpacked-*")); len(left) > 0 {
		for _, name := range left {
			if info, err := os.Stat(name); err != nil || info.Size() > 0 {
				t.Errorf("%s was unpacked to", name)
			}
		}
	}
}

func noStep() ami.Step { return ami.NoProgress.Step("", 0) }
