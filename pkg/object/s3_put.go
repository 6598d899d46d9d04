package object

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"
)

const (
	maxParts = 10_000 // of one upload, S3's limit
	// writeMark is the metadata that tells whose write an object is, for an answer
	// that was lost.
	writeMark = "kami-write"
	// cleanLimit is for clearing away what failed.
	cleanLimit = 15 * time.Second
	// abandoned is the age of an unfinished upload that nobody works on any more.
	abandoned = 48 * time.Hour
)

// Put writes an object.
func (s *s3Store) Put(ctx context.Context, name string, r io.ReadSeeker, size int64) error {
	return s.put(ctx, name, r, size, nil)
}

// PutNew writes an object whose name is free. Servers that do not know
// If-None-Match are asked for the name first, which leaves a gap between two
// that write at once.
func (s *s3Store) PutNew(ctx context.Context, name string, r io.ReadSeeker, size int64) error {
	switch _, err := s.Stat(ctx, name); { // also saves sending what is there
	case err == nil:
		return fmt.Errorf("%w: %s in %s", ErrExists, name, s.url)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	err := s.put(ctx, name, r, size, aws.String("*"))
	if s3Answer(err).status == http.StatusNotImplemented {
		return s.put(ctx, name, r, size, nil)
	}
	return err
}

func (s *s3Store) put(ctx context.Context, name string, r io.ReadSeeker, size int64, ifNoneMatch *string) error {
	key, err := s.key(name)
	if err != nil {
		return err
	}
	body, err := bodyOf(r, size)
	if err != nil {
		return fmt.Errorf("%s for %s: %w", name, s.url, err)
	}
	mark := rand.Text()
	w := &s3Write{s3Store: s, key: key, ifNoneMatch: ifNoneMatch, meta: map[string]string{writeMark: mark}}
	for try := 1; ; try++ {
		if size > s.opts.PartSize {
			err = w.parts(ctx, body, size)
		} else {
			err = w.whole(ctx, body, size)
		}
		if err == nil {
			return nil
		}
		if ctx.Err() == nil && s.arrived(ctx, name, mark, err) {
			return nil
		}
		// Two wrote at once, and it may be that neither is there yet.
		if s3Answer(err).status != http.StatusConflict || try >= s.opts.Attempts {
			break
		}
		if err := pause(ctx, try, s.opts.Backoff); err != nil {
			return err
		}
	}
	if berr := body.failed(); berr != nil {
		return fmt.Errorf("reading %s for %s: %w", name, s.url, berr)
	}
	return s.told(ctx, err, name)
}

// arrived says whether a write whose answer was a failure did happen: its first
// answer may have been lost, and the next was to a repetition.
func (s *s3Store) arrived(ctx context.Context, name, mark string, err error) bool {
	if a := s3Answer(err); a.status == http.StatusForbidden || a.code == "NoSuchBucket" {
		return false
	}
	out, herr := s.head(ctx, name)
	return herr == nil && out.Metadata[writeMark] == mark
}

// s3Write is one write of an object.
type s3Write struct {
	*s3Store
	key, ifNoneMatch *string
	meta             map[string]string
}

func (w *s3Write) whole(ctx context.Context, body *source, size int64) error {
	section, err := body.section(0, size)
	if err != nil {
		return err
	}
	return w.do(func(c *s3.Client) error {
		if _, err := section.Seek(0, io.SeekStart); err != nil { // this may be the second region
			return err
		}
		_, err := c.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &w.bucket, Key: w.key, Body: section, ContentLength: &size,
			IfNoneMatch: w.ifNoneMatch, Metadata: w.meta,
		})
		return err
	})
}

// parts sends an object in parts, several at once.
func (w *s3Write) parts(ctx context.Context, body *source, size int64) (err error) {
	w.swept.Do(func() { w.sweep(ctx) })
	in := &s3.CreateMultipartUploadInput{Bucket: &w.bucket, Key: w.key, Metadata: w.meta}
	if w.api().Options().RequestChecksumCalculation != aws.RequestChecksumCalculationWhenRequired {
		in.ChecksumAlgorithm, in.ChecksumType = types.ChecksumAlgorithmCrc32, types.ChecksumTypeFullObject
	}
	var upload *s3.CreateMultipartUploadOutput
	err = w.do(func(c *s3.Client) (err error) {
		upload, err = c.CreateMultipartUpload(ctx, in)
		return err
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			w.abort(ctx, w.key, upload.UploadId)
		}
	}()
	done, err := w.sendParts(ctx, body, size, upload.UploadId, in.ChecksumAlgorithm)
	if err != nil {
		return err
	}
	_, err = w.api().CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &w.bucket, Key: w.key, UploadId: upload.UploadId, IfNoneMatch: w.ifNoneMatch,
		ChecksumType: in.ChecksumType, MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
	})
	return err
}

func (w *s3Write) sendParts(ctx context.Context, body *source, size int64, upload *string, sum types.ChecksumAlgorithm) ([]types.CompletedPart, error) {
	step := max(w.opts.PartSize, (size+maxParts-1)/maxParts)
	done := make([]types.CompletedPart, (size+step-1)/step)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(w.opts.Parallel)
	for i := range done {
		if gctx.Err() != nil {
			break
		}
		at := int64(i) * step
		section, err := body.section(at, min(step, size-at))
		if err != nil {
			g.Go(func() error { return err })
			break
		}
		g.Go(func() error {
			number := int32(i + 1)
			out, err := w.api().UploadPart(gctx, &s3.UploadPartInput{
				Bucket: &w.bucket, Key: w.key, UploadId: upload, PartNumber: &number,
				Body: section, ChecksumAlgorithm: sum,
			})
			if err != nil {
				return err
			}
			done[i] = types.CompletedPart{PartNumber: &number, ETag: out.ETag, ChecksumCRC32: out.ChecksumCRC32}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return done, ctx.Err()
}

// abort gives up an upload, also when ctx has ended: its parts cost money.
func (s *s3Store) abort(ctx context.Context, key, upload *string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	defer cancel()
	//nolint:errcheck // what stays is for a later sweep
	s.api().AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &s.bucket, Key: key, UploadId: upload})
}

// sweep gives up the uploads under the prefix that killed processes left. Not to
// be allowed to is no reason not to write.
func (s *s3Store) sweep(ctx context.Context) {
	in := &s3.ListMultipartUploadsInput{Bucket: &s.bucket}
	if s.prefix != "" {
		in.Prefix = aws.String(s.prefix + "/")
	}
	out, err := s.api().ListMultipartUploads(ctx, in)
	if err != nil {
		return
	}
	for _, u := range out.Uploads {
		if t := aws.ToTime(u.Initiated); !t.IsZero() && time.Since(t) > abandoned {
			s.abort(ctx, u.Key, u.UploadId)
		}
	}
}
