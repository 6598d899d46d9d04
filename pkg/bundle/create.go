package bundle

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/object/cdc"
	"github.com/kamivm/kami/pkg/qcow2"
)

// CreateInput asks for a bundle of a blob.
type CreateInput struct {
	Store    object.Store
	Location string
	Source   qcow2.Source
	// Manifest says what the bundle is; what is found by packing, and the dates, are
	// filled in.
	Manifest   Manifest
	Key        ssh.Signer // nil leaves it unsigned
	ChunkSizes ChunkSizes // the zero value is DefaultChunkSizes
	Progress   ami.Progress
	// Packed, if any, is called once the source has been read to its end.
	Packed func()
}

// Create packs a blob and writes its bundle. It returns ErrExists where there is
// one already.
func Create(ctx context.Context, in CreateInput) (Manifest, Packed, error) {
	m, done := in.Manifest, Packed{}
	l, err := ParseLocation(in.Location)
	if err != nil {
		return m, done, err
	}
	if in.ChunkSizes == (ChunkSizes{}) {
		in.ChunkSizes = DefaultChunkSizes
	}
	if err := errors.Join(in.ChunkSizes.check(), cdc.Sizes(in.ChunkSizes).Check()); err != nil {
		return m, done, fmt.Errorf("%w: %w", ErrTemplate, err)
	}
	if err := CheckFree(ctx, in.Store, in.Location); err != nil {
		return m, done, err
	}
	held, err := create(ctx, in.Store, l.Bucket, in.Progress)
	if err != nil {
		return m, done, err
	}
	defer held.release(ctx)
	to, commit, discard := newSink(in.Store, l.Bucket)
	defer discard()
	step := in.Progress.Step("packing "+l.String(), in.Source.Size())
	x, sum, done, err := pack(ctx, in.Source, to, in.ChunkSizes, step.Add)
	step.Done(err)
	if err != nil {
		return m, done, err
	}
	if in.Packed != nil {
		in.Packed()
	}
	if err := commit(ctx); err != nil {
		return m, done, err
	}
	durable.Step("bundle.chunks")
	file := x.encode()
	m.Version, m.Size, m.Digest, m.ChunkSizes = ManifestVersion, in.Source.Size(), sum, in.ChunkSizes
	m.CreationDate = time.Now().UTC().Truncate(time.Second)
	m.Index = IndexFile{Name: path.Base(l.index()), Size: int64(len(file)), Digest: digest.Of(file)}
	if err := m.check(); err != nil {
		return m, done, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	text, err := m.Encode()
	if err != nil {
		return m, done, err
	}
	if err := object.WriteSmall(ctx, in.Store, l.index(), file); err != nil {
		return m, done, err
	}
	durable.Step("bundle.index")
	if in.Key == nil {
		// A signature that a killed command has left would be of another manifest.
		if err := in.Store.Delete(ctx, l.signature()); err != nil {
			return m, done, err
		}
	}
	if err := object.WriteSmall(ctx, in.Store, l.manifest(), text); err != nil {
		return m, done, err
	}
	durable.Step("bundle.manifest")
	if in.Key == nil {
		return m, done, nil
	}
	sig, err := Sign(in.Key, text)
	if err != nil {
		return m, done, err
	}
	err = object.WriteSmall(ctx, in.Store, l.signature(), sig)
	durable.Step("bundle.signature")
	return m, done, err
}

// CheckFree returns ErrExists where there is a bundle. One without its signature
// is not there.
func CheckFree(ctx context.Context, store object.Store, location string) error {
	l, err := ParseLocation(location)
	if err != nil {
		return err
	}
	_, err = store.Stat(ctx, l.signature())
	switch {
	case errors.Is(err, object.ErrNotFound):
		return nil
	case err == nil:
		return fmt.Errorf("%w: %s in %s", ErrExists, l, store.URL())
	}
	return err
}
