package object_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/object/objecttest"
)

func TestOpenRefuses(t *testing.T) {
	const hidden = "hunter2"
	for _, tt := range []struct{ address, want string }{
		{"", "empty"},
		{"ftp://host/dir", "ftp"},
		{"http://host/dir", "http"},
		{"file://dir", "file:///dir"},
		{"file://", "no directory"},
		{"file:///a?b=c", "no parameters"},
		{"file:///a#b", "%23"},
		{"s3://", "no bucket"},
		{"s3:///prefix", "no bucket"},
		{"s3://bucket:9000/prefix", "endpoint="},
		{"s3://bucket/a/../b", "not clean"},
		{"s3://bucket/a//b", "not clean"},
		{"s3://bucket/p?regoin=x", "regoin"},
		{"s3://bucket/p?region=a&region=b", "twice"},
		{"s3://bucket/p?path_style=maybe", "path_style"},
		{"s3://bucket/p?endpoint=localhost:9000", "https://s3.example.com"},
		{"s3://bucket/p?endpoint=", "https://s3.example.com"},
		{"s3://bucket/p?endpoint=http://key:" + hidden + "@host", "endpoint"},
		{"s3://key:" + hidden + "@bucket/p", "secret"},
		{"s3://key@bucket/p", "has a user"},
		{"s3://bucket/p?secret_access_key=" + hidden, "secret"},
		{"s3://bucket/p?session_token=" + hidden, "secret"},
		{"s3://bucket/p?%zz=" + hidden, "parameters"},
		{"sftp://user:" + hidden + "@host/dir", "secret"},
		{"sftp://user:" + hidden + "@host/%zz", "sftp"},
		{"sftp:///dir", "no host"},
		{"sftp://host", "no directory"},
		{"sftp://host/", "no directory"},
		{"sftp://-oProxyCommand=true/dir", "dash"},
		{"sftp://-oProxyCommand=true@host/dir", "dash"},
		{"sftp://host/dir?port=1", "no parameters"},
		{"sftp://host:ssh/dir", "port"},
	} {
		s, err := object.Open(t.Context(), tt.address, object.Options{})
		if !errors.Is(err, object.ErrBadURL) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Open(%s): got %v, want ErrBadURL with %q", tt.address, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), hidden) {
			t.Errorf("Open(%s) shows the secret: %v", tt.address, err)
		}
		if err == nil {
			s.Close()
		}
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(dir, "none"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(dir, "none"))
	for _, tt := range []struct{ address, want string }{
		{dir, "file://" + dir},
		{"file://" + dir + "/a%20b", "file://" + dir + "/a%20b"},
		{dir + "/a b#c", "file://" + dir + "/a%20b%23c"},
		{"s3://bucket", "s3://bucket"},
		{"s3://bucket/", "s3://bucket"},
		{"s3://bucket/a/b/", "s3://bucket/a/b"},
		{"s3://bucket/p?region=eu-west-1&endpoint=http://127.0.0.1:9000&path_style=true", "s3://bucket/p?endpoint=http://127.0.0.1:9000&path_style=true&region=eu-west-1"},
		{"sftp://me@host:2222/srv/kami", "sftp://me@host:2222/srv/kami"},
		{"sftp://host/~/kami", "sftp://host/~/kami"},
	} {
		s, err := object.Open(t.Context(), tt.address, object.Options{})
		if err != nil {
			t.Errorf("Open(%s): %v", tt.address, err)
			continue
		}
		if got := s.URL(); got != tt.want {
			t.Errorf("Open(%s): got the address %s, want %s", tt.address, got, tt.want)
		}
		again, err := object.Open(t.Context(), s.URL(), object.Options{})
		if err != nil || again.URL() != s.URL() {
			t.Errorf("Open(%s): got %v", s.URL(), err)
		}
		s.Close()
	}
}

// The SDK's own ways to say who one is and where the server is.
func TestS3Credentials(t *testing.T) {
	server := objecttest.StartS3(t)
	bucket, dir := server.Bucket(t), t.TempDir()
	config, credentials := filepath.Join(dir, "config"), filepath.Join(dir, "credentials")
	must(t, os.WriteFile(config, []byte("[profile far]\nregion = us-east-1\nendpoint_url = "+server.Endpoint+"\n"), 0o600))
	must(t, os.WriteFile(credentials, []byte("[far]\naws_access_key_id = "+objecttest.S3AccessKey+"\naws_secret_access_key = "+objecttest.S3SecretKey+"\n"), 0o600))
	with := "?endpoint=" + server.Endpoint
	for _, tt := range []struct {
		name, address string
		env           map[string]string // "" is unset
		want          error
		text          string
	}{
		{"environment", "s3://" + bucket + with, nil, nil, ""},
		{"endpoint in the environment", "s3://" + bucket, map[string]string{"AWS_ENDPOINT_URL": server.Endpoint}, nil, ""},
		{"endpoint of S3 in the environment", "s3://" + bucket, map[string]string{"AWS_ENDPOINT_URL_S3": server.Endpoint}, nil, ""},
		{"profile in the address", "s3://" + bucket + "?profile=far", map[string]string{
			"AWS_CONFIG_FILE": config, "AWS_SHARED_CREDENTIALS_FILE": credentials, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "",
		}, nil, ""},
		{"profile in the environment", "s3://" + bucket, map[string]string{
			"AWS_CONFIG_FILE": config, "AWS_SHARED_CREDENTIALS_FILE": credentials, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "far",
		}, nil, ""},
		{"no credentials", "s3://" + bucket + with, map[string]string{"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, object.ErrDenied, "AWS_ACCESS_KEY_ID"},
		{"wrong secret", "s3://" + bucket + with, map[string]string{"AWS_SECRET_ACCESS_KEY": "wrong-hidden"}, object.ErrDenied, ""},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "-"), func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(k, v)
				if v == "" {
					os.Unsetenv(k)
				}
			}
			s := opener(t, tt.address, quick())()
			for op, err := range map[string]error{
				"Put":    s.Put(t.Context(), "x", strings.NewReader("x"), 1),
				"Stat":   func() error { _, err := s.Stat(t.Context(), "x"); return err }(),
				"Get":    func() error { _, err := read(t, s, "x"); return err }(),
				"List":   s.List(t.Context(), "", func(object.Info) error { return nil }),
				"Delete": s.Delete(t.Context(), "y"),
			} {
				if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.text) {
					t.Errorf("%s: got %v, want %v with %q", op, err, tt.want, tt.text)
				}
				if err != nil && (strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), objecttest.S3SecretKey)) {
					t.Errorf("%s shows the secret: %v", op, err)
				}
				if err != nil {
					t.Logf("%s: %v", op, err)
				}
			}
		})
	}
	if _, err := object.Open(t.Context(), "s3://bucket?profile=nobody", quick()); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("a profile that is not there: got %v", err)
	}
	s := opener(t, "s3://no-such-bucket"+with, quick())()
	for op, err := range map[string]error{
		"Put":    s.Put(t.Context(), "x", strings.NewReader("x"), 1),
		"List":   s.List(t.Context(), "", func(object.Info) error { return nil }),
		"Delete": s.Delete(t.Context(), "x"),
	} {
		if err == nil || !strings.Contains(err.Error(), "bucket does not exist") {
			t.Errorf("%s in a bucket that is not there: got %v", op, err)
		}
	}
}

func TestUnreachable(t *testing.T) {
	objecttest.StartS3(t) // for its environment
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	free := l.Addr().String()
	l.Close()
	for _, address := range []string{
		"s3://bucket?endpoint=http://" + free, "s3://bucket?endpoint=http://no-such-host.invalid",
		"sftp://" + free + "/dir", "sftp://no-such-host.invalid/dir",
	} {
		opts := object.Options{Stall: 2 * time.Second, Attempts: 2, Backoff: 10 * time.Millisecond, SSH: []string{"ssh", "-F", "none"}}
		s := opener(t, address, opts)()
		start := time.Now()
		_, err := s.Stat(t.Context(), "x")
		if !errors.Is(err, object.ErrUnreachable) {
			t.Errorf("%s: got %v, want ErrUnreachable", address, err)
		}
		t.Logf("%s after %s", err, time.Since(start))
	}
}
