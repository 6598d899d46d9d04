package uefivars

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf8"
)

// ErrDictionary is what EC2 has compressed with a dictionary of its own, which is
// not here.
var ErrDictionary = errors.New("they are compressed with EC2's own dictionary")

// EC2's form, in base64: a magic, the CRC-32C of what comes after it, a version, and
// compressed by zlib the number of variables and their fields, each behind its length.
const (
	magic    = "AMZNUEFI"
	maxText  = 1 << 20 // characters
	maxPlain = 2 << 20 // bytes, decompressed
	// timeBased is the attribute of a variable that only its signer may change, by
	// the time of the change. Such a one has a timestamp and a digest.
	timeBased  = 0x20
	digestSize = 32
)

// Encode writes variables as EC2 has them in UefiData. Who signed private variables is
// not part of it.
func Encode(vars []Var) (string, error) {
	le := binary.LittleEndian
	var plain []byte
	field := func(b []byte) { plain = append(le.AppendUint64(plain, uint64(len(b))), b...) }
	n := uint64(0)
	for _, v := range vars {
		if string(v.Vendor[:]) == guidCertDB {
			continue
		}
		n++
		field([]byte(v.Name))
		field(v.Data)
		plain = append(plain, v.Vendor[:]...)
		plain = le.AppendUint32(plain, v.Attributes)
		if v.Attributes&timeBased != 0 {
			plain = append(plain, v.Timestamp[:]...)
			field(make([]byte, digestSize))
		}
	}
	body := bytes.NewBuffer(make([]byte, 4)) // version 0
	z := zlib.NewWriter(body)
	if _, err := z.Write(append(le.AppendUint64(nil, n), plain...)); err != nil {
		return "", err
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	out := le.AppendUint32([]byte(magic), crc32.Checksum(body.Bytes(), crc32.MakeTable(crc32.Castagnoli)))
	return base64.StdEncoding.EncodeToString(append(out, body.Bytes()...)), nil
}

// Decode reads variables from base64: in EC2's form, or as a flash memory, which may
// be compressed by zlib. It returns ErrFormat or ErrDictionary.
func Decode(text string) ([]Var, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("%w: %d characters", ErrFormat, len(text))
	}
	b, err := base64.StdEncoding.DecodeString(text) // which leaves out line breaks
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if rest, ok := bytes.CutPrefix(b, []byte(magic)); ok {
		return decodeEC2(rest)
	}
	if len(b) > 2 && b[0] == 0x78 { // zlib
		if b, err = inflate(b); err != nil {
			return nil, err
		}
	}
	return Parse(b)
}

func decodeEC2(b []byte) ([]Var, error) {
	le := binary.LittleEndian
	if len(b) < 10 {
		return nil, fmt.Errorf("%w: it is cut off", ErrFormat)
	}
	if le.Uint32(b) != crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli)) {
		return nil, fmt.Errorf("%w: its checksum is wrong", ErrFormat)
	}
	if v := le.Uint32(b[4:]); v != 0 {
		return nil, fmt.Errorf("%w: version %d", ErrFormat, v)
	}
	plain, err := inflate(b[8:])
	if err != nil {
		return nil, err
	}
	r := reader{b: plain}
	n := r.number()
	var vars []Var
	for range min(n, maxVars+1) {
		v := Var{Name: string(r.field()), Data: r.field()}
		copy(v.Vendor[:], r.take(16))
		if a := r.take(4); a != nil {
			v.Attributes = le.Uint32(a)
		}
		if v.Attributes&timeBased != 0 {
			copy(v.Timestamp[:], r.take(16))
			r.field() // the digest of its signer
		}
		if r.short || v.Name == "" || !utf8.ValidString(v.Name) || len(vars) == maxVars {
			return nil, fmt.Errorf("%w: its variables cannot be read", ErrFormat)
		}
		vars = append(vars, v)
	}
	return vars, nil
}

// reader takes bytes from b, nil once there are too few.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n uint64) []byte {
	if r.short = r.short || n > uint64(len(r.b)); r.short {
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) number() uint64 {
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) field() []byte { return r.take(r.number()) }

func inflate(b []byte) ([]byte, error) {
	z, err := zlib.NewReader(bytes.NewReader(b))
	if errors.Is(err, zlib.ErrDictionary) {
		return nil, ErrDictionary
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	plain, err := io.ReadAll(io.LimitReader(z, maxPlain+1))
	if err == nil && len(plain) > maxPlain {
		err = fmt.Errorf("it has more than %d bytes", maxPlain)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return plain, nil
}
