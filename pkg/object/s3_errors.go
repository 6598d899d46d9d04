package object

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
)

// errNoBucket is the ErrNotFound of a bucket.
var errNoBucket = errors.New("the bucket does not exist")

// told gives what the SDK says of an object the sentinels of this package. An
// empty name is the whole store.
func (s *s3Store) told(ctx context.Context, err error, name string) error {
	if err == nil {
		return nil
	}
	what := s.url
	if name != "" {
		what = name + " in " + s.url
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	detail := s3Answer(err)
	code, status := detail.code, detail.status
	switch {
	case code == "NoSuchBucket":
		return fmt.Errorf("%w: %s: %w", ErrNotFound, what, errNoBucket)
	case code == "NoSuchKey", status == http.StatusNotFound && (code == "" || code == "NotFound"):
		return fmt.Errorf("%w: %s", ErrNotFound, what)
	case code == "PreconditionFailed":
		return fmt.Errorf("%w: %s", ErrExists, what)
	case code == "ExistingObjectIsDirectory", code == "ObjectParentIsFile": // of servers that keep objects in files
		return fmt.Errorf("%w: %s: %w", ErrBadName, what, detail)
	case status == http.StatusForbidden, status == http.StatusUnauthorized, code == "ExpiredToken", code == "InvalidToken", code == "InvalidAccessKeyId":
		return fmt.Errorf("%w: %s: %w", ErrDenied, what, detail)
	case status >= 500, status == http.StatusTooManyRequests:
		return fmt.Errorf("%w: %s: %w", ErrUnreachable, what, detail)
	case status > 0:
		return fmt.Errorf("%s: %w", what, detail)
	}
	if cerr := s.noCredentials(ctx); cerr != nil {
		return fmt.Errorf("%w: %s: there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "+
			"or name a profile of ~/.aws/credentials with ?profile= or AWS_PROFILE: %w", ErrDenied, what, rootCause(cerr))
	}
	return fmt.Errorf("%w: %s: %w", ErrUnreachable, what, rootCause(err))
}

func (s *s3Store) noCredentials(ctx context.Context) error {
	c := s.api().Options().Credentials
	if c == nil {
		return errors.New("none are set up")
	}
	_, err := c.Retrieve(ctx)
	return err
}

// answer is what a server said: its code ("NoSuchKey"), the HTTP status, and a
// sentence. The zero answer is that of one that said nothing.
type answer struct {
	code    string
	status  int
	message string
}

func (a *answer) Error() string {
	text := fmt.Sprintf("the server answered %d", a.status)
	if a.code != "" {
		text += " " + a.code
	} else {
		text += " " + http.StatusText(a.status)
	}
	if a.message != "" {
		text += ": " + a.message
	}
	return text
}

// s3Answer finds the answer in an error.
func s3Answer(err error) *answer {
	var a *answer
	if errors.As(err, &a) {
		return a
	}
	a = &answer{}
	var resp *awshttp.ResponseError
	if errors.As(err, &resp) {
		a.status = resp.HTTPStatusCode()
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		a.code, a.message = api.ErrorCode(), api.ErrorMessage()
	}
	return a
}

// rootCause leaves out the SDK's names of operations and counts, which say what a
// person knows.
func rootCause(err error) error {
	var sent *url.Error
	if errors.As(err, &sent) {
		err = sent.Err
	}
	var op *smithy.OperationError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
