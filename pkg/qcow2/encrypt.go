package qcow2

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"io"
	"runtime"
	"sync"
)

// encrypt encrypts whole sectors that lie at a place in the file, on all cores.
func (e *Encryption) encrypt(b []byte, at int64) {
	part := max(1, len(b)/sectorSize/runtime.GOMAXPROCS(0)) * sectorSize
	var wg sync.WaitGroup
	for ; len(b) > 0; at += int64(part) {
		part = min(part, len(b))
		p, from := b[:part], at
		b = b[part:]
		wg.Go(func() { eachSector(e.secret().data.Encrypt, p, from) })
	}
	wg.Wait()
}

// encrypting reads data, clusters that lie at a place in the file, as it is to
// be written there.
type encrypting struct {
	r   io.Reader
	enc *Encryption
	at  int64 // of what is read next

	buf, rest []byte
}

func (e *encrypting) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		if e.buf == nil {
			e.buf = make([]byte, BlockSize*runtime.GOMAXPROCS(0))
		}
		n, err := io.ReadFull(e.r, e.buf)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, err
		}
		e.rest = e.buf[:n]
		e.enc.encrypt(e.rest, e.at)
		e.at += int64(n)
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

// decrypt reads p from a place in an encrypted file, which is sector by sector.
func (f *file) decrypt(p []byte, at int64) error {
	if f.enc == nil {
		return noKey(f.info.KeyID)
	}
	from := at &^ (sectorSize - 1)
	to := (at + int64(len(p)) + sectorSize - 1) &^ (sectorSize - 1)
	b := p
	if to-from != int64(len(p)) {
		b = make([]byte, to-from)
	}
	if _, err := f.f.ReadAt(b, from); err != nil {
		return err
	}
	eachSector(f.enc.secret().data.Decrypt, b, from)
	copy(p, b[at-from:])
	return nil
}

// veil hides what is staged: with a key that is random and kept nowhere.
type veil struct {
	key [32]byte
	w   io.Writer
	out cipher.Stream
	buf []byte
}

func newVeil(w io.Writer) (*veil, error) {
	v := &veil{w: w}
	rand.Read(v.key[:])
	var err error
	v.out, err = v.stream()
	return v, err
}

func (v *veil) stream() (cipher.Stream, error) {
	block, err := aes.NewCipher(v.key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewCTR(block, make([]byte, aes.BlockSize)), nil // a key is used once
}

func (v *veil) Write(p []byte) (int, error) {
	v.buf = append(v.buf[:0], p...)
	v.out.XORKeyStream(v.buf, v.buf)
	return v.w.Write(v.buf)
}

// lift reads what was written, from its beginning.
func (v *veil) lift(r io.Reader) (io.Reader, error) {
	s, err := v.stream()
	return cipher.StreamReader{S: s, R: r}, err
}
