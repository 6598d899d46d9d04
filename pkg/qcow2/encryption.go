package qcow2

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/xts"
)

// Keys finds the passphrase of a key by its id, "" for a file that names none.
// It returns ErrNoKey, wrapped, where there is none.
type Keys func(id string) (passphrase []byte, err error)

// What is wrong with a key, wrapped by what the package returns.
var (
	ErrNoKey    = errors.New("no key")
	ErrWrongKey = errors.New("wrong key")
)

const (
	// maxKeyID bounds the id of a key in a header, in bytes.
	maxKeyID = 64
	// minPassphrase keeps away what somebody could guess, in bytes: the work of
	// trying one is small here, for 256 random bits need no more.
	minPassphrase = 32
	maxPassphrase = 512
)

// Encryption is what a file is encrypted with: a data key, the LUKS header in
// which that is wrapped, and the id of the key that wraps it. Files with one
// Encryption, the head and the layers of a lineage, have the same LUKS header.
// It is safe for concurrent use, and printing it shows no key.
//
// Data is encrypted with AES-256 in XTS mode, sector by sector of 512 bytes, and
// the number of the sector in the file, not on the disk, goes into it. Who sees
// two files of one Encryption sees where both have the same bytes at the same
// place in the file. Nothing is authenticated; a layer's digest does that.
type Encryption struct {
	keyID  string
	header []byte // as much of the LUKS header as is used
	length int64  // of the LUKS header, in bytes
	secret func() *secret
}

// secret is behind a function, where nothing that prints structs gets to: fmt
// follows a pointer when it is given a verb that does not fit.
type secret struct {
	key  dataKey
	data *xts.Cipher
}

// NewEncryption makes an Encryption with a random data key, which the key of that
// id and passphrase wraps. The id is at most 64 printable ASCII characters, a
// uuid say. The passphrase is random text of 256 bits, in hexadecimal or base64:
// 32 to 512 bytes of UTF-8 with no zero byte, since QEMU takes no other. It
// returns ErrUnsupported for others.
func NewEncryption(keyID string, passphrase []byte) (*Encryption, error) {
	switch {
	case keyID == "" || !validKeyID(keyID):
		return nil, fmt.Errorf("%w: %.64q as the id of a key", ErrUnsupported, keyID)
	case len(passphrase) < minPassphrase || len(passphrase) > maxPassphrase:
		return nil, fmt.Errorf("%w: a passphrase of %d bytes, where %d to %d of random text are needed", ErrUnsupported, len(passphrase), minPassphrase, maxPassphrase)
	case !utf8.Valid(passphrase) || bytes.IndexByte(passphrase, 0) >= 0:
		return nil, fmt.Errorf("%w: a passphrase that is not text", ErrUnsupported)
	}
	return newEncryption(keyID, passphrase, luksStripes)
}

func newEncryption(keyID string, passphrase []byte, stripes int) (*Encryption, error) {
	var key dataKey
	rand.Read(key[:])
	header, length, err := makeLUKS(&key, passphrase, stripes)
	if err != nil {
		return nil, fmt.Errorf("making a LUKS header: %w", err)
	}
	return wrapped(keyID, header, length, &key)
}

func wrapped(keyID string, header []byte, length int64, key *dataKey) (*Encryption, error) {
	c, err := xts.NewCipher(aes.NewCipher, key[:])
	if err != nil {
		return nil, err
	}
	s := &secret{*key, c}
	return &Encryption{keyID, header, length, func() *secret { return s }}, nil
}

// ReadEncryption reads with what the file at path is encrypted; nil if it is not.
// It reads the header alone, so QEMU may be writing to the file. It returns
// ErrNoKey, ErrWrongKey, ErrNotQCOW2, ErrUnsupported or ErrCorrupt.
func ReadEncryption(keys Keys, path string) (*Encryption, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	info, err := Inspect(f, st.Size())
	if err == nil && info.Encrypted {
		var enc *Encryption
		if enc, err = readEncryption(keys, f, info); err == nil {
			return enc, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return nil, nil
}

// readEncryption unlocks the LUKS header of a file. Those that are known are
// not unlocked again.
func readEncryption(keys Keys, r io.ReaderAt, info Info, known ...*Encryption) (*Encryption, error) {
	if info.cryptMethod != cryptLUKS {
		return nil, fmt.Errorf("%w: encryption by the method %d", ErrUnsupported, info.cryptMethod)
	}
	header := make([]byte, luksHeaderSize)
	if err := readLUKS(r, header, info.luksOffset); err != nil {
		return nil, err
	}
	h, err := parseLUKS(header, info.luksLength)
	if err != nil {
		return nil, err
	}
	if keys == nil {
		return nil, noKey(info.KeyID)
	}
	header = make([]byte, h.used())
	if err := readLUKS(r, header, info.luksOffset); err != nil {
		return nil, err
	}
	for _, e := range known {
		if e != nil && e.keyID == info.KeyID && e.length == info.luksLength && bytes.Equal(e.header, header) {
			return e, nil
		}
	}
	passphrase, err := keys(info.KeyID)
	if err != nil {
		return nil, fmt.Errorf("finding the %s: %w", nameKey(info.KeyID), err)
	}
	key, err := h.unlock(header, passphrase)
	if err != nil {
		return nil, fmt.Errorf("the %s: %w", nameKey(info.KeyID), err)
	}
	return wrapped(info.KeyID, header, info.luksLength, key)
}

func readLUKS(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	switch {
	case n == len(b):
		return nil
	case errors.Is(err, io.EOF):
		return corrupt("the LUKS header is cut off")
	}
	return fmt.Errorf("reading the LUKS header: %w", err)
}

func noKey(id string) error {
	return fmt.Errorf("%w: the file is encrypted, with the %s", ErrNoKey, nameKey(id))
}

func nameKey(id string) string {
	if id == "" {
		return "key of no id"
	}
	return "key " + id
}

func validKeyID(id string) bool {
	return len(id) <= maxKeyID && strings.IndexFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// KeyID is the id of the key that wraps the data key; "" for a file of somebody
// else's making.
func (e *Encryption) KeyID() string { return e.keyID }

// String names the key by its id.
func (e Encryption) String() string { return "encryption by the " + nameKey(e.keyID) }

// GoString is String.
func (e Encryption) GoString() string { return e.String() }

// Format prints String, whatever is asked for.
func (e Encryption) Format(s fmt.State, _ rune) { fmt.Fprint(s, e.String()) }

// sealedMagic is what sealed bytes begin with; it is authenticated with them.
const sealedMagic = "kamisea1"

// Seal encrypts what is kept beside a file of this Encryption: with AES-256-GCM,
// a random nonce, and a key that is derived from the data key. The same plain
// bytes are sealed differently each time.
func (e *Encryption) Seal(plain []byte) ([]byte, error) {
	aead, err := e.aead()
	if err != nil {
		return nil, err
	}
	out := make([]byte, len(sealedMagic), len(sealedMagic)+len(plain)+aead.Overhead())
	copy(out, sealedMagic)
	return aead.Seal(out, nil, plain, []byte(sealedMagic)), nil
}

// Unseal returns what was sealed. It returns ErrCorrupt for what is damaged, or
// was sealed with another data key.
func (e *Encryption) Unseal(sealed []byte) ([]byte, error) {
	aead, err := e.aead()
	if err != nil {
		return nil, err
	}
	body, ok := bytes.CutPrefix(sealed, []byte(sealedMagic))
	if !ok {
		return nil, corrupt("%d bytes that were not sealed", len(sealed))
	}
	plain, err := aead.Open(nil, nil, body, []byte(sealedMagic))
	if err != nil {
		return nil, corrupt("%d sealed bytes are damaged, or sealed with another key", len(sealed))
	}
	return plain, nil
}

func (e *Encryption) aead() (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, e.secret().key[:], nil, "kami: what is kept beside a layer", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
