package region

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/disk/foreign"
	"github.com/kamivm/kami/pkg/object"
)

// bundleStore opens the object store that bundles lie in: the one at an address,
// else the region's. The caller closes it.
func (r *Region) bundleStore(ctx context.Context, address string) (object.Store, error) {
	if address == "" {
		address = r.opts.ObjectStore
	}
	if address == "" {
		s, err := object.OpenDir(r.path("objects"))
		return s, storeError(err, "The region's object store cannot be opened.")
	}
	s, err := object.Open(ctx, address, object.Options{})
	return s, objectError(err, address)
}

// keyring holds the key that signs the region's bundles, and those it trusts.
func (r *Region) keyring() bundle.Keyring { return bundle.OpenKeyring(r.path("bundle-keys")) }

func (r *Region) bundleTrust(allowUnsigned bool) (bundle.Trust, error) {
	t, err := r.keyring().Trust(allowUnsigned)
	return t, storeError(err, "The keys that bundles are trusted by cannot be read.")
}

// openBundle opens a bundle by its location; the caller closes the store.
func (r *Region) openBundle(ctx context.Context, address, location string, allowUnsigned bool) (object.Store, *bundle.Bundle, error) {
	trust, err := r.bundleTrust(allowUnsigned)
	if err != nil {
		return nil, nil, err
	}
	store, err := r.bundleStore(ctx, address)
	if err != nil {
		return nil, nil, err
	}
	b, err := bundle.Open(ctx, store, location, trust)
	if err != nil {
		err = bundleError(err, location, store.URL())
		store.Close()
		return nil, nil, err
	}
	return store, b, nil
}

// bundleError gives what went wrong with a bundle EC2's code.
func bundleError(err error, location, address string) error {
	var known *ami.Error
	if err == nil || errors.As(err, &known) || errors.Is(err, context.Canceled) {
		return err
	}
	e := func(code ami.Code, format string, args ...any) *ami.Error { return ami.Errorf(code, format, args...) }
	switch {
	case errors.Is(err, bundle.ErrNotFound):
		return e(ami.CodeInvalidBundleIDNotFound, "The bundle %q does not exist in %s.", location, address).
			WithHint("kami bundle list shows the bundles there are; --store names another object store.")
	case errors.Is(err, bundle.ErrUnsigned):
		return e(ami.CodeInvalidManifest, "The bundle %q is not signed: nobody says that it is what it seems.", location).
			WithHint("Where you know who made it, and how it came here, --allow-unsigned takes it all the same.")
	case errors.Is(err, bundle.ErrUntrusted):
		return e(ami.CodeAuthFailure, "The bundle %q cannot be trusted: %w.", location, err).
			WithHint("Get the key from who made it, and kami bundle trust KEYFILE; or take this one bundle with --allow-unsigned.")
	case errors.Is(err, bundle.ErrSignature), errors.Is(err, bundle.ErrManifest), errors.Is(err, bundle.ErrIndex), errors.Is(err, bundle.ErrChunk):
		return e(ami.CodeInvalidManifest, "The bundle %q is not sound: %w.", location, err).
			WithHint("kami bundle verify says all that is wrong with it; make or fetch it again.")
	case errors.Is(err, bundle.ErrExists):
		return e(ami.CodeInvalidParameterValue, "The bundle %q exists in %s.", location, address).
			WithHint("Bundles do not change: choose another name, or kami bundle delete that one first.")
	case errors.Is(err, bundle.ErrBadAddress):
		return e(ami.CodeInvalidParameterValue, "%w.", err).
			WithHint("A bundle's location is BUCKET/NAME, such as images/web-1.")
	case errors.Is(err, bundle.ErrTemplate): // found out while it was packed
		why := strings.TrimPrefix(err.Error(), bundle.ErrTemplate.Error()+": ")
		return e(ami.CodeInvalidParameterValue, "What was to become the bundle %q cannot be packed: %s.", location, why).
			WithHint("A tree must not change while it is packed: stop what writes to it, or pack a copy of it.")
	case errors.Is(err, bundle.ErrInUse):
		return e(ami.CodeBundlingInProgress, "%w.", err).WithHint("Try again when that has ended.")
	case errors.Is(err, bundle.ErrBadKey):
		return e(ami.CodeInvalidKeyFormat, "%w.", err).
			WithHint("kami bundle trust takes ed25519 keys, as ssh-keygen -t ed25519 writes them to a .pub file.")
	}
	return objectError(err, address)
}

// templateError is about what was to be packed.
func templateError(err error, source string) error {
	var known *ami.Error
	switch {
	case err == nil, errors.As(err, &known), errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, bundle.ErrTemplate):
		why := strings.TrimPrefix(err.Error(), bundle.ErrTemplate.Error()+": ")
		return ami.Errorf(ami.CodeInvalidParameterValue, "%s cannot be packed: %s.", source, why)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return ami.Errorf(ami.CodeInvalidParameterValue, "%s cannot be read: %w.", source, err)
	case errors.Is(err, foreign.ErrNotADisk):
		return ami.Errorf(ami.CodeInvalidParameterValue, "%s cannot be packed: %w.", source, err).
			WithHint("A template is a folder, a tar (also compressed), a container image, a recipe, or a filesystem or disk image.")
	}
	return importError(source, err)
}
