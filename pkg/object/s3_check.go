package object

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// check holds the bytes of an object against the checksum that came with it. The
// SDK's own check ends with the connection; this one goes on when the object is
// taken up again. nil checks nothing.
type check struct {
	hash hash.Hash
	want string // base64
}

// nvme is the polynomial of S3's CRC64NVME, reversed as package crc64 wants it.
const nvme = 0x9a6c9329ac4bc9b5

// newCheck returns the check of a whole object, nil when there is no checksum of
// it that is known here.
func newCheck(out *s3.GetObjectOutput) *check {
	if out.ChecksumType == types.ChecksumTypeComposite {
		return nil // of the checksums of its parts
	}
	switch {
	case out.ChecksumCRC32 != nil:
		return &check{crc32.NewIEEE(), aws.ToString(out.ChecksumCRC32)}
	case out.ChecksumCRC64NVME != nil:
		return &check{crc64.New(crc64.MakeTable(nvme)), aws.ToString(out.ChecksumCRC64NVME)}
	case out.ChecksumCRC32C != nil:
		return &check{crc32.New(crc32.MakeTable(crc32.Castagnoli)), aws.ToString(out.ChecksumCRC32C)}
	case out.ChecksumSHA256 != nil:
		return &check{sha256.New(), aws.ToString(out.ChecksumSHA256)}
	}
	return nil
}

func (c *check) write(p []byte) {
	if c != nil {
		c.hash.Write(p)
	}
}

func (c *check) verify() error {
	if c == nil {
		return nil
	}
	if got := base64.StdEncoding.EncodeToString(c.hash.Sum(nil)); got != c.want {
		return fmt.Errorf("%w: its bytes have the checksum %s, and not %s as the server says", ErrDamaged, got, c.want)
	}
	return nil
}
