package bundle

import (
	"bufio"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/kamivm/kami/pkg/disk/foreign"
)

// detect finds out what a template is.
func detect(ctx context.Context, path string) (Kind, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if st.IsDir() {
		for name, kind := range map[string]Kind{"recipe.yaml": KindRecipe, "oci-layout": KindOCI} {
			if s, err := os.Lstat(filepath.Join(path, name)); err == nil && s.Mode().IsRegular() {
				return kind, nil
			}
		}
		return KindFolder, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	r, err := plain(f)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b := bufio.NewReaderSize(r, 4096)
	head, err := b.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("%w: %w", ErrTemplate, err)
	}
	if len(head) < 512 || string(head[257:262]) != "ustar" {
		return KindImage, nil
	}
	if ova(head) {
		return KindImage, nil
	}
	return archiveKind(ctx, b)
}

// ova says whether a tar is one of a virtual machine: it begins with its
// description.
func ova(head []byte) bool {
	name, _, _ := strings.Cut(string(head[:100]), "\x00")
	return strings.HasSuffix(strings.ToLower(name), ".ovf")
}

// plain returns what is in a compressed file, or the file itself.
func plain(f *os.File) (io.ReadCloser, error) {
	head := make([]byte, 6)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	head = head[:n]
	has := func(magic string) bool { return strings.HasPrefix(string(head), magic) }
	bad := func(err error) error { return fmt.Errorf("%w: %w", ErrTemplate, err) }
	switch {
	case has("\x1f\x8b"):
		z, err := gzip.NewReader(bufio.NewReaderSize(f, 256<<10))
		if err != nil {
			return nil, bad(err)
		}
		return z, nil
	case has("\xfd7zXZ\x00"):
		z, err := foreign.XZReader(f)
		if err != nil {
			return nil, bad(err)
		}
		return io.NopCloser(z), nil
	case has("\x28\xb5\x2f\xfd"):
		z, err := zstd.NewReader(f, zstd.WithDecoderMaxWindow(256<<20))
		if err != nil {
			return nil, bad(err)
		}
		return z.IOReadCloser(), nil
	case has("BZh"):
		return io.NopCloser(bzip2.NewReader(bufio.NewReaderSize(f, 256<<10))), nil
	}
	return io.NopCloser(bufio.NewReaderSize(f, 256<<10)), nil
}
