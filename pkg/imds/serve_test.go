package imds

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes are what a program has for standard input and output.
type pipes struct {
	io.Reader
	io.Writer
}

// said serves what a guest says and returns all that it is answered.
func said(t *testing.T, g *guest, text string) string {
	t.Helper()
	var out bytes.Buffer
	if err := Serve(t.Context(), pipes{strings.NewReader(text), &out}, NewHandler(g, noon)); err != nil {
		t.Errorf("serving %.60q: %v", text, err)
	}
	return out.String()
}

const get = "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\n"

func TestServe(t *testing.T) {
	tests := []struct {
		name, asked string
		want        []string // the beginnings of the answers
	}{
		{"version 1.0", "GET /latest/meta-data/instance-id HTTP/1.0\r\n\r\n", []string{"HTTP/1.0 200 OK"}},
		{"one request", get + "\r\n", []string{"HTTP/1.1 200 OK"}},
		{"several on one connection", get + "\r\n" + get + "\r\nGET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", []string{"HTTP/1.1 200 OK", "HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found"}},
		{"nothing after close", get + "Connection: close\r\n\r\n" + get + "\r\n", []string{"HTTP/1.1 200 OK"}},
		{"no host", "GET / HTTP/1.1\r\n\r\n", []string{"HTTP/1.1 400 Bad Request: missing required Host header"}},
		{"nothing", "", nil},
		{"half a request", get, []string{"HTTP/1.1 400 Bad Request"}},
		{"no HTTP", "hello\r\n\r\n", []string{"HTTP/1.1 400 Bad Request"}},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00\r\n", 40), []string{"HTTP/1.1 400 Bad Request"}},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []string{"HTTP/1.1 405 Method Not Allowed"}},
		{"a body with a GET", get + "Content-Length: 5\r\n\r\nhello" + get + "\r\n", []string{"HTTP/1.1 200 OK", "HTTP/1.1 200 OK"}},
		{"two lengths", get + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", []string{"HTTP/1.1 400 Bad Request"}},
		{"an absolute address", "GET http://example.com/latest/meta-data/ami-id HTTP/1.1\r\nHost: example.com\r\n\r\n", []string{"HTTP/1.1 200 OK"}},
		{"an asterisk", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", []string{"HTTP/1.1 405 Method Not Allowed"}},
		{"a proxy's method", "CONNECT example.com:80 HTTP/1.1\r\nHost: x\r\n\r\n", []string{"HTTP/1.1 405 Method Not Allowed"}},
		{"a token", "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\nContent-Length: 0\r\n\r\n", []string{"HTTP/1.1 200 OK"}},
		{"a long path", "GET /" + strings.Repeat("a", 14<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", []string{"HTTP/1.1 404 Not Found"}},
		{"too long a path", "GET /" + strings.Repeat("a", 17<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", []string{"HTTP/1.1 431 Request Header Fields Too Large"}},
		{"too many headers", get + strings.Repeat("X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", 500) + "\r\n", []string{"HTTP/1.1 431 Request Header Fields Too Large"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := said(t, newGuest(), tt.asked)
			var answers []string
			for line := range strings.Lines(got) {
				if at := strings.Index(line, "HTTP/1."); at >= 0 { // what is before it is the body of the last
					answers = append(answers, strings.TrimSpace(line[at:]))
				}
			}
			if len(answers) != len(tt.want) {
				t.Fatalf("got %d answers, want %d:\n%s", len(answers), len(tt.want), got)
			}
			for i, want := range tt.want {
				if answers[i] != want {
					t.Errorf("answer %d is %q, want %q", i+1, answers[i], want)
				}
			}
		})
	}
}

func TestServeOnASocket(t *testing.T) {
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- Serve(t.Context(), far, NewHandler(newGuest(), noon)) }()
	r := bufio.NewReader(near)
	for range 3 {
		if _, err := io.WriteString(near, get+"\r\n"); err != nil {
			t.Fatal(err)
		}
		if got := read(t, r); got.text != "i-0123456789abcdef0" {
			t.Errorf("got %q", got.text)
		}
	}
	near.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestServeEndsAfterItsRequests(t *testing.T) {
	got := said(t, newGuest(), strings.Repeat(get+"\r\n", maxRequests+10))
	if n := strings.Count(got, "HTTP/1.1 200 OK"); n != maxRequests {
		t.Errorf("%d requests were answered, want %d", n, maxRequests)
	}
	if !strings.Contains(got[strings.LastIndex(got, "HTTP/1.1"):], "Connection: close") {
		t.Error("the last answer does not say that it is")
	}
}

// TestServeGivesUp: in the time of a bubble, so no test waits for it.
func TestServeGivesUp(t *testing.T) {
	tests := []struct {
		name, asked string
		after       time.Duration
	}{
		{"on silence", "", requestLimit},
		{"on half a request", "GET / HTT", requestLimit},
		{"on a header that does not end", get, requestLimit},
		{"on a connection that lies idle", get + "\r\n", idleLimit},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				go func() {
					io.WriteString(near, tt.asked)
					io.Copy(io.Discard, near)
				}()
				start := time.Now()
				if err := Serve(t.Context(), far, NewHandler(newGuest(), noon)); err != nil {
					t.Error(err)
				}
				if took := time.Since(start); took != tt.after {
					t.Errorf("it took %s, want %s", took, tt.after)
				}
			})
		})
	}
}

func TestServeGivesUpOnAnAnswerNobodyTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		go io.WriteString(near, get+"\r\n")
		start := time.Now()
		if err := Serve(t.Context(), far, NewHandler(newGuest(), noon)); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 2*requestLimit {
			t.Errorf("it took %s", took)
		}
	})
}

func TestServeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	near, far := net.Pipe()
	defer near.Close()
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, far, NewHandler(newGuest(), noon)) }()
	cancel()
	if err := <-done; err == nil {
		t.Error("it ended without saying why")
	}
}

func TestRefuse(t *testing.T) {
	var out bytes.Buffer
	if err := Refuse(&out); err != nil {
		t.Fatal(err)
	}
	if got := read(t, bufio.NewReader(&out)); got.status != http.StatusServiceUnavailable || !got.last || !strings.Contains(got.text, "503 - Service Unavailable") {
		t.Errorf("got the status %d, the last: %v:\n%s", got.status, got.last, got.text)
	}
}

// FuzzServe: whatever a guest says, there is an end, and nothing of the secret in
// what it is told.
func FuzzServe(f *testing.F) {
	f.Add([]byte(get + "\r\n"))
	f.Add([]byte("PUT /latest/api/token HTTP/1.1\r\nHost: x\r\n" + ttlHeader + ": 60\r\n\r\n"))
	f.Add([]byte("GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"))
	g := newGuest()
	f.Fuzz(func(t *testing.T, asked []byte) {
		var out bytes.Buffer
		if err := Serve(t.Context(), pipes{bytes.NewReader(asked), &out}, NewHandler(g, noon)); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(out.Bytes(), g.secret) {
			t.Errorf("told the secret:\n%s", out.Bytes())
		}
	})
}
