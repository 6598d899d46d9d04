package qcow2

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
)

// The anti-forensic splitter of LUKS (LUKS1 On-Disk Format Specification 1.2.3,
// 2.4): a key is spread over stripes of its size so that it takes all of them,
// to the last bit, to have it again. On a disk that keeps some old sectors by
// itself, what is deleted is then gone nevertheless.

// splitStripes fills b, as many stripes as fit, so that joined they give the key.
func splitStripes(b, key []byte) {
	last := b[len(b)-len(key):]
	rand.Read(b[:len(b)-len(key)])
	subtle.XORBytes(last, key, foldStripes(b[:len(b)-len(key)], len(key)))
}

// joinStripes returns the key of size bytes that is spread over b.
func joinStripes(b []byte, size int) []byte {
	key := foldStripes(b[:len(b)-size], size)
	subtle.XORBytes(key, key, b[len(b)-size:])
	return key
}

// foldStripes mixes stripes of size bytes into one.
func foldStripes(b []byte, size int) []byte {
	d := make([]byte, size)
	for ; len(b) > 0; b = b[size:] {
		subtle.XORBytes(d, d, b[:size])
		diffuse(d)
	}
	return d
}

// diffuse is H1 of the specification: each part of the size of a digest becomes
// the digest of its number and itself.
func diffuse(d []byte) {
	var in [4 + sha256.Size]byte
	for i := 0; i*sha256.Size < len(d); i++ {
		binary.BigEndian.PutUint32(in[:], uint32(i))
		n := copy(in[4:], d[i*sha256.Size:])
		sum := sha256.Sum256(in[:4+n])
		copy(d[i*sha256.Size:], sum[:])
	}
}
