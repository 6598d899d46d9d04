package region

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/object"
)

// maxChecksumFile bounds a list of checksums, in bytes.
const maxChecksumFile = 4 << 20

// fetch returns the path of the source on this host, with its checksums
// verified. What comes from the network is kept in scratch.
func (r *Region) fetch(ctx context.Context, in ImportInput, scratch *durable.Scratch) (string, error) {
	want, err := r.expectedSums(ctx, in)
	if err != nil {
		return "", err
	}
	local := strings.TrimPrefix(in.Source, "file://")
	if isURL(in.Source) {
		local = scratch.Path("download")
		if err := r.download(ctx, in.Source, local); err != nil {
			return "", err
		}
	}
	info, err := os.Stat(local)
	switch {
	case err != nil:
		return "", ami.Errorf(ami.CodeInvalidParameterValue, "The disk %s cannot be read: %w.", in.Source, err)
	case !info.Mode().IsRegular():
		return "", ami.Errorf(ami.CodeInvalidParameterValue, "%s is not a regular file.", in.Source)
	}
	return local, r.verifySums(ctx, in.Source, local, info.Size(), want)
}

func isURL(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// sums maps an algorithm's digest length in bytes to the digest expected.
type sums map[int]string

func (r *Region) expectedSums(ctx context.Context, in ImportInput) (sums, error) {
	want := sums{}
	for _, s := range []struct {
		text string
		size int
		flag string
	}{{in.SHA256, sha256.Size, "--sha256"}, {in.SHA512, sha512.Size, "--sha512"}} {
		if s.text == "" {
			continue
		}
		if b, err := hex.DecodeString(s.text); err != nil || len(b) != s.size {
			return nil, ami.Errorf(ami.CodeInvalidParameterValue, "The value of %s is not a digest of %d hexadecimal digits.", s.flag, 2*s.size)
		}
		want[s.size] = strings.ToLower(s.text)
	}
	if in.ChecksumFile == "" {
		return want, nil
	}
	body, err := r.open(ctx, in.ChecksumFile)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	name := filepath.Base(in.Source)
	if u, err := url.Parse(in.Source); err == nil && isURL(in.Source) {
		name = path.Base(u.Path)
	}
	if err := findSum(io.LimitReader(body, maxChecksumFile), name, want); err != nil {
		return nil, ami.Errorf(ami.CodeInvalidParameterValue, "%s: %w.", in.ChecksumFile, err)
	}
	return want, nil
}

// findSum reads the lists that sha256sum and sha512sum write, in both of their
// forms ("DIGEST  NAME", "SHA256 (NAME) = DIGEST").
func findSum(list io.Reader, name string, want sums) error {
	found := false
	sc := bufio.NewScanner(list)
	for sc.Scan() {
		var sum, file string
		if f := strings.Fields(sc.Text()); len(f) == 2 {
			sum, file = f[0], strings.TrimPrefix(f[1], "*")
		} else if len(f) == 4 && f[2] == "=" {
			sum, file = f[3], strings.Trim(f[1], "()")
		}
		b, err := hex.DecodeString(sum)
		if err != nil || path.Base(file) != name || len(b) != sha256.Size && len(b) != sha512.Size {
			continue
		}
		want[len(b)], found = strings.ToLower(sum), true
	}
	if err := sc.Err(); err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("no SHA-256 or SHA-512 of %q is in this list", name)
	}
	return nil
}

func (r *Region) verifySums(ctx context.Context, source, local string, size int64, want sums) error {
	if len(want) == 0 {
		return nil
	}
	f, err := os.Open(local)
	if err != nil {
		return err
	}
	defer f.Close()
	hashes := map[int]hash.Hash{}
	var sinks []io.Writer
	for n := range want {
		h := sha256.New()
		if n == sha512.Size {
			h = sha512.New()
		}
		hashes[n], sinks = h, append(sinks, h)
	}
	step := r.progress.Step("checking "+filepath.Base(source), size)
	err = copyStep(ctx, io.MultiWriter(sinks...), f, step)
	step.Done(err)
	if err != nil {
		return err
	}
	for n, h := range hashes {
		if got := hex.EncodeToString(h.Sum(nil)); got != want[n] {
			return ami.Errorf(ami.CodeInvalidParameterValue, "%s has the digest %s, not %s as expected.", source, got, want[n]).
				WithHint("The file is damaged or not the one that was published: fetch it again from a source that you trust.")
		}
	}
	return nil
}

// open opens a local file or a URL for reading.
func (r *Region) open(ctx context.Context, source string) (io.ReadCloser, error) {
	if !isURL(source) {
		f, err := os.Open(strings.TrimPrefix(source, "file://"))
		if err != nil {
			return nil, ami.Errorf(ami.CodeInvalidParameterValue, "%s cannot be read: %w.", source, err)
		}
		return f, nil
	}
	resp, err := r.get(ctx, source)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// stallLimit is how long a server may send nothing.
const stallLimit = time.Minute

func (r *Region) get(ctx context.Context, source string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return nil, ami.Errorf(ami.CodeInvalidParameterValue, "%s is not an address: %w.", source, err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = object.Dial(r.stall)
	transport.DisableKeepAlives = true // there is one request a transport
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, ami.Errorf(ami.CodeInvalidParameterValue, "%s cannot be fetched: %w.", source, err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, ami.Errorf(ami.CodeInvalidParameterValue, "%s cannot be fetched: the server answered %s.", source, resp.Status)
	}
	return resp, nil
}

func (r *Region) download(ctx context.Context, source, local string) (err error) {
	resp, err := r.get(ctx, source)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.OpenFile(local, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return storeError(err, "The download cannot be kept.")
	}
	defer f.Close()
	step := r.progress.Step("fetching "+path.Base(source), max(resp.ContentLength, 0))
	err = copyStep(ctx, f, resp.Body, step)
	if err == nil {
		err = f.Close()
	}
	step.Done(err)
	return storeError(err, "%s cannot be fetched whole.", source)
}

// copyStep copies src to dst, tells step, and ends when ctx does.
func copyStep(ctx context.Context, dst io.Writer, src io.Reader, step ami.Step) error {
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
			step.Add(int64(n))
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
