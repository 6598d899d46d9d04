package ami

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/kamivm/kami/pkg/digest"
)

// ManifestFormat is the first line of an image's manifest. It is in no other format
// that anybody signs, so that a signature of something else is never one of an image.
const ManifestFormat = "kami-image 1"

// ImageManifest says what an image's guests start with: what signatures of images are
// of. It names disks by what is in them, not by the files that hold it, and no ids,
// so that copies have the same one, however they are encoded or encrypted.
type ImageManifest struct {
	Architecture       Architecture
	BootMode           BootMode // "" is the architecture's
	VirtualizationType string
	RootDeviceName     string
	TpmSupport         string        // v2.0, or ""
	ImdsSupport        string        // v2.0, or ""
	UEFIData           digest.Digest // "" for none
	Kernel             string        // pv-grub, or a digest; "" for none
	Ramdisk            string        // a digest; "" for none
	KernelCmdline      string
	Disks              []ManifestDisk // in the order of the mapping
}

// ManifestDisk is one device of an image.
type ManifestDisk struct {
	Kind    string // disk, blank, virtual, or bundle
	Device  string
	Size    int64         // bytes; not of a virtual one
	Content digest.Digest // of a disk, its content digest; of a bundle, its SHA-256
	Virtual string        // ephemeralN
}

// The kinds of disks in a manifest.
const (
	manifestDisk    = "disk"
	manifestBlank   = "blank"
	manifestVirtual = "virtual"
	manifestBundle  = "bundle"
)

// NewImageManifest makes the manifest of an image of the records that it names. It
// returns UnsupportedOperation for one of which some content is not known.
func NewImageManifest(i Image, snapshots []Snapshot, kernels []Image) (ImageManifest, error) {
	m := ImageManifest{
		Architecture: i.Architecture, BootMode: i.BootMode, VirtualizationType: i.VirtualizationType, RootDeviceName: i.RootDeviceName,
		TpmSupport: i.TpmSupport, ImdsSupport: i.ImdsSupport, UEFIData: i.UEFIData, KernelCmdline: i.KernelCmdline,
	}
	unknown := func(what, id string) error {
		return Errorf(CodeUnsupportedOperation, "The %s %s of the image %s has no digest of what is in it, so that nobody can sign the image.", what, id, i.ImageID)
	}
	content := func(id string) (string, error) {
		if id == "" {
			return "", nil
		}
		if id == string(PVGrub) {
			return "pv-grub", nil
		}
		at := slices.IndexFunc(kernels, func(k Image) bool { return string(k.ImageID) == id })
		if at < 0 || !kernels[at].Data.Valid() {
			return "", unknown("kernel or ramdisk", id)
		}
		return "sha256:" + kernels[at].Data.Hex(), nil
	}
	var err error
	if m.Kernel, err = content(string(i.KernelID)); err != nil {
		return m, err
	}
	if m.Ramdisk, err = content(string(i.RamdiskID)); err != nil {
		return m, err
	}
	if b := i.Bundle; b != nil {
		m.Disks = append(m.Disks, ManifestDisk{Kind: manifestBundle, Device: i.RootDeviceName, Size: b.SizeBytes, Content: b.ContentDigest})
	}
	for _, d := range i.BlockDeviceMappings {
		switch {
		case d.Ebs != nil && d.Ebs.SnapshotID != "":
			at := slices.IndexFunc(snapshots, func(s Snapshot) bool { return s.SnapshotID == d.Ebs.SnapshotID })
			if at < 0 || !snapshots[at].ContentDigest.Valid() {
				return m, unknown("snapshot", string(d.Ebs.SnapshotID))
			}
			m.Disks = append(m.Disks, ManifestDisk{Kind: manifestDisk, Device: d.DeviceName, Size: snapshots[at].SizeBytes, Content: snapshots[at].ContentDigest})
		case d.Ebs != nil && d.Ebs.VolumeSize != nil:
			m.Disks = append(m.Disks, ManifestDisk{Kind: manifestBlank, Device: d.DeviceName, Size: *d.Ebs.VolumeSize << 30})
		case d.VirtualName != "":
			m.Disks = append(m.Disks, ManifestDisk{Kind: manifestVirtual, Device: d.DeviceName, Virtual: d.VirtualName})
		}
	}
	return m, nil
}

// Text is the manifest as it is signed, byte for byte. It returns
// UnsupportedOperation where a field would break out of its line.
func (m ImageManifest) Text() ([]byte, error) {
	var b strings.Builder
	var broken string
	line := func(word, text string) {
		if strings.ContainsFunc(text, unicode.IsControl) {
			broken = word
		}
		fmt.Fprintf(&b, "%s %s\n", word, text)
	}
	known := func(word, text string) {
		if text != "" {
			line(word, text)
		}
	}
	sum := func(d digest.Digest) string {
		if d == "" {
			return ""
		}
		return "sha256:" + d.Hex()
	}
	b.WriteString(ManifestFormat + "\n")
	line("architecture", string(m.Architecture))
	known("boot-mode", string(m.BootMode))
	line("virtualization-type", m.VirtualizationType)
	line("root-device", m.RootDeviceName)
	known("tpm-support", m.TpmSupport)
	known("imds-support", m.ImdsSupport)
	known("uefi-data", sum(m.UEFIData))
	known("kernel", m.Kernel)
	known("ramdisk", m.Ramdisk)
	known("kernel-command-line", m.KernelCmdline)
	for _, d := range m.Disks {
		switch d.Kind {
		case manifestVirtual:
			line(d.Kind, d.Device+" "+d.Virtual)
		case manifestBlank:
			line(d.Kind, fmt.Sprintf("%s %d", d.Device, d.Size))
		default:
			line(d.Kind, fmt.Sprintf("%s %d %s", d.Device, d.Size, sum(d.Content)))
		}
	}
	if broken != "" {
		return nil, Errorf(CodeUnsupportedOperation, "The %s of the image has control characters, so that nobody can sign it.", broken)
	}
	return []byte(b.String()), nil
}

// ImageSignature is one of an image's manifest.
type ImageSignature struct {
	KeyFingerprint string    `json:"KeyFingerprint"` // SHA256:…
	Format         string    `json:"Format"`         // ssh or minisign
	PublicKey      string    `json:"PublicKey"`      // in the form of OpenSSH
	Signature      string    `json:"Signature"`      // the file
	SigningTime    time.Time `json:"SigningTime"`    // when it was put to the image
}
