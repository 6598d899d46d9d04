package objecttest

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Fault answers a request wrongly; next answers it as the server would.
type Fault func(w http.ResponseWriter, r *http.Request, next http.Handler)

// Proxy stands before an S3 server and brings bad luck.
type Proxy struct {
	Endpoint string

	mu     sync.Mutex
	choose func(r *http.Request) Fault
	seen   []string // "METHOD /path?query"
	over   chan struct{}
}

// StartProxy starts a proxy that ends with the test. At first it brings no bad
// luck.
func StartProxy(t testing.TB, endpoint string) *Proxy {
	t.Helper()
	target, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{over: make(chan struct{})}
	behind := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // it is signed
	}}
	behind.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) } // not into the test's output
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.seen = append(p.seen, r.Method+" "+r.URL.RequestURI())
		var fault Fault
		if p.choose != nil {
			fault = p.choose(r)
		}
		p.mu.Unlock()
		if fault == nil {
			behind.ServeHTTP(w, r)
			return
		}
		fault(w, r, behind)
	}))
	p.Endpoint = server.URL
	t.Cleanup(func() {
		close(p.over)
		server.CloseClientConnections()
		server.Close()
	})
	return p
}

// Always has choose say which requests go wrong; nil is for those that do not.
func (p *Proxy) Always(choose func(r *http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.choose, p.seen = choose, nil
}

// Next has the next n requests of a method go wrong, and none after them.
func (p *Proxy) Next(n int, method string, f Fault) {
	p.Always(func(r *http.Request) Fault {
		if r.Method != method || n == 0 {
			return nil
		}
		n--
		return f
	})
}

// Seen is what was asked since the last call of Always or Next.
func (p *Proxy) Seen(method string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.seen {
		if strings.HasPrefix(s, method+" ") {
			n++
		}
	}
	return n
}

// Answer is a fault that answers with an error of S3.
func Answer(status int, code string) Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 64<<20))
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>bad luck</Message></Error>", code)
	}
}

// Silence is a fault that reads nothing of a request and never answers it.
func (p *Proxy) Silence(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	select {
	case <-p.over:
	case <-r.Context().Done():
	}
}

// LoseAnswer is a fault that does what was asked, and cuts the connection.
func LoseAnswer(w http.ResponseWriter, r *http.Request, next http.Handler) {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	reset(w)
}

// Redirect is a fault that sends all requests to a region which are not signed
// for it.
func Redirect(region string) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.Header.Get("Authorization"), "/"+region+"/s3/") {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("X-Amz-Bucket-Region", region)
		Answer(http.StatusMovedPermanently, "PermanentRedirect")(w, r, next)
	}
}

// reset breaks the connection off.
func reset(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

// Body is a fault in the body of an answer.
type Body struct {
	Length func(n int) int       // what the header says instead of n bytes, nil for the truth
	Bytes  func(b []byte) []byte // what is sent instead of b, nil for b
	End    string                // "", "reset" or "silence" after it
}

// Fault is what the proxy does for it.
func (b Body) Fault(p *Proxy) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		body := rec.Body.Bytes()
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		if b.Length != nil {
			w.Header().Set("Content-Length", strconv.Itoa(b.Length(len(body))))
		}
		if b.Bytes != nil {
			body = b.Bytes(append([]byte(nil), body...))
		}
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(buf, "HTTP/1.1 %d %s\r\n", rec.Code, http.StatusText(rec.Code))
		_ = w.Header().Write(buf)
		_, _ = io.WriteString(buf, "\r\n")
		_, _ = buf.Write(body)
		_ = buf.Flush()
		switch b.End {
		case "reset":
			_ = conn.(*net.TCPConn).SetLinger(0)
		case "silence":
			<-p.over
		}
	}
}
