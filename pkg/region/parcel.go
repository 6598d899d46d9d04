package region

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
)

// A parcel is an image as it travels: its records, and what its snapshots stand
// on. The layers and objects themselves go beside it. One that comes from elsewhere
// is hostile until check has looked at it.
type parcel struct {
	Version   int            `json:"Version"`
	Region    string         `json:"Region"` // that it comes from
	Image     ami.Image      `json:"Image"`
	Snapshots []ami.Snapshot `json:"Snapshots"`
	Kernels   []ami.Image    `json:"Kernels,omitempty"` // that it starts with
	Layers    []parcelLayer  `json:"Layers"`            // parents before their children
}

// parcelLayer is a layer by what has to be known to find it elsewhere.
type parcelLayer struct {
	Digest   digest.Digest `json:"LayerDigest"`
	Parent   digest.Digest `json:"ParentLayerDigest,omitempty"`
	Content  digest.Digest `json:"ContentDigest"`
	Size     int64         `json:"SizeInBytes"`      // of the disk
	FileSize int64         `json:"LayerSizeInBytes"` // of the file
	KeyID    string        `json:"KmsKeyId,omitempty"`
}

const (
	parcelVersion = 1
	maxParcel     = 8 << 20 // bytes
	maxSnapshots  = 100     // of an image
	maxLayers     = 4096    // of an image

	maxProductCodes = 100     // of an image or a snapshot
	maxDisk         = 1 << 48 // bytes
)

// pack makes the parcel of an available image that the caller may use.
func (r *Region) pack(ctx context.Context, image ami.Image) (parcel, error) {
	p := parcel{Version: parcelVersion, Region: r.opts.Name, Image: image}
	if image.IsInstanceStore() {
		return p, ami.Errorf(ami.CodeUnsupportedOperation, "The image %s is instance-store-backed: its bytes are a bundle, not snapshots.", image.ImageID).
			WithHint("Register the bundle where the image is wanted: kami image register --image-location %s.", image.ImageLocation)
	}
	if image.State != ami.ImageAvailable {
		return p, ami.Errorf(ami.CodeIncorrectState, "The image %s is %s, not available.", image.ImageID, image.State)
	}
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		for _, m := range image.BlockDeviceMappings {
			if m.Ebs == nil || m.Ebs.SnapshotID == "" || p.snapshot(m.Ebs.SnapshotID) != nil {
				continue
			}
			snap, err := completedNow(tx, m.Ebs.SnapshotID)
			if err != nil {
				return err
			}
			snap.Lock, snap.RecycleBin = nil, nil
			if snap.OwnerID != r.account { // as shown has it of the image
				snap.Tags, snap.Description, snap.VolumeID = nil, "", ""
			}
			p.Snapshots = append(p.Snapshots, snap)
		}
		for _, id := range []string{string(image.KernelID), string(image.RamdiskID)} {
			if id == "" || id == string(ami.PVGrub) {
				continue
			}
			kernel, err := tx.Image(ami.ImageID(id))
			if err != nil {
				return fmt.Errorf("the kernel or ramdisk %s: %w", id, err)
			}
			// By what it is found elsewhere, and no more.
			p.Kernels = append(p.Kernels, ami.Image{ImageID: kernel.ImageID, ImageType: kernel.ImageType, Architecture: kernel.Architecture, Data: kernel.Data})
		}
		return nil
	})
	if err != nil {
		return p, storeError(err, "The image %s cannot be read.", image.ImageID)
	}
	for _, snap := range p.Snapshots {
		if err := r.packLayers(ctx, &p, snap); err != nil {
			return p, storeError(err, "The layers of %s cannot be read.", snap.SnapshotID)
		}
	}
	return p, nil
}

// packLayers adds what a snapshot stands on, the parents first.
func (r *Region) packLayers(ctx context.Context, p *parcel, snap ami.Snapshot) error {
	var chain []parcelLayer
	for d := snap.Layer; d != "" && p.layer(d) == nil; {
		l, err := r.layers.Layer(d)
		if err != nil {
			return err
		}
		content := snap.ContentDigest
		if d != snap.Layer || content == "" {
			blocks, err := r.layers.Blocks(ctx, d)
			if err != nil {
				return err
			}
			content = blocks.Content()
		}
		chain = append(chain, parcelLayer{d, l.Parent, content, l.Size, l.FileSize, l.KeyID})
		d = l.Parent
	}
	slices.Reverse(chain)
	p.Layers = append(p.Layers, chain...)
	return nil
}

func (p *parcel) snapshot(id ami.SnapshotID) *ami.Snapshot {
	i := slices.IndexFunc(p.Snapshots, func(s ami.Snapshot) bool { return s.SnapshotID == id })
	if i < 0 {
		return nil
	}
	return &p.Snapshots[i]
}

func (p *parcel) layer(d digest.Digest) *parcelLayer {
	i := slices.IndexFunc(p.Layers, func(l parcelLayer) bool { return l.Digest == d })
	if i < 0 {
		return nil
	}
	return &p.Layers[i]
}

// chain is a layer and what it stands on, nearest first.
func (p *parcel) chain(d digest.Digest) (chain []parcelLayer) {
	for d != "" {
		l := p.layer(d)
		if l == nil {
			break
		}
		chain = append(chain, *l)
		d = l.Parent
	}
	return chain
}

// objects are the small objects that its records name.
func (p *parcel) objects() []digest.Digest { return objectsOf(p.Image) }

// encode is the parcel's file. What says who may use the image stays behind.
func (p *parcel) encode() ([]byte, error) {
	out, i := *p, p.Image
	out.Image = ami.Image{
		ImageID: i.ImageID, Name: i.Name, Description: i.Description, OwnerID: i.OwnerID, State: i.State,
		CreationDate: i.CreationDate, Hypervisor: i.Hypervisor, ImageType: i.ImageType, RootDeviceType: i.RootDeviceType,
		ImageLocation: i.ImageLocation, BlockDeviceMappings: i.BlockDeviceMappings, Tags: i.Tags,
		SourceImageID: i.SourceImageID, SourceImageRegion: i.SourceImageRegion,
	}
	carry(&out.Image, i)
	b, err := json.MarshalIndent(out, "", "  ")
	return append(b, '\n'), err
}

// errParcel is what is wrong with a parcel.
var errParcel = errors.New("it is not an image that kami has stored")

// parseParcel reads a parcel's file and checks it.
func parseParcel(b []byte) (parcel, error) {
	var p parcel
	if len(b) > maxParcel {
		return p, fmt.Errorf("%w: its record has more than %d bytes", errParcel, maxParcel)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&p); err != nil {
		return p, fmt.Errorf("%w: %w", errParcel, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return p, fmt.Errorf("%w: there is something behind its record's end", errParcel)
	}
	if err := p.check(); err != nil {
		return p, fmt.Errorf("%w: %s", errParcel, err.Error()) // whose codes are of a request
	}
	return p, nil
}

// check holds all of a parcel against bounds and itself.
func (p *parcel) check() error {
	if p.Version != parcelVersion {
		return fmt.Errorf("its format has version %d; this kami reads version %d", p.Version, parcelVersion)
	}
	var faults []error
	fault := func(bad bool, format string, args ...any) {
		if bad && len(faults) < 20 {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	i := p.Image
	_, err := ami.ParseImageID(string(i.ImageID))
	faults = append(faults, err, ami.CheckName(i.Name), ami.ValidateMapping(i.BlockDeviceMappings))
	fault(!regionName.MatchString(p.Region), "the region %.64q", p.Region)
	fault(len(i.Description) > 255, "a description of %d characters", len(i.Description))
	fault(i.RootDeviceType != ami.RootDeviceEBS || i.ImageType != ami.ImageTypeMachine, "its root device is of the type %.20q", i.RootDeviceType)
	fault(len(i.Tags) > 50, "%d tags", len(i.Tags))
	fault(i.UEFIData != "" && !i.UEFIData.Valid() || i.Data != "", "the objects that it names")
	faults = append(faults, checkBoot(i.BootMode, i.Architecture), checkSupport(i), checkImdsSupport(i.ImdsSupport), ami.CheckUsageOperation(i.UsageOperation))
	fault(i.VirtualizationType != ami.VirtualizationHVM && i.VirtualizationType != ami.VirtualizationParavirtual, "its virtualization type is %.20q", i.VirtualizationType)
	fault(len(i.Signatures) > maxSignatures, "%d signatures", len(i.Signatures))
	fault(len(i.ProductCodes) > maxProductCodes, "%d product codes", len(i.ProductCodes))
	fault(len(p.Snapshots) > maxSnapshots || len(p.Layers) > maxLayers || len(p.Kernels) > 2, "%d snapshots on %d layers", len(p.Snapshots), len(p.Layers))
	known, sealed := map[digest.Digest]parcelLayer{}, map[digest.Digest]bool{} // sealed: it needs a key
	for _, l := range p.Layers[:min(len(p.Layers), maxLayers)] {
		_, again := known[l.Digest]
		parent, there := known[l.Parent]
		fault(!l.Digest.Valid() || !l.Content.Valid() || again, "the layer %.20q", l.Digest)
		fault(l.Parent != "" && !there, "the layer %.20q comes before the one that it stands on", l.Digest)
		fault(l.Size <= 0 || l.Size > maxDisk || l.Size%512 != 0 || l.Size < parent.Size, "a disk of %d bytes", l.Size)
		fault(l.FileSize <= 0 || l.FileSize > maxDisk, "a layer of %d bytes", l.FileSize)
		known[l.Digest], sealed[l.Digest] = l, l.KeyID != "" || sealed[l.Parent]
	}
	snaps := map[ami.SnapshotID]bool{}
	for _, s := range p.Snapshots[:min(len(p.Snapshots), maxSnapshots)] {
		_, err := ami.ParseSnapshotID(string(s.SnapshotID))
		faults = append(faults, err)
		fault(len(s.ProductCodes) > maxProductCodes, "%d product codes", len(s.ProductCodes))
		faults = append(faults, ami.CheckUsageOperation(s.UsageOperation))
		l, there := known[s.Layer]
		fault(!there || snaps[s.SnapshotID], "the snapshot %.30q stands on %.20q", s.SnapshotID, s.Layer)
		fault(there && (s.ContentDigest != l.Content || s.SizeBytes != l.Size || s.VolumeSize < gibCeil(l.Size) || s.VolumeSize > maxVolumeGiB), "the snapshot %.30q is of %d bytes and %d GiB", s.SnapshotID, s.SizeBytes, s.VolumeSize)
		fault(sealed[s.Layer] && !s.Encrypted || s.Encrypted != (s.KmsKeyID != ""), "the snapshot %.30q says that it is encrypted: %t, by %.64q", s.SnapshotID, s.Encrypted, s.KmsKeyID)
		snaps[s.SnapshotID] = true
	}
	root := false
	for _, m := range i.BlockDeviceMappings {
		if m.Ebs != nil && m.Ebs.SnapshotID != "" {
			fault(!snaps[m.Ebs.SnapshotID], "the snapshot %.30q is not there", m.Ebs.SnapshotID)
			root = root || sameDevice(m.DeviceName, i.RootDeviceName)
		}
	}
	fault(!root, "no snapshot is mapped to the root device %.20q", i.RootDeviceName)
	return errors.Join(faults...)
}
