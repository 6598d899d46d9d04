package objecttest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// S3 is an S3 server of this test: versitygw, which keeps objects in a directory.
type S3 struct {
	Endpoint string // http://127.0.0.1:PORT
	Dir      string // a folder for each bucket
	buckets  atomic.Int32
}

// The credentials of the server.
const (
	S3AccessKey = "kamitest"
	S3SecretKey = "kamitest-hidden"
)

// StartS3 starts a server that ends with the test, and sets the environment in
// which the AWS SDK finds its credentials and nothing of this host's. The program
// is built if need be, which takes minutes; without it the test fails.
func StartS3(t testing.TB) *S3 {
	t.Helper()
	program := S3Program(t)
	dir := t.TempDir()
	setAWS(t, dir)
	// The port may be another's before the server has it.
	for range 5 {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		if s := startS3(t, program, addr, dir); s != nil {
			return s
		}
	}
	t.Fatal("versitygw does not start")
	return nil
}

// setAWS gives the SDK the server's credentials, and hides those of the host.
func setAWS(t testing.TB, dir string) {
	for _, name := range []string{
		"SESSION_TOKEN", "PROFILE", "DEFAULT_PROFILE", "REGION", "DEFAULT_REGION", "ENDPOINT_URL", "ENDPOINT_URL_S3", "CA_BUNDLE",
		"ROLE_ARN", "WEB_IDENTITY_TOKEN_FILE", "CONTAINER_CREDENTIALS_FULL_URI", "CONTAINER_CREDENTIALS_RELATIVE_URI",
		"REQUEST_CHECKSUM_CALCULATION", "RESPONSE_CHECKSUM_VALIDATION", "MAX_ATTEMPTS", "RETRY_MODE",
	} {
		t.Setenv("AWS_"+name, "")
	}
	t.Setenv("AWS_ACCESS_KEY_ID", S3AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", S3SecretKey)
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(dir, "no-config"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(dir, "no-credentials"))
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

// S3Program builds the server if need be, and returns its path.
func S3Program(t testing.TB) string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	script := filepath.Join(filepath.Dir(here), "../../../hack/s3.sh")
	if !filepath.IsAbs(here) { // built with -trimpath: tests run in their package's folder
		script = "../../hack/s3.sh"
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), script)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

func startS3(t testing.TB, program, addr, dir string) *S3 {
	t.Helper()
	data := filepath.Join(dir, "buckets")
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(context.Background(), program, "--port", addr, "--quiet", "--keep-alive", "posix", data)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &said, &said
	cmd.Env = append(cmd.Environ(), "ROOT_ACCESS_KEY="+S3AccessKey, "ROOT_SECRET_KEY="+S3SecretKey)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	stop := func() {
		_ = cmd.Process.Kill()
		<-ended
	}
	s := &S3{Endpoint: "http://" + addr, Dir: data}
	for range 600 {
		select {
		case <-ended:
			t.Logf("versitygw at %s: %s", addr, said.String())
			return nil
		case <-time.After(50 * time.Millisecond):
		}
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err == nil {
			conn.Close()
			t.Cleanup(stop)
			return s
		}
	}
	stop()
	t.Fatalf("versitygw at %s does not answer: %s", addr, said.String())
	return nil
}

// Bucket makes a bucket and returns its name.
func (s *S3) Bucket(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("bucket-%d", s.buckets.Add(1))
	cfg, err := config.LoadDefaultConfig(context.Background(), config.WithRegion("us-east-1"))
	if err != nil {
		t.Fatal(err)
	}
	client := s3.NewFromConfig(cfg, func(o *s3.Options) { o.BaseEndpoint, o.UsePathStyle = &s.Endpoint, true })
	if _, err := client.CreateBucket(context.Background(), &s3.CreateBucketInput{Bucket: aws.String(name)}); err != nil {
		t.Fatal(err)
	}
	return name
}

// URL makes a bucket and returns the address of a store under a prefix in it.
func (s *S3) URL(t testing.TB) string {
	return "s3://" + s.Bucket(t) + "/some/prefix?endpoint=" + s.Endpoint
}
