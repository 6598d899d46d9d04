package region

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

// server serves a disk well at /disk.raw, its checksums at /SHA256SUMS, and
// badly at other paths. It counts what it is asked for.
func server(t *testing.T) (url string, sum string, asked *atomic.Int64) {
	t.Helper()
	b, err := os.ReadFile(rawDisk(t, "served"))
	must(t, err)
	sum = fmt.Sprintf("%x", sha256.Sum256(b))
	asked = new(atomic.Int64)
	end := make(chan struct{})
	mux := http.NewServeMux()
	raw := func(head string, body []byte, then func()) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			conn, buf, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			defer conn.Close()
			buf.WriteString("HTTP/1.1 200 OK\r\n" + head + "\r\n\r\n")
			buf.Write(body)
			buf.Flush()
			then()
		}
	}
	wait := func() { <-end }
	mux.HandleFunc("/disk.raw", func(w http.ResponseWriter, _ *http.Request) { w.Write(b) })
	mux.HandleFunc("/SHA256SUMS", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "%s  disk.raw\n", sum) })
	mux.HandleFunc("/moved/disk.raw", func(w http.ResponseWriter, q *http.Request) { http.Redirect(w, q, "/disk.raw", http.StatusFound) })
	mux.HandleFunc("/more/disk.raw", raw(fmt.Sprintf("Content-Length: %d", 2*len(b)), b, func() {}))
	mux.HandleFunc("/less/disk.raw", raw("Content-Length: 4096", b, func() {}))
	mux.HandleFunc("/chunked/disk.raw", raw("Transfer-Encoding: chunked", append([]byte("1000\r\n"), b[:4096]...), func() {}))
	mux.HandleFunc("/stalls/disk.raw", raw(fmt.Sprintf("Content-Length: %d", len(b)), b[:4096], wait))
	mux.HandleFunc("/silent/disk.raw", func(_ http.ResponseWriter, q *http.Request) {
		select {
		case <-end:
		case <-q.Context().Done():
		}
	})
	mux.HandleFunc("/stalls/SHA256SUMS", raw("Content-Length: 100", bytes.Repeat([]byte("0"), 10), wait))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		asked.Add(1)
		mux.ServeHTTP(w, q)
	}))
	t.Cleanup(func() { close(end); s.Close() })
	return s.URL, sum, asked
}

func TestImportOverHTTP(t *testing.T) {
	t.Parallel()
	url, sum, asked := server(t)
	closed := httptest.NewServer(nil)
	closed.Close()
	tests := []struct {
		name string
		in   ImportInput
		says string // "" where it is taken

		stalls bool
	}{
		{"as it is", ImportInput{Source: url + "/disk.raw"}, "", false},
		{"with a checksum", ImportInput{Source: url + "/disk.raw", SHA256: sum}, "", false},
		{"with a list of checksums", ImportInput{Source: url + "/disk.raw?token=1", ChecksumFile: url + "/SHA256SUMS"}, "", false},
		{"after a redirection", ImportInput{Source: url + "/moved/disk.raw", ChecksumFile: url + "/SHA256SUMS"}, "", false},
		{"not found", ImportInput{Source: url + "/none.raw"}, "404 Not Found", false},
		{"no list of checksums", ImportInput{Source: url + "/disk.raw", ChecksumFile: url + "/none"}, "404 Not Found", false},
		{"a wrong checksum", ImportInput{Source: url + "/disk.raw", SHA256: strings.Repeat("0", 64)}, "has the digest " + sum, false},
		{"less than it says", ImportInput{Source: url + "/more/disk.raw"}, "unexpected EOF", false},
		{"less than its chunk says", ImportInput{Source: url + "/chunked/disk.raw"}, "unexpected EOF", false},
		{"more than it says", ImportInput{Source: url + "/less/disk.raw", SHA256: sum}, "has the digest", false},
		{"it stalls", ImportInput{Source: url + "/stalls/disk.raw"}, "was silent for", true},
		{"its list stalls", ImportInput{Source: url + "/disk.raw", ChecksumFile: url + "/stalls/SHA256SUMS"}, "was silent for", true},
		{"it never answers", ImportInput{Source: url + "/silent/disk.raw"}, "was silent for", true},
		{"nobody is there", ImportInput{Source: closed.URL + "/disk.raw"}, "connection refused", false},
		{"no address", ImportInput{Source: "http://[::1/disk.raw"}, "is not an address", false},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.stalls {
				t.Parallel()
			}
			r, d := open(t)
			if tt.stalls {
				r.stall = time.Second
			}
			before := look(t, r, d)
			tt.in.Name = fmt.Sprintf("http-%d", i)
			got, err := r.ImportImage(t.Context(), tt.in)
			if tt.says == "" {
				must(t, err)
				if got.State != ami.ImageAvailable || len(files(t, r)) > 0 {
					t.Errorf("got %s and the files %v, want it available and none", got.State, files(t, r))
				}
				return
			}
			wantSays(t, err, tt.says)
			if diff := cmp.Diff(before, look(t, r, d)); diff != "" {
				t.Errorf("it left something (-before +after):\n%s", diff)
			}
		})
	}
	t.Run("a name in use is found before anything is asked for", func(t *testing.T) {
		r, _ := open(t)
		image(t, r, "used")
		asked.Store(0)
		_, err := r.ImportImage(t.Context(), ImportInput{Source: url + "/disk.raw", Name: "used"})
		wantCode(t, err, ami.CodeInvalidAMINameDuplicate)
		if n := asked.Load(); n != 0 {
			t.Errorf("the server was asked %d times, want none", n)
		}
	})
}
