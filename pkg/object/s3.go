package object

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
)

// defaultS3Region is where a bucket is looked for when nothing names a region;
// AWS tells from there where it is, and other servers do not mind.
const defaultS3Region = "us-east-1"

// s3Store is a store in a bucket of S3, under a prefix of keys.
type s3Store struct {
	bucket, prefix, url string
	opts                Options

	mu     sync.Mutex
	client *s3.Client

	swept sync.Once // of uploads that were abandoned
}

var _ Store = (*s3Store)(nil)

func openS3(ctx context.Context, u *url.URL, opts Options) (Store, error) {
	if err := onlyParameters(u, "endpoint", "region", "path_style", "profile"); err != nil {
		return nil, err
	}
	q := u.Query()
	s := &s3Store{bucket: u.Host, prefix: strings.Trim(u.Path, "/"), opts: opts}
	switch {
	case u.User != nil:
		return nil, badURL(u, "it has a user; credentials are taken the way that the AWS SDKs do (docs/object-stores.md)")
	case s.bucket == "":
		return nil, badURL(u, "it names no bucket: s3://BUCKET/PREFIX")
	case u.Port() != "":
		return nil, badURL(u, "it has a port; a server that is not Amazon's is named by a parameter: s3://BUCKET/PREFIX?endpoint=http://HOST:PORT")
	}
	if s.prefix != "" {
		if err := CheckName(s.prefix); err != nil {
			return nil, badURL(u, "its prefix: %w", err)
		}
	}
	if e := q.Get("endpoint"); q.Has("endpoint") {
		p, err := url.Parse(e)
		if err != nil || p.Host == "" || p.Scheme != "http" && p.Scheme != "https" || p.User != nil || p.RawQuery != "" {
			return nil, badURL(u, "its endpoint is not a URL such as https://s3.example.com:9000")
		}
	}
	if v := q.Get("path_style"); q.Has("path_style") {
		if _, err := strconv.ParseBool(v); err != nil {
			return nil, badURL(u, "path_style=%s is not true or false", v)
		}
	}
	where := &url.URL{Scheme: "s3", Host: s.bucket, Path: s.prefix}
	where.RawQuery = strings.NewReplacer("%3A", ":", "%2F", "/").Replace(q.Encode()) // as a person writes it
	s.url = where.String()
	var err error
	s.client, err = newS3(ctx, q, opts)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", s.url, err)
	}
	return s, nil
}

// newS3 makes the client that the parameters q and the SDK's own sources
// (environment, shared files, profile) describe; q goes first.
func newS3(ctx context.Context, q url.Values, opts Options) (*s3.Client, error) {
	transport := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.DialContext = Dial(opts.Stall)
		t.TLSHandshakeTimeout, t.IdleConnTimeout = opts.Stall, opts.Stall/2
		t.MaxIdleConnsPerHost = max(opts.Parallel, parallelStats)
		// One request a connection, so that a silent one is noticed.
		t.ForceAttemptHTTP2 = false
	})
	load := []func(*config.LoadOptions) error{
		config.WithHTTPClient(transport),
		config.WithLogger(logging.Nop{}), // libraries do not print
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) {
				o.MaxAttempts, o.MaxBackoff = opts.Attempts, opts.Backoff
			})
		}),
	}
	if p := q.Get("profile"); p != "" {
		load = append(load, config.WithSharedConfigProfile(p))
	}
	if r := q.Get("region"); r != "" {
		load = append(load, config.WithRegion(r))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, err
	}
	if cfg.Region == "" {
		cfg.Region = defaultS3Region
	}
	return s3.NewFromConfig(cfg, func(o *s3.Options) {
		if e := q.Get("endpoint"); e != "" {
			o.BaseEndpoint = aws.String(e)
		}
		o.UsePathStyle = o.BaseEndpoint != nil
		if style, err := strconv.ParseBool(q.Get("path_style")); err == nil {
			o.UsePathStyle = style
		}
		o.DisableLogOutputChecksumValidationSkipped = true // nobody reads that log
	}), nil
}

func (s *s3Store) URL() string { return s.url }

// Close lets idle connections go.
func (s *s3Store) Close() error {
	if c, ok := s.api().Options().HTTPClient.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
	return nil
}

func (s *s3Store) api() *s3.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.client
}

// key is the key of an object.
func (s *s3Store) key(name string) (*string, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	key := path.Join(s.prefix, name)
	if len(key) > MaxName {
		return nil, fmt.Errorf("%w: with the prefix of %s it has more than %d bytes: %.32q…", ErrBadName, s.url, MaxName, name)
	}
	return aws.String(key), nil
}

// do runs a request, a second time where the answer names another region.
func (s *s3Store) do(request func(*s3.Client) error) error {
	client := s.api()
	err := request(client)
	region := otherRegion(err)
	if region == "" || region == client.Options().Region {
		return err
	}
	moved := s3.New(client.Options(), func(o *s3.Options) { o.Region = region })
	if err := request(moved); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client = moved
	return nil
}

// otherRegion is the region that the bucket is in, as a server says that refuses
// a request for having come to another.
func otherRegion(err error) string {
	var resp *awshttp.ResponseError
	if !errors.As(err, &resp) || resp.Response == nil {
		return ""
	}
	switch resp.HTTPStatusCode() {
	case http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusBadRequest, http.StatusForbidden:
		return resp.Response.Header.Get("X-Amz-Bucket-Region")
	}
	return ""
}

// Stat describes an object.
func (s *s3Store) Stat(ctx context.Context, name string) (Info, error) {
	out, err := s.head(ctx, name)
	if err != nil {
		return Info{}, err
	}
	return Info{Name: name, Size: aws.ToInt64(out.ContentLength), Modified: aws.ToTime(out.LastModified)}, nil
}

func (s *s3Store) head(ctx context.Context, name string) (out *s3.HeadObjectOutput, err error) {
	key, err := s.key(name)
	if err != nil {
		return nil, err
	}
	err = s.do(func(c *s3.Client) (err error) {
		out, err = c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.bucket, Key: key})
		return err
	})
	if err == nil && out.ContentLength == nil {
		err = errors.New("the server does not say how long it is")
	}
	return out, s.told(ctx, err, name)
}

// List calls fn with the objects whose names begin with prefix.
func (s *s3Store) List(ctx context.Context, prefix string, fn func(Info) error) error {
	if err := checkPrefix(prefix); err != nil {
		return err
	}
	under := ""
	if s.prefix != "" {
		under = s.prefix + "/"
	}
	in := &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: aws.String(under + prefix)}
	for {
		var out *s3.ListObjectsV2Output
		err := s.do(func(c *s3.Client) (err error) {
			out, err = c.ListObjectsV2(ctx, in)
			return err
		})
		if err != nil {
			return s.told(ctx, err, "")
		}
		for _, o := range out.Contents {
			name := strings.TrimPrefix(aws.ToString(o.Key), under)
			if CheckName(name) != nil { // a folder that somebody's browser made
				continue
			}
			if err := fn(Info{Name: name, Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)}); err != nil {
				return err
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			return nil
		}
		if next := aws.ToString(out.NextContinuationToken); next == "" || next == aws.ToString(in.ContinuationToken) {
			return fmt.Errorf("listing %s: the server does not say where its list goes on", s.url)
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

// Delete deletes an object.
func (s *s3Store) Delete(ctx context.Context, name string) error {
	key, err := s.key(name)
	if err != nil {
		return err
	}
	err = s.do(func(c *s3.Client) error {
		_, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: key})
		return err
	})
	if s3Answer(err).code == "NoSuchKey" {
		return nil
	}
	return s.told(ctx, err, name)
}
