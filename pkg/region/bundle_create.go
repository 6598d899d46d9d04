package region

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/object"
)

// Bundle is a bundle as the region shows it.
type Bundle struct {
	bundle.Entry
	Store string         `json:"Store"`
	Made  *bundle.Packed `json:"Packed,omitempty"`  // of one that was just created
	Left  *bundle.Left   `json:"LeftOut,omitempty"` // by the safety filter, likewise
}

// BundleSpec says what a bundle is to be, over what its source says.
type BundleSpec struct {
	Location string // BUCKET/PREFIX
	Store    string // address of an object store; "" is the region's

	Name                string // "" is the prefix
	Description         string
	Architecture        ami.Architecture
	BootMode            ami.BootMode
	RootDeviceName      string
	BlockDeviceMappings []ami.BlockDeviceMapping
	PVBoot
	ProductCodes []string

	Include, Exclude []string // patterns, of the safety filter
	NoFilter         bool
	Unsigned         bool
	ChunkSizes       string // MIN:AVG:MAX in KiB; "" is casync's
	DryRun           bool
}

// CreateBundleInput asks for a bundle of a template.
type CreateBundleInput struct {
	BundleSpec
	Source    string // folder, tar, container image, recipe (also by name), image
	Kind      string // "" is found by looking
	Size      int64  // of the root filesystem in bytes; 0 is by what is in it
	Partition string // none, gpt or mbr; "" is as the source has it
	Script    string // program that is run with the tree's folder, before it is packed
}

// BundleKinds lists what a template can be.
func BundleKinds() (all []string) {
	for _, k := range bundle.Kinds() {
		all = append(all, string(k))
	}
	return all
}

// BundlePartitions lists the ways in which a bundle's blob is a disk.
func BundlePartitions() []string { return bundle.Partitions() }

// CreateBundle packs a template into an object store.
func (r *Region) CreateBundle(ctx context.Context, in CreateBundleInput) (Bundle, error) {
	if dir, err := r.recipeDir(in.Source); err == nil && (in.Kind == "" || in.Kind == string(bundle.KindRecipe)) {
		in.Source, in.Kind = dir, string(bundle.KindRecipe)
	}
	if _, err := os.Stat(in.Source); err != nil {
		return Bundle{}, templateError(err, in.Source)
	}
	if in.Kind != "" && !slices.Contains(BundleKinds(), in.Kind) {
		return Bundle{}, ami.Errorf(ami.CodeInvalidParameterValue, "The kind %q is not one of %s.", in.Kind, strings.Join(BundleKinds(), ", "))
	}
	store, sizes, err := r.bundleTarget(ctx, in.BundleSpec)
	if err != nil {
		return Bundle{}, err
	}
	defer store.Close()
	if in.DryRun {
		return Bundle{}, dryRun("pack %s into the bundle %q", in.Source, in.Location)
	}
	scratch, err := durable.NewScratch(r.path("tmp"), "bundle")
	if err != nil {
		return Bundle{}, storeError(err, "No work folder can be made.")
	}
	defer scratch.Close()
	tmp := scratch.Path("template")
	if err := os.Mkdir(tmp, 0o711); err != nil {
		return Bundle{}, storeError(err, "No work folder can be made.")
	}
	name := in.Name
	if name == "" {
		name = bundleName(in.Location)
	}
	tpl, err := bundle.OpenTemplate(ctx, bundle.TemplateInput{
		Path: in.Source, Kind: bundle.Kind(in.Kind), Name: name, Size: in.Size, Partition: in.Partition, Architecture: in.Architecture,
		Filter: bundle.Filter{Off: in.NoFilter, Include: in.Include, Exclude: in.Exclude},
		Script: in.Script, Cmdline: in.KernelCmdline, Tmp: tmp, Progress: r.progress,
	})
	if err != nil {
		return Bundle{}, templateError(err, in.Source)
	}
	defer tpl.Close()
	m := bundle.Manifest{
		Name: name, Description: in.Description, Architecture: tpl.Architecture, BootMode: tpl.BootMode,
		VirtualizationType: bundle.Virtualization(tpl.Partition), Partition: tpl.Partition, RootDeviceName: "/dev/sda1",
	}
	if in.Architecture != "" {
		m.Architecture = in.Architecture
	}
	if m, err = r.bundleManifest(ctx, in.BundleSpec, m); err != nil {
		return Bundle{}, err
	}
	b, err := r.writeBundle(ctx, store, in.BundleSpec, bundle.CreateInput{
		Source: tpl.Source, Manifest: m, ChunkSizes: sizes,
		// What was in between is not written to the disk for nothing.
		Packed: func() { tpl.Close(); os.RemoveAll(tmp) },
	})
	if tpl.Left.Files > 0 {
		b.Left = &tpl.Left
		r.progress.Note("the safety filter left %d files out, such as %s; --include PATTERN or --no-filter keep them", tpl.Left.Files, tpl.Left.Paths[0])
	}
	return b, err
}

// bundleName is the name of a bundle that is given none.
func bundleName(location string) string {
	l, err := bundle.ParseLocation(location)
	if err != nil {
		return location
	}
	return filepath.Base(l.Prefix)
}

// bundleTarget finds what is wrong with where a bundle is to be, before any work
// begins. The caller closes the store.
func (r *Region) bundleTarget(ctx context.Context, in BundleSpec) (object.Store, bundle.ChunkSizes, error) {
	sizes, err := chunkSizes(in.ChunkSizes)
	if err != nil {
		return nil, sizes, err
	}
	if err := checkBoot(in.BootMode, in.Architecture); err != nil {
		return nil, sizes, err
	}
	if err := ami.ValidateMapping(in.BlockDeviceMappings); err != nil {
		return nil, sizes, err
	}
	store, err := r.bundleStore(ctx, in.Store)
	if err != nil {
		return nil, sizes, err
	}
	if err := bundle.CheckFree(ctx, store, in.Location); err != nil {
		err = bundleError(err, in.Location, store.URL())
		store.Close()
		return nil, sizes, err
	}
	return store, sizes, nil
}

func chunkSizes(s string) (c bundle.ChunkSizes, err error) {
	if s == "" {
		return bundle.DefaultChunkSizes, nil
	}
	parts := strings.Split(s, ":")
	bad := ami.Errorf(ami.CodeInvalidParameterValue, "The chunk sizes %q are not MIN:AVG:MAX in KiB, such as 16:64:256.", s)
	if len(parts) != 3 {
		return c, bad
	}
	for i, to := range []*int{&c.Min, &c.Avg, &c.Max} {
		n, err := strconv.Atoi(parts[i])
		if err != nil || n < 1 || n > object.MaxChunk>>10 {
			return c, bad
		}
		*to = n << 10
	}
	if c.Min >= c.Avg || c.Avg >= c.Max || c.Avg&(c.Avg-1) != 0 {
		return c, bad.WithHint("They grow, and the average is a power of two.")
	}
	return c, nil
}

// bundleManifest lays what was asked for over what the source says.
func (r *Region) bundleManifest(ctx context.Context, in BundleSpec, m bundle.Manifest) (bundle.Manifest, error) {
	m.OwnerID = r.account
	if in.Description != "" {
		m.Description = in.Description
	}
	if in.RootDeviceName != "" {
		m.RootDeviceName = in.RootDeviceName
	}
	if in.BlockDeviceMappings != nil {
		m.BlockDeviceMappings = in.BlockDeviceMappings
	}
	m.ProductCodes = addCodes(m.ProductCodes, in.ProductCodes)
	if in.BootMode != "" {
		if m.VirtualizationType == ami.VirtualizationParavirtual {
			return m, noBootMode()
		}
		m.BootMode = in.BootMode
	}
	boot := in.PVBoot
	if m.VirtualizationType == ami.VirtualizationParavirtual {
		boot = in.PVBoot.over(ami.Image{KernelID: m.KernelID, RamdiskID: m.RamdiskID, KernelCmdline: m.KernelCmdline})
	}
	_, boot, err := r.bootOf(ctx, m.VirtualizationType, m.Architecture, boot)
	m.KernelID, m.RamdiskID, m.KernelCmdline = boot.KernelID, boot.RamdiskID, boot.KernelCmdline
	return m, err
}

// addCodes puts product codes beside those that what is packed has already.
func addCodes(had, codes []string) []string {
	all := slices.Clone(had)
	for _, code := range codes {
		if !slices.Contains(all, code) {
			all = append(all, code)
		}
	}
	return all
}

// writeBundle packs a blob and describes the bundle that it has become.
func (r *Region) writeBundle(ctx context.Context, store object.Store, in BundleSpec, c bundle.CreateInput) (Bundle, error) {
	c.Store, c.Location, c.Progress = store, in.Location, r.progress
	c.Manifest.CreatedBy = "kami"
	if !in.Unsigned {
		key, err := r.keyring().Key(ctx, "kami "+r.opts.Name)
		if err != nil {
			return Bundle{}, storeError(err, "The key that signs bundles cannot be had.")
		}
		c.Key = key
	}
	m, packed, err := bundle.Create(ctx, c)
	if err != nil {
		return Bundle{}, bundleError(err, in.Location, store.URL())
	}
	l, err := bundle.ParseLocation(in.Location)
	if err != nil {
		return Bundle{}, bundleError(err, in.Location, store.URL())
	}
	b := Bundle{Entry: bundle.Entry{Location: l.String(), Manifest: m, Trusted: c.Key != nil}, Store: store.URL(), Made: &packed}
	if c.Key != nil {
		b.Signer = bundle.Fingerprint(c.Key.PublicKey())
	}
	r.progress.Note("%s", packedNote(packed))
	return b, nil
}

func packedNote(p bundle.Packed) string {
	return fmt.Sprintf("%d of %d chunks are new: %.1f MiB stored for %.1f MiB of data", p.NewChunks, p.Chunks, mib(p.StoredBytes), mib(p.DataBytes))
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
