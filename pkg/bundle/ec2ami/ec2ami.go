// Package ec2ami reads and writes EC2's own bundle format of the days of
// instance-store images, so that bundles travel to and from the tools of that age
// (ec2-ami-tools, euca2ools).
//
// An image is put in a tar of one member; the tar's SHA-1 is the image's digest.
// The tar is gzipped, encrypted with AES-128-CBC under a random key and IV, and cut
// into parts of 10 MiB, PREFIX.part.00 and on, each with its SHA-1. What they are
// is in PREFIX.manifest.xml, version 2007-10-10: an RSA signature covers the exact
// bytes of two of its elements, and the key and the IV are in it twice, encrypted
// to the user's certificate and to the cloud's, so that either can read the bundle.
//
// Everything streams: memory is a few parts, however large the image. A manifest
// is not trusted before its signature was verified, and even then it bounds what is
// read: no more bytes are unpacked than it declares.
package ec2ami

import (
	"crypto/sha1"
	"encoding/hex"
	"regexp"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
)

const (
	// Version is the manifest version that is written and read.
	Version = "2007-10-10"
	// PartSize is the size of a part in bytes; the last is shorter.
	PartSize = 10 << 20
	// MaxSize bounds an image, in bytes; EC2 took ten GiB.
	MaxSize = 1 << 40
	// MaxManifest bounds a manifest, in bytes: one of MaxSize that nothing compresses.
	MaxManifest = 32 << 20
	// ManifestSuffix ends the names of manifests.
	ManifestSuffix = ".manifest.xml"

	maxParts = MaxSize/PartSize + MaxSize/PartSize/64
	maxList  = 1024 // of mappings, product codes, ancestors
	maxText  = 64 << 10

	digestAlgorithm = "SHA1"
	cipherAlgorithm = "AES-128-CBC"
)

// Types of images.
const (
	TypeMachine = "machine"
	TypeKernel  = "kernel"
	TypeRamdisk = "ramdisk"
)

// Machine is what a manifest says of the machine that the image is for.
type Machine struct {
	Architecture string    // i386 or x86_64
	Mapping      []Mapping // virtual devices: ami, root, swap, ephemeral0...
	KernelID     string    // "" is the cloud's default
	RamdiskID    string
	ProductCodes []string
}

// Mapping is one virtual device and its name in the guest, as "root" and
// "/dev/sda1", or "ephemeral0" and "sdb".
type Mapping struct{ Virtual, Device string }

// Part is one encrypted piece.
type Part struct {
	Name   string
	Digest [sha1.Size]byte // of the piece as it lies in the store
}

// Manifest is what a manifest says. Keys and IVs are still encrypted.
type Manifest struct {
	Bundler Bundler
	Machine Machine

	Name       string // of the image, and of the member in the tar
	User       string // account, without dashes
	Type       string // TypeMachine, TypeKernel or TypeRamdisk
	KernelName string // of a kernel
	Ancestry   []string

	Digest      [sha1.Size]byte // of the tar
	Size        int64           // of the image, bytes
	BundledSize int64           // of all parts, bytes
	Parts       []Part

	userKey, userIV   []byte // RSA of 32 hex digits
	cloudKey, cloudIV []byte
	signature         []byte
	signed            []byte // what the signature covers
}

// Bundler is the tool that wrote a manifest.
type Bundler struct{ Name, Version, Release string }

// safeName is a name that needs no escaping in XML, in a store, or in a tar.
var safeName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]{0,89}$`)

// CheckPrefix says whether a bundle's files can be named so.
func CheckPrefix(prefix string) error {
	if safeName.MatchString(prefix) {
		return nil
	}
	return ami.Errorf(ami.CodeInvalidParameterValue, "The name %q is not one for a bundle's files.", prefix).
		WithHint("Use up to 90 letters, digits and any of . _ + - and begin with a letter or digit.")
}

// fault is what is wrong with a manifest or with the parts that it names.
func fault(format string, args ...any) *ami.Error {
	return ami.Errorf(ami.CodeInvalidManifest, format, args...)
}

// text is a digest as manifests have it.
func text(sum [sha1.Size]byte) string { return hex.EncodeToString(sum[:]) }

// prefixOf is the prefix of a manifest's name in its store, "" if it has none.
func prefixOf(manifest string) string {
	base := manifest[strings.LastIndexByte(manifest, '/')+1:]
	prefix, ok := strings.CutSuffix(base, ManifestSuffix)
	if !ok {
		return ""
	}
	return prefix
}
