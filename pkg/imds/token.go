package imds

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// maxTTL is how long a token may live, in seconds: six hours.
const maxTTL = 21600

// A token is its own record: the time at which it runs out (Unix seconds, 8
// bytes, big endian) and an HMAC-SHA-256 over that and the instance's id, under
// the instance's secret; in base64, as EC2's.
const (
	expiryBytes = 8
	tokenBytes  = expiryBytes + sha256.Size
)

func newToken(secret []byte, id ami.InstanceID, expiry time.Time) string {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, tokenBytes), uint64(expiry.Unix()))
	return base64.URLEncoding.EncodeToString(append(b, seal(secret, id, b)...))
}

// checkToken says how long a token may still be used; not ok where it is none of
// the instance's or has run out.
func checkToken(secret []byte, id ami.InstanceID, token string, now time.Time) (left time.Duration, ok bool) {
	b, err := base64.URLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) != tokenBytes || !hmac.Equal(b[expiryBytes:], seal(secret, id, b[:expiryBytes])) {
		return 0, false
	}
	left = time.Unix(int64(binary.BigEndian.Uint64(b)), 0).Sub(now)
	return left, left > 0
}

func seal(secret []byte, id ami.InstanceID, expiry []byte) []byte {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte("kami metadata token " + string(id) + "\n"))
	m.Write(expiry)
	return m.Sum(nil)
}
