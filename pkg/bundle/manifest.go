package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
)

// ManifestVersion is the version of the format that this package writes; it
// reads no other.
const ManifestVersion = 1

// The bounds of what a manifest may say.
const (
	maxManifest = 1 << 20 // bytes
	maxText     = 1024    // bytes of a text in it
	maxMappings = 100
	maxCodes    = 100
	maxBlob     = 64 << 40 // bytes
	maxIndex    = 256 << 20
	minChunkMin = 48 // the window of the chunker
)

// The ways in which a blob is a disk.
const (
	PartitionNone = "none" // a filesystem, for a guest that starts with a kernel
	PartitionGPT  = "gpt"  // a disk with a boot loader
	PartitionMBR  = "mbr"  // likewise; kami does not make these
)

// Partitions lists them.
func Partitions() []string { return []string{PartitionNone, PartitionGPT, PartitionMBR} }

// Manifest says what a bundle is, in EC2's words.
type Manifest struct {
	Version             int                      `json:"ManifestVersion"`
	Name                string                   `json:"Name"`
	Description         string                   `json:"Description,omitempty"`
	Architecture        ami.Architecture         `json:"Architecture"`
	VirtualizationType  string                   `json:"VirtualizationType"`
	BootMode            ami.BootMode             `json:"BootMode,omitempty"` // of hvm
	RootDeviceName      string                   `json:"RootDeviceName"`
	BlockDeviceMappings []ami.BlockDeviceMapping `json:"BlockDeviceMappings,omitempty"`
	KernelID            ami.KernelID             `json:"KernelId,omitempty"`
	RamdiskID           ami.RamdiskID            `json:"RamdiskId,omitempty"`
	KernelCmdline       string                   `json:"KernelCmdline,omitempty"`
	ProductCodes        []string                 `json:"ProductCodes,omitempty"`
	OwnerID             string                   `json:"OwnerId"`
	SourceImageID       ami.ImageID              `json:"SourceImageId,omitempty"`
	SourceInstanceID    ami.InstanceID           `json:"SourceInstanceId,omitempty"`
	Consistency         ami.Consistency          `json:"Consistency,omitempty"`
	CreationDate        time.Time                `json:"CreationDate"`
	CreatedBy           string                   `json:"CreatedBy,omitempty"` // the program

	Partition  string        `json:"Partition"`     // none, gpt or mbr
	Size       int64         `json:"Size"`          // of the blob, in bytes
	Digest     digest.Digest `json:"ContentDigest"` // SHA-256 of the blob
	ChunkSizes ChunkSizes    `json:"ChunkSizes"`
	Index      IndexFile     `json:"Index"`
}

// ChunkSizes are the least, average and greatest size of a chunk, in bytes.
type ChunkSizes struct {
	Min int `json:"Min"`
	Avg int `json:"Avg"`
	Max int `json:"Max"`
}

// DefaultChunkSizes are casync's.
var DefaultChunkSizes = ChunkSizes{16 << 10, 64 << 10, 256 << 10} //nolint:gochecknoglobals // nothing assigns it

// IndexFile is the index as an object.
type IndexFile struct {
	Name   string        `json:"Name"` // beside the manifest
	Size   int64         `json:"Size"` // bytes
	Digest digest.Digest `json:"Digest"`
}

// Encode is the manifest's file.
func (m *Manifest) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	return append(b, '\n'), err
}

// ParseManifest reads a manifest's file. Everything in it is held against bounds;
// all faults are told at once, wrapped in ErrManifest.
func ParseManifest(b []byte) (Manifest, error) {
	var m Manifest
	if len(b) > maxManifest {
		return m, fmt.Errorf("%w: it has more than %d bytes", ErrManifest, maxManifest)
	}
	if err := noDuplicates(b); err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	var probe struct {
		Version int `json:"ManifestVersion"`
	}
	if err := json.Unmarshal(b, &probe); err == nil && probe.Version > ManifestVersion {
		return m, fmt.Errorf("%w: it has version %d, of a newer kami; this one reads version %d", ErrManifest, probe.Version, ManifestVersion)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Manifest{}, fmt.Errorf("%w: there is something behind its end", ErrManifest)
	}
	if err := m.check(); err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	return m, nil
}

// check joins all faults of a manifest.
func (m *Manifest) check() error {
	var faults []error
	fault := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	fault(m.Version != ManifestVersion, "ManifestVersion is %d, not %d", m.Version, ManifestVersion)
	for name, text := range m.texts() {
		fault(len(text) > maxText || !utf8.ValidString(text) || strings.ContainsFunc(text, control), "%s has %d bytes or control characters", name, len(text))
	}
	fault(m.Name == "", "Name is empty")
	fault(!slices.Contains([]ami.Architecture{ami.ArchX8664, ami.ArchARM64, ami.ArchI386}, m.Architecture), "Architecture %q is not known", m.Architecture)
	fault(!slices.Contains(ami.VirtualizationTypes(), m.VirtualizationType), "VirtualizationType %q is not known", m.VirtualizationType)
	fault(!slices.Contains([]ami.BootMode{"", ami.BootLegacyBIOS, ami.BootUEFI, ami.BootUEFIPreferred}, m.BootMode), "BootMode %q is not known", m.BootMode)
	fault(!slices.Contains(Partitions(), m.Partition), "Partition %q is not one of %s", m.Partition, strings.Join(Partitions(), ", "))
	fault(m.RootDeviceName == "", "RootDeviceName is empty")
	if m.KernelID != "" {
		_, err := ami.ParseKernelID(string(m.KernelID))
		fault(err != nil, "KernelId %q", m.KernelID)
	}
	if m.RamdiskID != "" {
		_, err := ami.ParseRamdiskID(string(m.RamdiskID))
		fault(err != nil, "RamdiskId %q", m.RamdiskID)
	}
	fault(len(m.ProductCodes) > maxCodes, "ProductCodes are %d, more than %d", len(m.ProductCodes), maxCodes)
	if len(m.BlockDeviceMappings) > maxMappings {
		fault(true, "BlockDeviceMappings are %d, more than %d", len(m.BlockDeviceMappings), maxMappings)
	} else if err := ami.ValidateMapping(m.BlockDeviceMappings); err != nil {
		fault(true, "BlockDeviceMappings: %s", err.Error())
	}
	fault(m.Size <= 0 || m.Size > maxBlob || m.Size%512 != 0, "Size %d is not one of a disk", m.Size)
	fault(!m.Digest.Valid(), "ContentDigest %q is no SHA-256", m.Digest)
	faults = append(faults, m.ChunkSizes.check(), m.Index.check())
	return errors.Join(faults...)
}

// texts are what people wrote, by field.
func (m *Manifest) texts() map[string]string {
	all := map[string]string{
		"Name": m.Name, "Description": m.Description, "RootDeviceName": m.RootDeviceName, "OwnerId": m.OwnerID,
		"KernelCmdline": m.KernelCmdline, "CreatedBy": m.CreatedBy, "SourceImageId": string(m.SourceImageID),
		"SourceInstanceId": string(m.SourceInstanceID), "Consistency": string(m.Consistency),
	}
	for i, c := range m.ProductCodes {
		all[fmt.Sprintf("ProductCodes[%d]", i)] = c
	}
	return all
}

func control(c rune) bool { return c < ' ' || c >= 0x7f && c < 0xa0 }

func (c ChunkSizes) check() error {
	if c.Min < minChunkMin || c.Min > c.Avg || c.Avg > c.Max || c.Max > maxChunk {
		return fmt.Errorf("ChunkSizes %d:%d:%d are not min:avg:max within %d and %d", c.Min, c.Avg, c.Max, minChunkMin, maxChunk)
	}
	return nil
}

func (f IndexFile) check() error {
	var faults []error
	// It lies beside the manifest: a name with a folder in it would lead elsewhere.
	if f.Name == "" || len(f.Name) > maxText || path.Base(f.Name) != f.Name || f.Name == "." || f.Name == ".." || !strings.HasSuffix(f.Name, indexSuffix) {
		faults = append(faults, fmt.Errorf("Index.Name %.80q is not one of an index beside the manifest", f.Name))
	}
	if f.Size < indexOverhead || f.Size > maxIndex {
		faults = append(faults, fmt.Errorf("Index.Size %d is not within %d and %d", f.Size, indexOverhead, maxIndex))
	}
	if !f.Digest.Valid() {
		faults = append(faults, fmt.Errorf("Index.Digest %.80q is no SHA-256", f.Digest))
	}
	return errors.Join(faults...)
}

// noDuplicates refuses JSON in which an object has a name twice: readers differ
// in which of the two they take, and a signature would be of both.
func noDuplicates(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	type level struct {
		object, key bool
		seen        map[string]bool
	}
	var stack []level
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			if len(stack) > 0 {
				return io.ErrUnexpectedEOF
			}
			return nil
		}
		if err != nil {
			return err
		}
		if s, ok := t.(string); ok && len(stack) > 0 && stack[len(stack)-1].key {
			top := &stack[len(stack)-1]
			// Go's decoder takes names of any case, also beyond ASCII.
			if strings.ContainsFunc(s, func(c rune) bool { return c >= 0x80 }) {
				return fmt.Errorf("the name %.80q", s)
			}
			if s = strings.ToLower(s); top.seen[s] {
				return fmt.Errorf("it names %.80q twice", s)
			}
			top.seen[s], top.key = true, false
			continue
		}
		if c, ok := t.(json.Delim); ok && (c == '}' || c == ']') {
			if stack = stack[:len(stack)-1]; len(stack) == 0 {
				continue
			}
		} else if ok {
			if len(stack) >= 16 {
				return errors.New("it is nested too deep")
			}
			stack = append(stack, level{object: c == '{', key: c == '{', seen: map[string]bool{}})
			continue
		}
		if len(stack) > 0 {
			stack[len(stack)-1].key = stack[len(stack)-1].object
		}
	}
}
