package object

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// Get opens an object.
func (s *s3Store) Get(ctx context.Context, name string) (io.ReadCloser, Info, error) {
	key, err := s.key(name)
	if err != nil {
		return nil, Info{}, err
	}
	out, err := s.get(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: key, ChecksumMode: types.ChecksumModeEnabled})
	if err == nil && out.ContentLength == nil {
		out.Body.Close()
		err = errors.New("the server does not say how long it is")
	}
	if err != nil {
		return nil, Info{}, s.told(ctx, err, name)
	}
	info := Info{Name: name, Size: *out.ContentLength, Modified: aws.ToTime(out.LastModified)}
	return &resumed{
		ctx: ctx, opts: s.opts, body: out.Body, size: info.Size, check: newCheck(out),
		told: func(err error) error { return s.told(ctx, err, name) },
		open: func(from int64) (io.ReadCloser, error) {
			out, err := s.get(ctx, &s3.GetObjectInput{
				Bucket: &s.bucket, Key: key, IfMatch: out.ETag, Range: aws.String(fmt.Sprintf("bytes=%d-", from)),
			})
			switch status := s3Answer(err).status; {
			case status == http.StatusPreconditionFailed:
				return nil, fmt.Errorf("%s in %s changed while it was read", name, s.url)
			case status == http.StatusRequestedRangeNotSatisfiable:
				return nil, fmt.Errorf("%s in %s ends after %d of %d bytes: %w", name, s.url, from, info.Size, io.ErrUnexpectedEOF)
			case err != nil:
				return nil, s.told(ctx, err, name)
			}
			want := fmt.Sprintf("bytes %d-%d/%d", from, info.Size-1, info.Size)
			if got := aws.ToString(out.ContentRange); got != want {
				out.Body.Close()
				return nil, fmt.Errorf("%s in %s: the server gave the range %q, not %q: %w", name, s.url, got, want, io.ErrUnexpectedEOF)
			}
			return out.Body, nil
		},
	}, info, nil
}

func (s *s3Store) get(ctx context.Context, in *s3.GetObjectInput) (out *s3.GetObjectOutput, err error) {
	err = s.do(func(c *s3.Client) (err error) {
		out, err = c.GetObject(ctx, in)
		return err
	})
	return out, err
}
