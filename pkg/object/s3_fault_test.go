package object_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/object/objecttest"
)

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// faulty opens a store behind a proxy. One who is silent is given up after a
// short time.
func faulty(t *testing.T) (object.Store, *objecttest.Proxy, *objecttest.S3) {
	server := objecttest.StartS3(t)
	proxy := objecttest.StartProxy(t, server.Endpoint)
	opts := object.Options{Stall: 400 * time.Millisecond, Attempts: 4, Backoff: 20 * time.Millisecond, PartSize: 5 << 20}
	return opener(t, "s3://"+server.Bucket(t)+"/p?endpoint="+proxy.Endpoint, opts)(), proxy, server
}

// uploads are the files of multipart uploads that the server keeps.
func uploads(t *testing.T, server *objecttest.S3) (found []string) {
	t.Helper()
	must(t, filepath.WalkDir(server.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(path, "multipart") {
			found = append(found, path)
		}
		return err
	}))
	return found
}

func read(t *testing.T, s object.Store, name string) ([]byte, error) {
	body, _, err := s.Get(t.Context(), name)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

func half(n int) int { return n / 2 }

func TestS3BadLuckWhileReading(t *testing.T) {
	s, proxy, _ := faulty(t)
	const size = 3 << 20
	data := noise(size)
	if err := s.Put(t.Context(), "x", bytes.NewReader(data), size); err != nil {
		t.Fatal(err)
	}
	firstHalf := func(b []byte) []byte { return b[:len(b)/2] }
	most := func(b []byte) []byte { return b[:len(b)-1] }
	flip := func(b []byte) []byte { b[len(b)/3] ^= 4; return b }
	for _, tt := range []struct {
		name  string
		fault objecttest.Fault
		times int
		want  error // nil for the object as it is
	}{
		{"silence before the answer", proxy.Silence, 2, nil},
		{"silence for ever", proxy.Silence, -1, object.ErrUnreachable},
		{"silence in the body", objecttest.Body{Bytes: firstHalf, End: "silence"}.Fault(proxy), 2, nil},
		{"503", objecttest.Answer(503, "SlowDown"), 3, nil},
		{"503 for ever", objecttest.Answer(503, "SlowDown"), -1, object.ErrUnreachable},
		{"500 for ever", objecttest.Answer(500, "InternalError"), -1, object.ErrUnreachable},
		{"reset in the body", objecttest.Body{Bytes: firstHalf, End: "reset"}.Fault(proxy), 3, nil},
		{"the body ends early", objecttest.Body{Bytes: firstHalf}.Fault(proxy), 3, nil},
		{"the body ends early for ever", objecttest.Body{Bytes: func(b []byte) []byte { return b[:min(len(b), 10)] }}.Fault(proxy), -1, io.ErrUnexpectedEOF},
		{"its last byte is lacking", objecttest.Body{Bytes: most}.Fault(proxy), 1, nil},
		{"a length that is too long", objecttest.Body{Length: func(n int) int { return n + 100 }}.Fault(proxy), 1, io.ErrUnexpectedEOF},
		{"a length that is too long for ever", objecttest.Body{Length: func(n int) int { return n + 100 }}.Fault(proxy), -1, io.ErrUnexpectedEOF},
		{"a length that is too short", objecttest.Body{Length: half, Bytes: firstHalf}.Fault(proxy), 1, object.ErrDamaged},
		{"a flipped bit", objecttest.Body{Bytes: flip}.Fault(proxy), 1, object.ErrDamaged},
		{"403", objecttest.Answer(403, "AccessDenied"), 1, object.ErrDenied},
		{"404", objecttest.Answer(404, "NoSuchKey"), 1, object.ErrNotFound},
		{"no bucket", objecttest.Answer(404, "NoSuchBucket"), 1, object.ErrNotFound},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "-"), func(t *testing.T) {
			proxy.Next(tt.times, http.MethodGet, tt.fault)
			start := time.Now()
			got, err := read(t, s, "x")
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if tt.want == nil && !bytes.Equal(got, data) {
				t.Errorf("got %d other bytes", len(got))
			}
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("it took %s", d)
			}
			if err != nil {
				t.Log(err)
			}
		})
	}
}

// A download that breaks goes on where it broke.
func TestS3ReadsOnWhereItBroke(t *testing.T) {
	s, proxy, _ := faulty(t)
	data := noise(8 << 20)
	if err := s.Put(t.Context(), "x", bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
	sent := 0
	proxy.Always(func(r *http.Request) objecttest.Fault {
		if r.Method != http.MethodGet {
			return nil
		}
		return objecttest.Body{Bytes: func(b []byte) []byte {
			b = b[:min(len(b), 1<<20)]
			sent += len(b)
			return b
		}}.Fault(proxy)
	})
	got, err := read(t, s, "x")
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	if sent > len(data)*5/4 || proxy.Seen(http.MethodGet) < 8 {
		t.Errorf("%d bytes were sent in %d answers for %d", sent, proxy.Seen(http.MethodGet), len(data))
	}
}

func TestS3ChangedWhileRead(t *testing.T) {
	s, proxy, _ := faulty(t)
	for i := range 2 {
		data := noise(3<<20 + i)[i:]
		if err := s.Put(t.Context(), "x", bytes.NewReader(data), 3<<20); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			break
		}
		proxy.Next(1, http.MethodGet, objecttest.Body{Bytes: func(b []byte) []byte { return b[:1<<20] }}.Fault(proxy))
		body, _, err := s.Get(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		defer func() {
			if _, err := io.ReadAll(body); err == nil || !strings.Contains(err.Error(), "changed") {
				t.Errorf("got %v, want that it changed", err)
			}
		}()
	}
}

func TestS3BadLuckWhileWriting(t *testing.T) {
	s, proxy, server := faulty(t)
	n := 0
	for _, tt := range []struct {
		name   string
		method string // that goes wrong
		fault  objecttest.Fault
		times  int
		want   error
		sizes  []int
	}{
		{"silence", http.MethodPut, proxy.Silence, 2, nil, []int{1000, 4 << 20, 12 << 20}},
		{"silence for ever", http.MethodPut, proxy.Silence, -1, object.ErrUnreachable, []int{1000, 12 << 20}},
		{"503", http.MethodPut, objecttest.Answer(503, "SlowDown"), 3, nil, []int{1000, 12 << 20}},
		{"503 for ever", http.MethodPut, objecttest.Answer(503, "SlowDown"), -1, object.ErrUnreachable, []int{1000, 12 << 20}},
		{"503 at the beginning and the end of parts", http.MethodPost, objecttest.Answer(503, "SlowDown"), 3, nil, []int{12 << 20}},
		{"503 for parts for ever", http.MethodPost, objecttest.Answer(503, "SlowDown"), -1, object.ErrUnreachable, []int{12 << 20}},
		{"403", http.MethodPut, objecttest.Answer(403, "AccessDenied"), -1, object.ErrDenied, []int{1000, 12 << 20}},
		{"no bucket", http.MethodPut, objecttest.Answer(404, "NoSuchBucket"), -1, object.ErrNotFound, []int{1000}},
		{"the answer is lost", http.MethodPut, objecttest.LoseAnswer, 1, nil, []int{1000, 12 << 20}},
		{"the answer to parts is lost", http.MethodPost, objecttest.LoseAnswer, 1, nil, []int{12 << 20}},
		{"two write at once", http.MethodPut, objecttest.Answer(409, "ConditionalRequestConflict"), 2, nil, []int{1000}},
		{"another region", http.MethodPut, objecttest.Redirect("us-east-1"), -1, nil, []int{1000, 12 << 20}},
	} {
		for _, size := range tt.sizes {
			t.Run(fmt.Sprintf("%s/%d", strings.ReplaceAll(tt.name, " ", "-"), size), func(t *testing.T) {
				data := noise(size)
				n++
				name := fmt.Sprintf("o/%d", n)
				proxy.Next(tt.times, tt.method, tt.fault)
				start := time.Now()
				err := s.PutNew(t.Context(), name, bytes.NewReader(data), int64(size))
				if !errors.Is(err, tt.want) {
					t.Fatalf("got %v, want %v", err, tt.want)
				}
				if d := time.Since(start); d > 20*time.Second {
					t.Errorf("it took %s", d)
				}
				proxy.Always(nil)
				if err != nil {
					t.Log(err)
					if _, err := s.Stat(t.Context(), name); !errors.Is(err, object.ErrNotFound) {
						t.Errorf("after a failure: got %v, want nothing there", err)
					}
					if parts := uploads(t, server); len(parts) > 0 {
						t.Errorf("after a failure: %q is left of its parts", parts)
					}
					return
				}
				if got, err := read(t, s, name); err != nil || !bytes.Equal(got, data) {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
			})
		}
	}
}

// The parts that a killed process left are given up by a later upload, when they
// are old; those of one that may still be at work stay.
func TestS3AbandonedUploads(t *testing.T) {
	s, proxy, server := faulty(t)
	data := noise(12 << 20)
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		proxy.Always(func(r *http.Request) objecttest.Fault {
			switch {
			case r.Method == http.MethodDelete: // this process does not get to it
				return objecttest.Answer(503, "SlowDown")
			case r.URL.Query().Get("partNumber") == "3":
				cancel()
			}
			return nil
		})
		one := quick()
		one.Parallel = 1
		if err := opener(t, s.URL(), one)().Put(ctx, "x", bytes.NewReader(data), int64(len(data))); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want context.Canceled", err)
		}
	}
	proxy.Always(nil)
	left := uploads(t, server)
	if len(left) == 0 {
		t.Fatal("nothing is left: the test does not do what it says")
	}
	again := func() {
		t.Helper()
		other := opener(t, s.URL(), quick())()
		must(t, other.Put(t.Context(), "y", bytes.NewReader(data), int64(len(data))))
	}
	again()
	if now := uploads(t, server); len(now) != len(left) {
		t.Errorf("of %d files of a young upload %d are left", len(left), len(now))
	}
	must(t, filepath.WalkDir(server.Dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.Contains(path, "multipart") {
			old := time.Now().Add(-72 * time.Hour)
			err = os.Chtimes(path, old, old)
		}
		return err
	}))
	again()
	if now := uploads(t, server); len(now) != 0 {
		t.Errorf("%q are left of old uploads", now)
	}
}
