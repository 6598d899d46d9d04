package bundle

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/object"
)

// Swept says what taking away unneeded chunks did.
type Swept struct {
	Chunks int   `json:"Chunks"`
	Bytes  int64 `json:"Bytes"` // that they had in the store
	// Left says why none were taken away; "" where they were.
	Left string `json:"Left,omitempty"`
}

// Delete deletes a bundle, and the chunks of its bucket that no bundle needs any
// more. Where those have to stay for now, for somebody creates a bundle there or
// another's index cannot be read, the bundle is gone all the same. It returns
// ErrNotFound.
func Delete(ctx context.Context, store object.Store, location string) (Swept, error) {
	l, err := ParseLocation(location)
	if err != nil {
		return Swept{}, err
	}
	if _, err := store.Stat(ctx, l.manifest()); errors.Is(err, object.ErrNotFound) {
		return Swept{}, fmt.Errorf("%w: %s in %s", ErrNotFound, l, store.URL())
	} else if err != nil {
		return Swept{}, err
	}
	// The signature first: without it the bundle is not there.
	for _, name := range []string{l.signature(), l.manifest(), l.index()} {
		if err := store.Delete(ctx, name); err != nil {
			return Swept{}, err
		}
		durable.Step("bundle.delete")
	}
	return Sweep(ctx, store, l.Bucket)
}

// abandoned is how old an index without a manifest is before it is taken for what
// a killed command has left.
const abandoned = leaseTime

// Sweep deletes the chunks of a bucket that no index in it names, and the indexes
// that no manifest goes with.
func Sweep(ctx context.Context, store object.Store, bucket string) (Swept, error) {
	return sweep(ctx, store, bucket, func(context.Context) error { return nil })
}

// sweep is Sweep that calls before once nobody can begin to create any more.
func sweep(ctx context.Context, store object.Store, bucket string, before func(context.Context) error) (Swept, error) {
	var done Swept
	if err := CheckBucket(bucket); err != nil {
		return done, err
	}
	held, err := sweeping(ctx, store, bucket)
	if errors.Is(err, ErrInUse) {
		return Swept{Left: err.Error()}, nil
	}
	if err != nil {
		return done, err
	}
	defer held.release(ctx)
	if err := before(ctx); err != nil {
		return done, err
	}
	now, err := clock(ctx, store, held.name)
	if err != nil {
		return done, err
	}
	needed, err := needs(ctx, store, bucket, now)
	if errors.Is(err, ErrIndex) {
		return Swept{Left: err.Error()}, nil
	}
	if err != nil {
		return done, err
	}
	var gone []object.Info
	err = store.List(ctx, chunks(bucket)+"/", func(o object.Info) error {
		if id, ok := chunkOf(bucket, o.Name); ok && !needed[id] {
			gone = append(gone, o)
		}
		return nil
	})
	if err != nil {
		return done, err
	}
	for _, o := range gone {
		if err := store.Delete(ctx, o.Name); err != nil {
			return done, err
		}
		durable.Step("bundle.sweep")
		done.Chunks++
		done.Bytes += o.Size
	}
	return done, nil
}

// needs are the chunks that the indexes of a bucket name. It returns ErrIndex for
// an index that cannot be read: what that needs nobody knows.
func needs(ctx context.Context, store object.Store, bucket string, now time.Time) (map[chunkID]bool, error) {
	var indexes []object.Info
	manifests := map[string]bool{}
	err := store.List(ctx, bucket+"/", func(o object.Info) error {
		if strings.HasPrefix(o.Name, chunks(bucket)+"/") {
			return nil
		}
		if name, ok := strings.CutSuffix(o.Name, manifestSuffix); ok {
			manifests[name] = true
		}
		if strings.HasSuffix(o.Name, indexSuffix) {
			indexes = append(indexes, o)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	needed := map[chunkID]bool{}
	for _, o := range indexes {
		if !manifests[strings.TrimSuffix(o.Name, indexSuffix)] && now.Sub(o.Modified) > abandoned && !named(ctx, store, o.Name, manifests) {
			if err := store.Delete(ctx, o.Name); err != nil {
				return nil, err
			}
			continue
		}
		file, err := object.ReadSmall(ctx, store, o.Name, maxIndex)
		if errors.Is(err, object.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		x, err := parseIndex(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.Name, err)
		}
		for i := range x.count() {
			_, _, id := x.chunk(i)
			needed[id] = true
		}
	}
	return needed, nil
}

// named says whether a manifest of another name names an index, or might.
func named(ctx context.Context, store object.Store, name string, manifests map[string]bool) bool {
	for m := range manifests {
		if path.Dir(m) != path.Dir(name) {
			continue
		}
		text, err := object.ReadSmall(ctx, store, m+manifestSuffix, maxManifest)
		if err != nil {
			return true
		}
		if man, err := ParseManifest(text); err != nil || man.Index.Name == path.Base(name) {
			return true
		}
	}
	return false
}

// chunkOf is the id of the chunk that is in an object.
func chunkOf(bucket, name string) (id chunkID, ok bool) {
	hex, ok := strings.CutSuffix(path.Base(name), ".cacnk")
	if !ok || len(hex) != 2*len(id) {
		return id, false
	}
	id, err := object.ParseChunkID(hex)
	return id, err == nil && chunkName(bucket, id) == name
}
