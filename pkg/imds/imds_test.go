package imds

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// guest is a source in memory.
type guest struct {
	md     ami.Metadata
	secret []byte
	err    error
}

func (g *guest) Facts() (ami.Metadata, error) { return g.md, g.err }
func (g *guest) Secret() ([]byte, error)      { return g.secret, nil }

const someKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2mS0v9 me"

// newGuest knows everything that a guest can be told.
func newGuest() *guest {
	return &guest{secret: []byte("a secret of the test's own"), md: ami.Metadata{
		InstanceID: "i-0123456789abcdef0", ImageID: "ami-0123456789abcdef0", ReservationID: "r-0123456789abcdef0",
		Ancestors: []ami.ImageID{"ami-0123456789abcdef1", "ami-0123456789abcdef2"}, LaunchIndex: 3,
		OwnerID: "000000000000", InstanceType: "t3.micro", Architecture: ami.ArchX8664, Virtualization: "hvm",
		KernelID: "aki-0123456789abcdef0", RamdiskID: "ari-0123456789abcdef0", ProductCodes: []string{"abc", "def"},
		Region: "local-1", AvailabilityZone: "local-1a", Hostname: "web-1", MAC: "52:54:00:12:34:56",
		PrivateIP: "169.254.10.15", Subnet: "169.254.0.0/16", RootDeviceName: "/dev/sda1",
		Devices:    []ami.MetadataDevice{{Name: "ebs1", Device: "/dev/sdf"}, {Name: "ephemeral0", Device: "sdb"}, {Name: "swap", Device: "/dev/sda3"}},
		PublicKeys: []ami.PublicKey{{Name: "my key", Key: someKey}, {Name: "build", Key: someKey + "2"}},
		Tags:       []ami.Tag{{Key: "Name", Value: "web"}, {Key: "stage", Value: "a/b c"}, {Key: "empty"}},
		UserData:   []byte("#!/bin/sh\n\x00\xff"),
		Options:    ami.DefaultMetadataOptions(""),
		Identity:   ami.Identity{Document: `{"region":"local-1"}`, Signature: "c2lnbmF0dXJl", PKCS7: "cGtjczc="},
	}}
}

// noon is when the tests take place.
func noon() time.Time { return time.Unix(1700000000, 0) }

// reply is what a guest is answered.
type reply struct {
	status int
	header http.Header
	text   string
	last   bool // of its connection
}

func replyOf(t *testing.T, res *http.Response) reply {
	t.Helper()
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{res.StatusCode, res.Header, string(b), res.Close}
}

// read reads one answer of a connection.
func read(t *testing.T, r *bufio.Reader) reply {
	t.Helper()
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return replyOf(t, res)
}

func (g *guest) ask(t *testing.T, method, path string, headers ...string) reply {
	t.Helper()
	req := httptest.NewRequest(method, "http://169.254.169.254"+path, nil)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	NewHandler(g, noon).ServeHTTP(w, req)
	return replyOf(t, w.Result())
}

func (g *guest) wantStatus(t *testing.T, want int, method, path string, headers ...string) reply {
	t.Helper()
	got := g.ask(t, method, path, headers...)
	if got.status != want {
		t.Errorf("%s %s %q: got the status %d, want %d", method, path, headers, got.status, want)
	}
	return got
}

func TestTokens(t *testing.T) {
	g := newGuest()
	g.md.Options.HTTPTokens = ami.TokensRequired
	res := g.wantStatus(t, 200, "PUT", tokenPath, ttlHeader, "60")
	if got := res.header.Get(ttlHeader); got != "60" {
		t.Errorf("the token's TTL is said to be %q, want 60", got)
	}
	token := res.text
	const path = "/latest/meta-data/instance-id"
	res = g.wantStatus(t, 200, "GET", path, tokenHeader, token)
	if got := res.text; got != "i-0123456789abcdef0" {
		t.Errorf("got the instance id %q", got)
	}
	g.wantStatus(t, 200, "HEAD", path, tokenHeader, token)

	for name, bad := range map[string]string{
		"no token": "", "no base64": "!", "short": token[:20], "another's end": token[:len(token)-4] + "AAA=",
		"longer": token + "AAAA", "lower case": strings.ToLower(token), "with a space": " x" + token,
	} {
		t.Run(name, func(t *testing.T) { g.wantStatus(t, 401, "GET", path, tokenHeader, bad) })
	}
	g.wantStatus(t, 401, "GET", path)
	g.wantStatus(t, 401, "GET", path, tokenHeader, token, tokenHeader, token)
	g.wantStatus(t, 401, "GET", "/no/such/path") // who has no token is not told what there is

	t.Run("of another instance", func(t *testing.T) {
		other := newToken(g.secret, "i-0123456789abcdef1", noon().Add(time.Hour))
		g.wantStatus(t, 401, "GET", path, tokenHeader, other)
	})
	t.Run("of another secret", func(t *testing.T) {
		other := newToken([]byte("another"), g.md.InstanceID, noon().Add(time.Hour))
		g.wantStatus(t, 401, "GET", path, tokenHeader, other)
	})
	t.Run("run out", func(t *testing.T) {
		g.wantStatus(t, 401, "GET", path, tokenHeader, newToken(g.secret, g.md.InstanceID, noon()))
		g.wantStatus(t, 200, "GET", path, tokenHeader, newToken(g.secret, g.md.InstanceID, noon().Add(time.Second)))
	})
}

func TestOptionalTokensAreChecked(t *testing.T) {
	g := newGuest()
	g.wantStatus(t, 200, "GET", "/latest/meta-data/")
	g.wantStatus(t, 401, "GET", "/latest/meta-data/", tokenHeader, "bad")
}

func TestStatuses(t *testing.T) {
	tests := []struct {
		name    string
		method  string
		path    string
		headers []string
		want    int
	}{
		{"a TTL of nothing", "PUT", tokenPath, []string{ttlHeader, "0"}, 400},
		{"a negative TTL", "PUT", tokenPath, []string{ttlHeader, "-1"}, 400},
		{"the longest TTL", "PUT", tokenPath, []string{ttlHeader, "21600"}, 200},
		{"too long a TTL", "PUT", tokenPath, []string{ttlHeader, "21601"}, 400},
		{"a TTL that is no number", "PUT", tokenPath, []string{ttlHeader, "1h"}, 400},
		{"no TTL", "PUT", tokenPath, nil, 400},
		{"through a proxy", "PUT", tokenPath, []string{ttlHeader, "60", "X-Forwarded-For", "10.0.0.1"}, 403},
		{"through a proxy that says nothing", "PUT", tokenPath, []string{ttlHeader, "60", "x-forwarded-for", ""}, 403},
		{"a fact through a proxy", "GET", "/latest/meta-data/ami-id", []string{"X-Forwarded-For", "10.0.0.1"}, 200},
		{"getting a token", "GET", tokenPath, nil, 405},
		{"posting for a token", "POST", tokenPath, []string{ttlHeader, "60"}, 405},
		{"posting a fact", "POST", "/latest/meta-data/ami-id", nil, 405},
		{"putting a fact", "PUT", "/latest/meta-data/ami-id", []string{ttlHeader, "60"}, 405},
		{"deleting a fact", "DELETE", "/latest/user-data", nil, 405},
		{"a token of another version", "PUT", "/2021-03-23/api/token", []string{ttlHeader, "60"}, 405},
		{"no such fact", "GET", "/latest/meta-data/public-ipv4", nil, 404},
		{"no such version", "GET", "/2030-01-01/meta-data/", nil, 404},
		{"no such folder", "GET", "/latest/meta-dat", nil, 404},
		{"no credentials", "GET", "/latest/meta-data/iam/security-credentials/", nil, 404},
		{"below a fact", "GET", "/latest/meta-data/ami-id/x", nil, 404},
		{"upwards", "GET", "/latest/meta-data/../meta-data/ami-id", nil, 404},
		{"upwards, hidden", "GET", "/latest/%2e%2e/%2e%2e/etc/passwd", nil, 404},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res := newGuest().wantStatus(t, tt.want, tt.method, tt.path, tt.headers...)
			if got := res.header.Get("Server"); got != "EC2ws" {
				t.Errorf("got the server %q, want EC2ws", got)
			}
			text := res.text
			if tt.want >= 400 && !strings.Contains(text, "<h1>"+strconv.Itoa(tt.want)+" - ") {
				t.Errorf("the page does not say the status:\n%s", text)
			}
			if _, said := res.header["Allow"]; said != (tt.want == 405) {
				t.Errorf("Allow is said: %v, with the status %d", said, tt.want)
			}
		})
	}
}

func TestEndpointDisabled(t *testing.T) {
	g := newGuest()
	g.md.Options.HTTPEndpoint = ami.Disabled
	g.wantStatus(t, 403, "GET", "/latest/meta-data/")
	g.wantStatus(t, 403, "GET", "/")
	g.wantStatus(t, 403, "PUT", tokenPath, ttlHeader, "60")
}

func TestUnreadableFacts(t *testing.T) {
	g := newGuest()
	g.err = errors.New("/home/me/secret path: damaged")
	if text := g.wantStatus(t, 500, "GET", "/latest/meta-data/").text; strings.Contains(text, "secret") {
		t.Errorf("the guest is told of the host:\n%s", text)
	}
}

func TestContentTypes(t *testing.T) {
	g := newGuest()
	g.md.Tags = append(g.md.Tags, ami.Tag{Key: "user-data"})
	for path, want := range map[string]string{
		"/latest/user-data": "application/octet-stream", "/latest/user-data/": "application/octet-stream",
		"/latest/meta-data/tags/instance/user-data": "text/plain",
		"/latest/meta-data/tags/instance/":          "text/plain", "/latest/dynamic/instance-identity/document": "text/plain",
	} {
		if got := g.wantStatus(t, 200, "GET", path).header.Get("Content-Type"); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
}
