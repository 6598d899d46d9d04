package region

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
)

// BundleKeys lists the keys whose bundles the region takes: its own, which is made
// for it, and those that were added.
func (r *Region) BundleKeys(ctx context.Context) ([]bundle.TrustedKey, error) {
	if _, err := r.keyring().Key(ctx, "kami "+r.opts.Name); err != nil {
		return nil, storeError(err, "The key that signs bundles cannot be had.")
	}
	all, err := r.keyring().Trusted()
	return all, storeError(err, "The keys that bundles are trusted by cannot be read.")
}

// TrustBundles makes the region take bundles that are signed by the keys in a file. The
// list of keys is all accounts': to one that does not keep the region it is
// UnauthorizedOperation, and so is DistrustBundles.
func (r *Region) TrustBundles(ctx context.Context, path string, dry bool) ([]bundle.TrustedKey, error) {
	if err := r.checkKeeper(); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, ami.Errorf(ami.CodeInvalidKeyFormat, "The keys cannot be read: %w.", err)
	}
	keys, err := bundle.ParseKeys(b)
	if err != nil {
		return nil, bundleError(err, path, "")
	}
	if dry {
		return nil, dryRun("trust bundles that %s has signed", keys[0].Fingerprint)
	}
	return keys, storeError(r.keyring().Add(ctx, keys), "The keys that bundles are trusted by cannot be changed.")
}

// DistrustBundles makes the region refuse bundles of a key again.
func (r *Region) DistrustBundles(ctx context.Context, fingerprint string, dry bool) error {
	if err := r.checkKeeper(); err != nil {
		return err
	}
	fingerprint = fullFingerprint(fingerprint)
	all, err := r.keyring().Trusted()
	if err != nil {
		return storeError(err, "The keys that bundles are trusted by cannot be read.")
	}
	for _, k := range all {
		if k.Fingerprint == fingerprint && k.Own {
			return ami.Errorf(ami.CodeOperationNotPermitted, "The key %s is the region's own.", fingerprint)
		}
		if k.Fingerprint == fingerprint && dry {
			return dryRun("refuse bundles that %s has signed", fingerprint)
		}
	}
	err = fs.ErrNotExist
	if !dry {
		err = r.keyring().Remove(ctx, fingerprint)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return ami.Errorf(ami.CodeInvalidParameterValue, "The key %s is not one that is trusted.", fingerprint).
			WithHint("kami bundle trust without a file lists those that are.")
	}
	return storeError(err, "The keys that bundles are trusted by cannot be changed.")
}

// fullFingerprint is a key's fingerprint, which may be given without its beginning.
func fullFingerprint(s string) string {
	if strings.HasPrefix(s, "SHA256:") {
		return s
	}
	return "SHA256:" + s
}
