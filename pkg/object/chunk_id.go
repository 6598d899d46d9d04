package object

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// ChunkID names a chunk: it is the SHA-256 of its bytes.
type ChunkID [sha256.Size]byte

// SumChunk is the id of a chunk of these bytes.
func SumChunk(plain []byte) ChunkID { return sha256.Sum256(plain) }

// ParseChunkID reads what String writes. It returns an error for all else.
func ParseChunkID(s string) (id ChunkID, err error) {
	if n, err := hex.Decode(id[:], []byte(s[:min(len(s), 2*len(id))])); err != nil || n != len(id) || len(s) != 2*n {
		return ChunkID{}, fmt.Errorf("%.80q is not the id of a chunk", s)
	}
	return id, nil
}

// String is the id in 64 lower-case hex digits.
func (id ChunkID) String() string { return hex.EncodeToString(id[:]) }
