// Package imds is the instance metadata service as a door: EC2's tree of facts
// over HTTP, for one guest. Version 1 asks with a plain GET; version 2 first PUTs
// for a token and shows it with every GET.
//
// There is no daemon. The hypervisor runs a program for each connection of the
// guest's to 169.254.169.254, and Serve answers on it until it ends. Nothing is
// kept from one connection to the next: a token is signed, not remembered (see
// token.go), and the facts are read anew for each request, so that a change is
// seen at once.
//
// The guest is hostile: a path is looked up among the facts and never in a file
// system, and sizes, times and the number of requests have limits.
package imds

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// Source is where the facts of one guest come from. It is asked anew for each
// request.
type Source interface {
	// Facts returns what the guest is told.
	Facts() (ami.Metadata, error)
	// Secret returns the key that signs the guest's tokens.
	Secret() ([]byte, error)
}

// The headers of version 2, as EC2 writes them. TTLs are in seconds.
const (
	tokenHeader = "X-aws-ec2-metadata-token"
	ttlHeader   = "X-aws-ec2-metadata-token-ttl-seconds"
)

const tokenPath = "/latest/api/token"

// handler answers requests of one guest.
type handler struct {
	source Source
	now    func() time.Time
}

// NewHandler answers requests of the guest whose facts source has. now is the
// clock that tokens run out by.
func NewHandler(source Source, now func() time.Time) http.Handler { return handler{source, now} }

func (h handler) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Server", "EC2ws") // by which some clients know where they are
	md, err := h.source.Facts()
	switch {
	case err != nil:
		fail(w, http.StatusInternalServerError)
	case md.Options.HTTPEndpoint == ami.Disabled:
		fail(w, http.StatusForbidden)
	case req.URL.Path == tokenPath:
		h.token(w, req, md)
	case req.Method == http.MethodGet || req.Method == http.MethodHead:
		h.fact(w, req, md)
	default:
		w.Header().Set("Allow", "GET, HEAD")
		fail(w, http.StatusMethodNotAllowed)
	}
}

// token answers a request for a token.
func (h handler) token(w http.ResponseWriter, req *http.Request, md ami.Metadata) {
	if req.Method != http.MethodPut {
		w.Header().Set("Allow", "PUT")
		fail(w, http.StatusMethodNotAllowed)
		return
	}
	// A proxy that hands on requests of others must not get a token for them.
	if len(req.Header.Values("X-Forwarded-For")) > 0 {
		fail(w, http.StatusForbidden)
		return
	}
	ttl, err := strconv.Atoi(req.Header.Get(ttlHeader))
	if err != nil || ttl < 1 || ttl > maxTTL {
		fail(w, http.StatusBadRequest)
		return
	}
	secret, err := h.source.Secret()
	if err != nil {
		fail(w, http.StatusInternalServerError)
		return
	}
	w.Header().Set(ttlHeader, strconv.Itoa(ttl))
	answer(w, req, "text/plain", []byte(newToken(secret, md.InstanceID, h.now().Add(time.Duration(ttl)*time.Second))))
}

// fact answers a request for a fact.
func (h handler) fact(w http.ResponseWriter, req *http.Request, md ami.Metadata) {
	shown := req.Header.Values(tokenHeader)
	if len(shown) == 0 && md.Options.HTTPTokens == ami.TokensRequired || len(shown) > 1 {
		fail(w, http.StatusUnauthorized)
		return
	}
	if len(shown) == 1 {
		secret, err := h.source.Secret()
		if err != nil {
			fail(w, http.StatusInternalServerError)
			return
		}
		left, ok := checkToken(secret, md.InstanceID, shown[0], h.now())
		if !ok {
			fail(w, http.StatusUnauthorized)
			return
		}
		w.Header().Set(ttlHeader, strconv.Itoa(int(left/time.Second)))
	}
	text, ok := Lookup(md, req.URL.Path)
	if !ok {
		fail(w, http.StatusNotFound)
		return
	}
	kind := "text/plain"
	if w := words(req.URL.Path); len(w) == 2 && w[1] == userData {
		kind = "application/octet-stream"
	}
	answer(w, req, kind, text)
}

func answer(w http.ResponseWriter, req *http.Request, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if req.Method != http.MethodHead {
		_, _ = w.Write(body) // a guest that is gone needs no answer
	}
}

// fail answers with one of EC2's pages.
func fail(w http.ResponseWriter, status int) {
	body := page(status)
	w.Header().Set("Content-Type", "text/html")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // not to HEAD: the server sees to that
}

func page(status int) string {
	title := strconv.Itoa(status) + " - " + http.StatusText(status)
	return `<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
	"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>` + title + `</title>
 </head>
 <body>
  <h1>` + title + `</h1>
 </body>
</html>
`
}

// Refuse answers a connection at once, whatever is asked: the guest has too many.
func Refuse(w io.Writer) error {
	const status = http.StatusServiceUnavailable
	body := page(status)
	_, err := fmt.Fprintf(w, "HTTP/1.1 %d %s\r\nServer: EC2ws\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), len(body), body)
	return err
}
