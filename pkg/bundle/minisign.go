package bundle

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/ssh"
)

// minisign's files are a line for people and base64. A signature has a line more that
// is signed too, the trusted comment, and the signature of that.
const (
	minisignComment = "untrusted comment: "
	minisignTrusted = "trusted comment: "
	minisignID      = 8 // bytes of a key's number
	minisignSalt    = 32
)

// Algorithms: of keys, of signatures of all bytes, and of their BLAKE2b-512.
const (
	minisignAlgorithm = "Ed"
	minisignHashed    = "ED"
)

func isMinisign(b []byte) bool { return bytes.HasPrefix(b, []byte(minisignComment)) }

type minisignKey struct {
	id  [minisignID]byte
	key ed25519.PrivateKey
}

type minisignature struct {
	hashed  bool
	sig     []byte
	comment string
	global  []byte // of sig and comment
}

// minisignLines are the lines of a file of minisign's, without their ends.
func minisignLines(b []byte) (out []string) {
	for line := range strings.Lines(string(b)) {
		out = append(out, strings.TrimRight(line, "\r\n"))
	}
	return out
}

func minisignBytes(line string, size int) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(line)
	if err == nil && len(b) != size {
		err = fmt.Errorf("%d bytes, not %d", len(b), size)
	}
	return b, err
}

// parseMinisignPublic reads the file of a public key.
func parseMinisignPublic(b []byte) (TrustedKey, error) {
	lines := minisignLines(b)
	if len(lines) != 2 {
		return TrustedKey{}, fmt.Errorf("%w: no public key of minisign's", ErrBadKey)
	}
	body, err := minisignBytes(lines[1], 2+minisignID+ed25519.PublicKeySize)
	if err != nil || !strings.HasPrefix(string(body), minisignAlgorithm) {
		return TrustedKey{}, fmt.Errorf("%w: no public key of minisign's", ErrBadKey)
	}
	return minisignPublic([minisignID]byte(body[2:]), body[2+minisignID:])
}

func minisignPublic(id [minisignID]byte, key ed25519.PublicKey) (TrustedKey, error) {
	public, err := ssh.NewPublicKey(key)
	if err != nil {
		return TrustedKey{}, fmt.Errorf("%w: %w", ErrBadKey, err)
	}
	return trustedKey(public, fmt.Sprintf("minisign %016X", binary.LittleEndian.Uint64(id[:])), false), nil
}

// parseMinisignPrivate reads the file of a private key that has no password.
func parseMinisignPrivate(b []byte) (*minisignKey, error) {
	const sums = 2 + 2 + 2 // the algorithms of the signature, the password and the checksum
	const head = sums + minisignSalt + 8 + 8
	bad := fmt.Errorf("%w: no private key of minisign's", ErrBadKey)
	lines := minisignLines(b)
	if len(lines) != 2 {
		return nil, bad
	}
	body, err := minisignBytes(lines[1], head+minisignID+ed25519.PrivateKeySize+blake2b.Size256)
	if err != nil || !strings.HasPrefix(string(body), minisignAlgorithm) {
		return nil, bad
	}
	if body[2] != 0 || body[3] != 0 {
		return nil, ErrEncryptedKey
	}
	k := &minisignKey{id: [minisignID]byte(body[head:]), key: body[head+minisignID : head+minisignID+ed25519.PrivateKeySize]}
	// The public half is told beside, and a signature of another one would tell the key.
	if !bytes.Equal(ed25519.NewKeyFromSeed(k.key.Seed()), k.key) {
		return nil, bad
	}
	return k, nil
}

func (k *minisignKey) public() TrustedKey {
	t, err := minisignPublic(k.id, k.key.Public().(ed25519.PublicKey))
	if err != nil { // of an ed25519 key there is none
		panic(err)
	}
	return t
}

// sign makes the signature's file of a message.
func (k *minisignKey) sign(message []byte) []byte {
	sum := blake2b.Sum512(message)
	sig := ed25519.Sign(k.key, sum[:])
	const comment = "an image of kami's, hashed"
	global := ed25519.Sign(k.key, append(bytes.Clone(sig), comment...))
	text := base64.StdEncoding.EncodeToString
	return []byte(minisignComment + "signature from kami\n" +
		text(bytes.Join([][]byte{[]byte(minisignHashed), k.id[:], sig}, nil)) + "\n" +
		minisignTrusted + comment + "\n" + text(global) + "\n")
}

// parseMinisignature reads the file of a signature. It returns ErrSignature.
func parseMinisignature(b []byte) (minisignature, error) {
	bad := fmt.Errorf("%w: it is no signature of minisign's", ErrSignature)
	lines := minisignLines(b)
	if len(lines) != 4 {
		return minisignature{}, bad
	}
	body, err := minisignBytes(lines[1], 2+minisignID+ed25519.SignatureSize)
	if err != nil || !strings.HasPrefix(string(body), minisignAlgorithm) && !strings.HasPrefix(string(body), minisignHashed) {
		return minisignature{}, bad
	}
	comment, ok := strings.CutPrefix(lines[2], minisignTrusted)
	global, err := minisignBytes(lines[3], ed25519.SignatureSize)
	if err != nil || !ok {
		return minisignature{}, bad
	}
	return minisignature{strings.HasPrefix(string(body), minisignHashed), body[2+minisignID:], comment, global}, nil
}

// verify says whether a key made the signature of a message.
func (s minisignature) verify(key ed25519.PublicKey, message []byte) bool {
	if s.hashed {
		sum := blake2b.Sum512(message)
		message = sum[:]
	}
	return ed25519.Verify(key, message, s.sig) && ed25519.Verify(key, append(bytes.Clone(s.sig), s.comment...), s.global)
}

// edKey is the ed25519 key in one of OpenSSH's.
func edKey(key ssh.PublicKey) (ed25519.PublicKey, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	return key.(ssh.CryptoPublicKey).CryptoPublicKey().(ed25519.PublicKey), nil
}
