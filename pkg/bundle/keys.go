package bundle

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/kamivm/kami/pkg/internal/durable"
)

// Keyring is the folder with the key that signs a region's bundles and with those
// whose bundles the region takes.
type Keyring struct{ dir string }

// The files of a keyring.
const (
	keyFile     = "id_ed25519" // OpenSSH's, only for its owner
	trustedFile = "trusted"    // ssh-keygen's allowed_signers
	// Signer is what all keys sign as, ssh-keygen's "principal".
	Signer = "kami"
	// maxKeys bounds the trusted keys' file, in bytes.
	maxKeys = 1 << 20
)

// OpenKeyring takes a folder, which need not be there yet.
func OpenKeyring(dir string) Keyring { return Keyring{dir} }

// TrustedPath is the file with the keys that are trusted, for ssh-keygen.
func (k Keyring) TrustedPath() string { return filepath.Join(k.dir, trustedFile) }

// Key is the key that signs, made at its first use. Of several who make it at once
// all get the same.
func (k Keyring) Key(ctx context.Context, comment string) (ssh.Signer, error) {
	signer, err := k.read()
	if !errors.Is(err, fs.ErrNotExist) {
		return signer, err
	}
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return nil, err
	}
	unlock, err := k.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if signer, err := k.read(); !errors.Is(err, fs.ErrNotExist) {
		return signer, err
	}
	err = durable.WriteFile(filepath.Join(k.dir, keyFile), 0o600, func(f *os.File) error { return pem.Encode(f, block) })
	if err != nil {
		return nil, err
	}
	return k.read()
}

// lock keeps other processes from changing the keyring, which is made.
func (k Keyring) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := durable.AcquireLock(ctx, filepath.Join(k.dir, ".lock"))
	if err != nil {
		return nil, err
	}
	return func() { lock.Unlock() }, nil
}

func (k Keyring) read() (ssh.Signer, error) {
	b, err := os.ReadFile(filepath.Join(k.dir, keyFile))
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(b)
	if err == nil {
		err = checkKey(signer.PublicKey())
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadKey, filepath.Join(k.dir, keyFile), err)
	}
	return signer, nil
}

// TrustedKey is a key whose bundles are taken.
type TrustedKey struct {
	Fingerprint string `json:"Fingerprint"` // SHA256:…
	Comment     string `json:"Comment,omitempty"`
	Own         bool   `json:"Own"` // the region's own
	PublicKey   string `json:"PublicKey"`

	key ssh.PublicKey
}

func trustedKey(key ssh.PublicKey, comment string, own bool) TrustedKey {
	return TrustedKey{ssh.FingerprintSHA256(key), comment, own, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), key}
}

// Trusted lists the keys: the region's own, where it has one, and those added.
func (k Keyring) Trusted() (all []TrustedKey, err error) {
	own, err := k.read()
	switch {
	case err == nil:
		all = append(all, trustedKey(own.PublicKey(), "this region", true))
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	b, err := os.ReadFile(k.TrustedPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		_, rest, ok := strings.Cut(strings.TrimSpace(line), " ") // the principal
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		key, comment, _, _, err := ssh.ParseAuthorizedKey([]byte(rest))
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrBadKey, k.TrustedPath(), err)
		}
		t := trustedKey(key, comment, false)
		if !slices.ContainsFunc(all, func(o TrustedKey) bool { return o.Fingerprint == t.Fingerprint }) {
			all = append(all, t)
		}
	}
	return all, nil
}

// Trust is whose bundles are taken.
func (k Keyring) Trust(allowUnsigned bool) (Trust, error) {
	t := Trust{AllowUnsigned: allowUnsigned}
	all, err := k.Trusted()
	for _, key := range all {
		t.Keys = append(t.Keys, key.key)
	}
	return t, err
}

// ParseKeys reads keys in the form of a .pub or authorized_keys file, or the public
// key of minisign's that a file holds. It returns
// ErrBadKey for what has none, or one that bundles are not signed with.
func ParseKeys(b []byte) (all []TrustedKey, err error) {
	if len(b) > maxKeys {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrBadKey, maxKeys)
	}
	if isMinisign(b) {
		key, err := parseMinisignPublic(b)
		return []TrustedKey{key}, err
	}
	for len(bytes.TrimSpace(b)) > 0 {
		key, comment, _, rest, err := ssh.ParseAuthorizedKey(b)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBadKey, err)
		}
		if err := checkKey(key); err != nil {
			return nil, err
		}
		all, b = append(all, trustedKey(key, strings.Map(printable, comment), false)), rest
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrBadKey)
	}
	return all, nil
}

func printable(c rune) rune {
	if control(c) {
		return -1
	}
	return c
}

// Add makes bundles that keys have signed be taken. Idempotent.
func (k Keyring) Add(ctx context.Context, keys []TrustedKey) error {
	return k.change(ctx, func(all []TrustedKey) []TrustedKey {
		for _, n := range keys {
			if !slices.ContainsFunc(all, func(o TrustedKey) bool { return o.Fingerprint == n.Fingerprint }) {
				all = append(all, n)
			}
		}
		return all
	})
}

// Remove makes bundles that a key has signed be refused from now on. It returns
// fs.ErrNotExist for a key that was not trusted, and for the region's own.
func (k Keyring) Remove(ctx context.Context, fingerprint string) error {
	found := false
	err := k.change(ctx, func(all []TrustedKey) []TrustedKey {
		return slices.DeleteFunc(all, func(t TrustedKey) bool {
			gone := t.Fingerprint == fingerprint && !t.Own
			found = found || gone
			return gone
		})
	})
	if err == nil && !found {
		err = fs.ErrNotExist
	}
	return err
}

func (k Keyring) change(ctx context.Context, to func([]TrustedKey) []TrustedKey) error {
	unlock, err := k.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := k.Trusted()
	if err != nil {
		return err
	}
	return durable.WriteFile(k.TrustedPath(), 0o600, func(f *os.File) error {
		for _, t := range to(all) {
			if t.Own {
				continue
			}
			if _, err := fmt.Fprintf(f, "%s namespaces=%q %s %s\n", Signer, SignatureNamespace+","+ImageNamespace, t.PublicKey, t.Comment); err != nil {
				return err
			}
		}
		return nil
	})
}
