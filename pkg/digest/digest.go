// Package digest names bytes by their SHA-256. A digest is its own type so that
// it is never mistaken for a path or an id; what reads by digest verifies.
package digest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// ErrMalformed is returned by Parse for text that is not a digest.
var ErrMalformed = errors.New("malformed digest")

// Digest is a SHA-256 as 64 lower-case hexadecimal digits, the form that
// sha256sum prints. The zero value "" means no digest.
type Digest string

// Of returns the digest of b.
func Of(b []byte) Digest { return FromSum(sha256.Sum256(b)) }

// FromSum returns the digest whose 32 bytes are sum.
func FromSum(sum [sha256.Size]byte) Digest { return Digest(hex.EncodeToString(sum[:])) }

// Parse checks that s is a digest. It returns ErrMalformed otherwise.
func Parse(s string) (Digest, error) {
	d := Digest(s)
	if !d.Valid() {
		return "", fmt.Errorf("%w: %q (expecting 64 lower-case hexadecimal digits)", ErrMalformed, s)
	}
	return d, nil
}

// Valid says whether d has the form of a digest.
func (d Digest) Valid() bool {
	if len(d) != 2*sha256.Size {
		return false
	}
	for _, c := range []byte(d) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Hex returns the 64 digits.
func (d Digest) Hex() string { return string(d) }

// Short returns the first 12 digits, for people.
func (d Digest) Short() string {
	if len(d) < 12 {
		return string(d)
	}
	return string(d[:12])
}
