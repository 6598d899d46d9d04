// Package bundle packs a filesystem template into an object store and gives it
// back: EC2's instance-store path, with other bytes underneath.
//
// A bundle is one blob - the bytes of a root device, a filesystem or a whole
// disk - cut by content into chunks. Four kinds of objects make it:
//
//	BUCKET/chunks/ABCD/ABCD….cacnk   the chunks, by SHA-256, shared in the bucket
//	BUCKET/PREFIX.caibx              the index: which chunks, in which order
//	BUCKET/PREFIX.manifest           what it is, and the digest of the index
//	BUCKET/PREFIX.manifest.sig       who says so
//
// They are written in this order, so that a bundle without its signature is not
// there. Chunks and index are in casync's formats: casync and desync read them.
//
// What is read is hostile until the signature, and after it each chunk's digest,
// says otherwise; what is written is a work of many that may be killed at any
// instant, or that may delete while another creates (lease.go).
package bundle

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/kamivm/kami/pkg/object"
)

// What this package fails with, wrapped, besides the object store's own.
var (
	ErrNotFound   = errors.New("no such bundle")
	ErrExists     = errors.New("the bundle exists")
	ErrManifest   = errors.New("the manifest is not valid")
	ErrIndex      = errors.New("the index is not valid")
	ErrUnsigned   = errors.New("the bundle is not signed")
	ErrUntrusted  = errors.New("the bundle is signed by a key that is not trusted")
	ErrSignature  = errors.New("the signature is not of this manifest")
	ErrChunk      = errors.New("a chunk is wrong")
	ErrTemplate   = errors.New("the template cannot be packed")
	ErrInUse      = errors.New("the bucket is in use")
	ErrBadKey     = errors.New("not a key that bundles are signed with")
	ErrBadAddress = errors.New("not the location of a bundle")
)

// The endings of a bundle's objects.
const (
	manifestSuffix  = ".manifest"
	indexSuffix     = ".caibx"
	signatureSuffix = ".manifest.sig"
	chunksFolder    = "chunks"
)

// Location says where a bundle is: in which bucket, under which prefix. EC2
// writes it bucket/prefix.manifest.
type Location struct{ Bucket, Prefix string }

// ParseLocation reads bucket/prefix.manifest; the ending may be left out, and the
// prefix may have slashes. It returns ErrBadAddress.
func ParseLocation(s string) (Location, error) {
	bucket, prefix, _ := strings.Cut(s, "/")
	l := Location{bucket, strings.TrimSuffix(prefix, manifestSuffix)}
	bad := func(why string) (Location, error) { return Location{}, fmt.Errorf("%w: %q %s", ErrBadAddress, s, why) }
	switch {
	case bucket == "" || l.Prefix == "":
		return bad("has not the form bucket/prefix")
	case l.Prefix == chunksFolder || strings.HasPrefix(l.Prefix, chunksFolder+"/") || strings.HasPrefix(l.Prefix, leasesFolder+"/"):
		return bad("is where the bucket keeps its own")
	}
	if err := errors.Join(CheckBucket(bucket), object.CheckName(l.signature())); err != nil {
		return bad("is no name of an object: " + err.Error())
	}
	return l, nil
}

// CheckBucket returns ErrBadAddress for what cannot be a bucket's name: one part
// of an object's.
func CheckBucket(bucket string) error {
	if err := object.CheckName(bucket); err != nil || strings.Contains(bucket, "/") {
		return fmt.Errorf("%w: the bucket %q", ErrBadAddress, bucket)
	}
	return nil
}

// String is the location as EC2 writes it.
func (l Location) String() string { return l.manifest() }

func (l Location) manifest() string  { return l.Bucket + "/" + l.Prefix + manifestSuffix }
func (l Location) index() string     { return l.Bucket + "/" + l.Prefix + indexSuffix }
func (l Location) signature() string { return l.Bucket + "/" + l.Prefix + signatureSuffix }

// chunks is where a bucket's chunks lie.
func chunks(bucket string) string { return path.Join(bucket, chunksFolder) }
