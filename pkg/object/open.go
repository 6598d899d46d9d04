package object

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Options say how a store behaves. The zero value is right for people.
type Options struct {
	// Stall is how long a server may be silent before its connection is given up
	// and the request is made again. 0 is 30 seconds.
	Stall time.Duration
	// Attempts is how often a request is made before its failure is the store's,
	// and Backoff the longest wait between two of them. 0 is 5 attempts, 20 seconds.
	Attempts int
	Backoff  time.Duration
	// Parallel is how many parts of an object travel at once. 0 is 4.
	Parallel int
	// PartSize is where an S3 object begins to be sent in parts, and their least
	// size, in bytes; S3 wants 5 MiB at least. 0 is 16 MiB.
	PartSize int64
	// Identities are files of private keys that ssh tries before its own.
	Identities []string
	// SSH is the command that connects to SFTP hosts. Empty is "ssh".
	SSH []string
}

func (o Options) withDefaults() Options {
	setDefault(&o.Stall, 30*time.Second)
	setDefault(&o.Attempts, 5)
	setDefault(&o.Backoff, 20*time.Second)
	setDefault(&o.Parallel, 4)
	setDefault(&o.PartSize, 16<<20)
	if len(o.SSH) == 0 {
		o.SSH = []string{"ssh"}
	}
	return o
}

func setDefault[T int | int64 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// ErrBadURL is returned for an address that is not one of a store.
var ErrBadURL = errors.New("not the address of an object store")

// Open opens the store at an address:
//
//	DIRECTORY, file:///DIRECTORY
//	s3://BUCKET/PREFIX?endpoint=URL&region=NAME&path_style=true&profile=NAME
//	sftp://USER@HOST:PORT/DIRECTORY, with /~/ for one in the user's home
//
// It returns ErrBadURL for any other. Nothing is asked of a server yet. The
// caller closes the store.
func Open(ctx context.Context, address string, opts Options) (Store, error) {
	opts = opts.withDefaults()
	if !strings.Contains(address, "://") {
		if address == "" {
			return nil, fmt.Errorf("%w: it is empty", ErrBadURL)
		}
		return OpenDir(address)
	}
	u, err := parseURL(address)
	if err != nil {
		return nil, err
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" && u.Host != "localhost" {
			return nil, badURL(u, "a file URL has three slashes: file:///%s", strings.TrimPrefix(filepath.Join(u.Host, u.Path), "/"))
		}
		if u.Path == "" {
			return nil, badURL(u, "it names no directory")
		}
		if err := onlyParameters(u); err != nil {
			return nil, err
		}
		return OpenDir(u.Path)
	case "s3":
		return openS3(ctx, u, opts)
	case "sftp":
		return openSFTP(u, opts)
	}
	return nil, badURL(u, "its scheme %s:// is not file, s3 or sftp", u.Scheme)
}

func parseURL(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil { // its text would show a password
		var e *url.Error
		if errors.As(err, &e) {
			err = e.Err
		}
		scheme, _, _ := strings.Cut(address, "://")
		return nil, fmt.Errorf("%w: %s://…: %w", ErrBadURL, scheme, err)
	}
	if _, secret := u.User.Password(); secret {
		return nil, badURL(u, "an address must not hold a secret, it is shown and recorded: leave out the password, "+
			"and give it the way that the AWS SDKs or ssh take it (docs/object-stores.md)")
	}
	for key := range u.Query() {
		k := strings.ToLower(key)
		if strings.Contains(k, "secret") || strings.Contains(k, "password") || strings.Contains(k, "token") || strings.Contains(k, "access_key") {
			return nil, badURL(u, "an address must not hold a secret, it is shown and recorded: leave out %s, "+
				"and give it the way that the AWS SDKs take it (docs/object-stores.md)", key)
		}
	}
	if u.Fragment != "" {
		return nil, badURL(u, "it has a fragment (#%s); write %%23 for # in a name", u.Fragment)
	}
	return u, nil
}

func onlyParameters(u *url.URL, known ...string) error {
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return badURL(u, "its parameters cannot be read: %w", err)
	}
	for key, values := range q {
		switch {
		case !slices.Contains(known, key) && len(known) == 0:
			return badURL(u, "it takes no parameters, and has %s", key)
		case !slices.Contains(known, key):
			return badURL(u, "it has the parameter %s, which is none of %s", key, strings.Join(known, ", "))
		case len(values) > 1:
			return badURL(u, "it has the parameter %s twice", key)
		}
	}
	return nil
}

// badURL shows the address without what may be a secret in it.
func badURL(u *url.URL, format string, args ...any) error {
	shown := *u
	shown.RawQuery, shown.ForceQuery = "", false
	return fmt.Errorf("%w: %s: %w", ErrBadURL, shown.Redacted(), fmt.Errorf(format, args...))
}
