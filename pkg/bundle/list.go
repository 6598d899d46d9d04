package bundle

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/object"
)

// Entry is a bundle in a list. One that cannot be read or is not to be trusted is
// in the list too, and says why.
type Entry struct {
	Location string   `json:"Location"`
	Manifest Manifest `json:"Manifest"`
	Signer   string   `json:"Signer,omitempty"` // fingerprint
	Trusted  bool     `json:"Trusted"`
	Problem  string   `json:"Problem,omitempty"`
}

// List describes the bundles of a bucket by name; "" is all buckets. Those without
// a signature are left out unless trust allows them.
func List(ctx context.Context, store object.Store, bucket string, trust Trust) ([]Entry, error) {
	prefix := ""
	if bucket != "" {
		if err := CheckBucket(bucket); err != nil {
			return nil, err
		}
		prefix = bucket + "/"
	}
	manifests, signed := []string{}, map[string]bool{}
	err := store.List(ctx, prefix, func(o object.Info) error {
		if name, ok := strings.CutSuffix(o.Name, signatureSuffix); ok {
			signed[name] = true
		} else if name, ok := strings.CutSuffix(o.Name, manifestSuffix); ok {
			manifests = append(manifests, name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(manifests)
	var out []Entry
	for _, name := range manifests {
		l, err := ParseLocation(name)
		if err != nil || !signed[name] && !trust.AllowUnsigned {
			continue
		}
		e := Entry{Location: l.String()}
		all := trust
		all.AllowUnsigned = true
		b, err := describe(ctx, store, l.String(), all)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, ErrNotFound): // deleted just now
			continue
		case err != nil:
			e.Problem = err.Error()
		default:
			e.Manifest = b.manifest
			e.Signer, e.Trusted = b.Signer()
			if !e.Trusted {
				e.Problem = untrusted(ctx, store, l, trust)
			}
		}
		out = append(out, e)
	}
	return out, nil
}

// untrusted says why a bundle would not be taken.
func untrusted(ctx context.Context, store object.Store, l Location, trust Trust) string {
	trust.AllowUnsigned = false
	if _, err := describe(ctx, store, l.String(), trust); err != nil {
		return err.Error()
	}
	return ""
}
