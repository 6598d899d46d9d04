package region

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle/ec2ami"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/qcow2"
)

// EC2Bundle is a bundle in EC2's own format.
type EC2Bundle struct {
	Manifest     string   `json:"ManifestLocation"` // address of the store, and the name in it
	Name         string   `json:"Name"`
	User         string   `json:"UserId"`
	ImageType    string   `json:"ImageType"`
	Architecture string   `json:"Architecture"`
	KernelID     string   `json:"KernelId,omitempty"`
	RamdiskID    string   `json:"RamdiskId,omitempty"`
	ProductCodes []string `json:"ProductCodes,omitempty"`
	Ancestry     []string `json:"Ancestry,omitempty"`
	Bundler      string   `json:"Bundler,omitempty"`
	ImageBytes   int64    `json:"ImageSizeInBytes"`
	BundledBytes int64    `json:"BundledSizeInBytes"`
	Parts        int      `json:"PartCount"`
	Signed       bool     `json:"SignatureVerified"`
	File         string   `json:"File,omitempty"` // that it was unpacked to
}

// EC2Keys are whose keys an EC2 bundle is made or read with: PEM files. Where they
// are not given, the region's own are taken.
type EC2Keys struct {
	Cert       string // the user's certificate
	PrivateKey string // the user's key; to read, the cloud's serves too
}

// ExportEC2Input asks for a bundle in EC2's own format.
type ExportEC2Input struct {
	Source string // an image's id, a snapshot's, the absolute path of a raw file, or a bundle's location
	To     string // address of an object store
	Prefix string // of the bundle's names; "" is of the source
	User   string // account; "" is the caller's

	Architecture ami.Architecture // "" is the image's, or x86_64
	KernelID     string
	RamdiskID    string
	ProductCodes []string
	Mapping      []string // VIRTUAL=DEVICE

	EC2Keys
	EC2Cert string // the certificate of the cloud that it is for; "" is the region's

	Store         string // of a bundle that is the source; "" is the region's
	AllowUnsigned bool   // take that bundle whoever made it

	Replace bool // a bundle of that name
	Decrypt bool // has to be said of an encrypted snapshot
	DryRun  bool
}

// ExportEC2Bundle writes a bundle in EC2's own format, for the tools of that age.
func (r *Region) ExportEC2Bundle(ctx context.Context, in ExportEC2Input) (EC2Bundle, error) {
	var out EC2Bundle
	src, err := r.exportSource(ctx, in)
	if err != nil {
		return out, err
	}
	defer src.close()
	w, err := r.ec2WriteInput(in, src)
	if err != nil {
		return out, err
	}
	if in.DryRun {
		return out, dryRun("write the bundle %s of %s to %s", w.Prefix, in.Source, in.To)
	}
	if err := r.ec2WriteKeys(ctx, in, &w); err != nil {
		return out, err
	}
	if w.Store, err = object.Open(ctx, in.To, object.Options{}); err != nil {
		return out, objectError(err, in.To)
	}
	defer w.Store.Close()
	if w.Extents, err = dataExtents(ctx, src.disk); err != nil {
		return out, storeError(err, "%s cannot be read.", in.Source)
	}
	step := r.progress.Step("bundling "+filepath.Base(in.Source), w.Size)
	w.Progress = step.Add
	m, err := ec2ami.Write(ctx, w)
	step.Done(err)
	if errors.Is(err, ec2ami.ErrRead) {
		return out, storeError(bundleError(err, in.Source, in.Store), "%s cannot be read.", in.Source)
	}
	if err != nil {
		return out, objectError(err, in.To)
	}
	return describeEC2Bundle(w.Store, w.Prefix+ec2ami.ManifestSuffix, m, true), nil
}

// ec2WriteInput is what can be said of a bundle before anything is made.
func (r *Region) ec2WriteInput(in ExportEC2Input, src exportSource) (ec2ami.WriteInput, error) {
	w := ec2ami.WriteInput{
		Prefix: in.Prefix, Image: src.disk, Size: src.disk.Size(), Replace: in.Replace,
		User: strings.ReplaceAll(in.User, "-", ""), Ancestry: src.ancestry, Machine: src.machine,
		Bundler: ec2ami.Bundler{Name: "kami", Version: "1", Release: "1"},
	}
	if w.Prefix == "" {
		w.Prefix = src.name
	}
	if w.User == "" {
		w.User = r.account
	}
	for name, to := range map[string]struct {
		given string
		to    *string
	}{
		"the kernel": {in.KernelID, &w.Machine.KernelID}, "the ramdisk": {in.RamdiskID, &w.Machine.RamdiskID},
		"the user": {"", &w.User},
	} {
		if to.given != "" {
			*to.to = to.given
		}
		if *to.to != "" && ec2ami.CheckPrefix(*to.to) != nil {
			return w, ami.Errorf(ami.CodeInvalidParameterValue, "%q is no id of %s.", *to.to, name)
		}
	}
	switch {
	case in.Architecture != "":
		w.Machine.Architecture = string(in.Architecture)
	case w.Machine.Architecture == "":
		w.Machine.Architecture = string(ami.ArchX8664)
	}
	w.Machine.ProductCodes = addCodes(w.Machine.ProductCodes, in.ProductCodes)
	if len(in.Mapping) > 0 {
		w.Machine.Mapping = nil
	}
	for _, m := range in.Mapping {
		virtual, device, ok := strings.Cut(m, "=")
		if !ok || virtual == "" || device == "" {
			return w, ami.Errorf(ami.CodeInvalidBlockDeviceMapping, "%q does not map a device.", m).
				WithHint("It should be as root=/dev/sda1 or ephemeral0=sdb.")
		}
		w.Machine.Mapping = append(w.Machine.Mapping, ec2ami.Mapping{Virtual: virtual, Device: device})
	}
	return w, ec2ami.CheckPrefix(w.Prefix)
}

// ec2WriteKeys reads the keys that were given, and takes the region's for others.
func (r *Region) ec2WriteKeys(ctx context.Context, in ExportEC2Input, w *ec2ami.WriteInput) (err error) {
	if (in.Cert == "") != (in.PrivateKey == "") {
		return ami.Errorf(ami.CodeInvalidParameterCombination, "The user's certificate and private key have to be given together.").
			WithHint("--cert and --privatekey are of one pair.")
	}
	var user, cloud ec2Pair
	if in.Cert == "" {
		user, err = r.madeEC2Pair(ctx, r.account)
	} else {
		user, err = readEC2Pair(in.PrivateKey, in.Cert)
	}
	if err != nil {
		return err
	}
	if in.EC2Cert == "" {
		cloud, err = r.madeEC2Pair(ctx, cloudName)
	} else {
		cloud.cert, err = readPEM(in.EC2Cert, ec2ami.ParseCertificate)
	}
	w.Key, w.Cert, w.Cloud = user.key, user.cert, cloud.cert
	return err
}

// exportSource is what is bundled, and what is known of it.
type exportSource struct {
	disk     qcow2.Source
	name     string // for the bundle
	machine  ec2ami.Machine
	ancestry []string
	closers  []func() error
}

func (s exportSource) close() {
	for _, c := range s.closers {
		_ = c() // was only read from
	}
}

// exportSource opens an image's root, a snapshot, a raw file, or a bundle.
func (r *Region) exportSource(ctx context.Context, in ExportEC2Input) (exportSource, error) {
	switch {
	case strings.HasPrefix(in.Source, "ami-"):
		image, err := r.image(ctx, ami.ImageID(in.Source))
		if err != nil {
			return exportSource{}, err
		}
		return r.exportImage(ctx, image, in.Decrypt)
	case strings.HasPrefix(in.Source, "snap-"):
		return r.exportSnapshotSource(ctx, ami.SnapshotID(in.Source), in.Decrypt)
	}
	if !filepath.IsAbs(in.Source) {
		return r.exportBundle(ctx, in)
	}
	f, err := os.Open(in.Source)
	if err != nil {
		return exportSource{}, noExportSource(in.Source, withoutPath(err))
	}
	disk, err := rawFile(f)
	if err != nil {
		f.Close()
		return exportSource{}, noExportSource(in.Source, err)
	}
	return exportSource{disk: disk, name: filepath.Base(in.Source), closers: []func() error{f.Close}}, nil
}

func noExportSource(source string, err error) error {
	return ami.Errorf(ami.CodeInvalidParameterValue, "%s cannot be read: %w.", source, err).
		WithHint("Give an image's id, a snapshot's, the path of a raw file, or a bundle.")
}

func rawFile(f *os.File) (qcow2.Source, error) {
	switch st, err := f.Stat(); {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, errors.New("it is no file")
	case st.Size() == 0:
		return nil, errors.New("it is empty")
	}
	return qcow2.RawSource(f)
}

// exportImage opens the root of an image. EC2's own format has no more than that.
func (r *Region) exportImage(ctx context.Context, image ami.Image, decrypt bool) (exportSource, error) {
	switch {
	case image.OwnerID != r.account: // as with ExportImage
		return exportSource{}, notAuthorized(image.ImageID)
	case image.State != ami.ImageAvailable:
		return exportSource{}, notAvailable(image)
	}
	root := ami.SnapshotID("")
	for _, m := range image.BlockDeviceMappings {
		if m.DeviceName == image.RootDeviceName && m.Ebs != nil {
			root = m.Ebs.SnapshotID
		}
	}
	machine := r.ec2Machine(image.Architecture, image.KernelID, image.RamdiskID, image.RootDeviceName, image.BlockDeviceMappings)
	if root == "" {
		return exportSource{}, ami.Errorf(ami.CodeUnsupportedOperation, "The image %s has no root that is a snapshot.", image.ImageID)
	}
	src, err := r.exportSnapshotSource(ctx, root, decrypt)
	machine.ProductCodes = addCodes(ami.ProductCodeIDs(image.ProductCodes), src.machine.ProductCodes)
	src.name, src.machine, src.ancestry = string(image.ImageID), machine, []string{string(image.ImageID)}
	return src, err
}

// exportBundle opens a bundle, whose chunks are verified as they are read.
func (r *Region) exportBundle(ctx context.Context, in ExportEC2Input) (exportSource, error) {
	if !strings.Contains(in.Source, "/") {
		return exportSource{}, noExportSource(in.Source, fs.ErrNotExist)
	}
	store, b, err := r.openBundle(ctx, in.Store, in.Source, in.AllowUnsigned)
	if err != nil {
		return exportSource{}, err
	}
	m := b.Manifest()
	src := exportSource{disk: b.ReaderAt(ctx), name: bundleName(in.Source), closers: []func() error{store.Close}}
	src.machine = r.ec2Machine(m.Architecture, m.KernelID, m.RamdiskID, m.RootDeviceName, m.BlockDeviceMappings)
	src.machine.ProductCodes = m.ProductCodes
	if m.SourceImageID != "" {
		src.ancestry = []string{string(m.SourceImageID)}
	}
	if m.KernelCmdline != "" {
		r.progress.Note("the kernel command line %q is not in the bundle: EC2's own format has no place for it", m.KernelCmdline)
	}
	return src, nil
}

// ec2Machine is what EC2's own format has a place for: of the devices the root and
// the ephemeral disks, and of the kernels those that are not kami's own.
func (r *Region) ec2Machine(arch ami.Architecture, kernel ami.KernelID, ramdisk ami.RamdiskID, root string, mapping []ami.BlockDeviceMapping) ec2ami.Machine {
	m := ec2ami.Machine{Architecture: string(arch), RamdiskID: string(ramdisk), Mapping: []ec2ami.Mapping{
		{Virtual: "ami", Device: ami.DeviceKey(root)}, {Virtual: "root", Device: root},
	}}
	if kernel != ami.PVGrub {
		m.KernelID = string(kernel)
	}
	for _, d := range mapping {
		switch {
		case d.VirtualName != "":
			m.Mapping = append(m.Mapping, ec2ami.Mapping{Virtual: d.VirtualName, Device: ami.DeviceKey(d.DeviceName)})
		case d.DeviceName != root && d.Ebs != nil:
			r.progress.Note("the volume %s is not in the bundle: EC2's own format has a root and no more", d.DeviceName)
		}
	}
	return m
}

func (r *Region) exportSnapshotSource(ctx context.Context, id ami.SnapshotID, decrypt bool) (exportSource, error) {
	snap, err := r.readable(ctx, id)
	if err != nil {
		return exportSource{}, err
	}
	if snap.Encrypted && !decrypt {
		return exportSource{}, ami.Errorf(ami.CodeOperationNotPermitted, "The snapshot %s is encrypted by a key of the region, and the bundle would not be.", id).
			WithHint("The bundle is encrypted to its user and to its cloud. Say --decrypt if that is what you want.")
	}
	img, err := r.layers.OpenLayer(snap.Layer)
	if err != nil {
		return exportSource{}, storeError(err, "The layer of %s cannot be read.", id)
	}
	src := exportSource{disk: qcow2.Flatten(img), name: string(id), closers: []func() error{img.Close}}
	src.machine.ProductCodes = ami.ProductCodeIDs(snap.ProductCodes)
	return src, nil
}

// dataExtents are the stretches of a disk that are no holes.
func dataExtents(ctx context.Context, disk qcow2.Source) ([]ec2ami.Extent, error) {
	extents := []ec2ami.Extent{}
	err := disk.Extents(ctx, 0, disk.Size(), func(off, length int64, state qcow2.ExtentState) error {
		if state != qcow2.Data {
			return nil
		}
		if last := len(extents) - 1; last >= 0 && extents[last].Offset+extents[last].Length == off {
			extents[last].Length += length
			return nil
		}
		extents = append(extents, ec2ami.Extent{Offset: off, Length: length})
		return nil
	})
	return extents, err
}

func describeEC2Bundle(store object.Store, name string, m *ec2ami.Manifest, signed bool) EC2Bundle {
	return EC2Bundle{
		Manifest: strings.TrimSuffix(store.URL(), "/") + "/" + name,
		Name:     m.Name, User: m.User, ImageType: m.Type, Architecture: m.Machine.Architecture,
		KernelID: m.Machine.KernelID, RamdiskID: m.Machine.RamdiskID,
		ProductCodes: m.Machine.ProductCodes, Ancestry: m.Ancestry,
		Bundler:    strings.TrimSpace(m.Bundler.Name + " " + m.Bundler.Version),
		ImageBytes: m.Size, BundledBytes: m.BundledSize, Parts: len(m.Parts), Signed: signed,
	}
}

// objectError is storeError for an object store at an address.
func objectError(err error, address string) error {
	message := "The object store " + address + " fails."
	if errors.Is(err, object.ErrBadURL) { // which shows the address without what is secret in it
		message = "The object store cannot be opened."
	}
	err = storeError(err, "%s", message)
	var known *ami.Error
	if !errors.As(err, &known) || known.Code != ami.CodeInternalError {
		return err
	}
	switch {
	case errors.Is(err, object.ErrDenied):
		known.Code = ami.CodeOperationNotPermitted
		known.Hint = "The store's credentials are taken the way that the AWS SDKs or ssh take them."
	case errors.Is(err, object.ErrBadURL), errors.Is(err, object.ErrBadName):
		known.Code = ami.CodeInvalidParameterValue
		known.Hint = "A store is a directory, s3://BUCKET/PREFIX, or sftp://USER@HOST/DIRECTORY."
	case errors.Is(err, object.ErrUnreachable):
		known.Hint = "Try again when the store can be reached; nothing is left half done."
	}
	return err
}
