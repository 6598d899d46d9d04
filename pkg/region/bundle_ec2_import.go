package region

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/bundle/ec2ami"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/object"
)

// ReadEC2Input names a bundle in EC2's own format, and how to read it.
type ReadEC2Input struct {
	Manifest string // its name in the store
	From     string // address of the store that holds it and its parts
	EC2Keys
	NoVerifySignature bool // take a manifest whoever signed it
}

// UnpackEC2Input asks for what is in a bundle in EC2's own format, as a file.
type UnpackEC2Input struct {
	ReadEC2Input
	File   string // to unpack to, raw; must not exist
	DryRun bool
}

// UnpackEC2Bundle unpacks a bundle in EC2's own format. Nothing has its name before
// all of it is verified.
func (r *Region) UnpackEC2Bundle(ctx context.Context, in UnpackEC2Input) (EC2Bundle, error) {
	b, out, done, err := r.openEC2Bundle(ctx, in.ReadEC2Input)
	if err != nil {
		return out, err
	}
	defer done()
	if err := r.checkUnpacked(ctx, "The bundle "+out.Name, out.ProductCodes); err != nil {
		return out, err
	}
	if err := checkNewFile(in.File); err != nil {
		return out, err
	}
	if in.DryRun {
		return out, dryRun("unpack %s to %s", out.Manifest, in.File)
	}
	err = durable.WriteFile(in.File, 0o600, func(f *os.File) error { return r.unpackEC2Bundle(ctx, b, f) })
	out.File = in.File
	return out, unpackError(err, in.File, in.From)
}

// unpackError is about a bundle that was unpacked, or about the file.
func unpackError(err error, file, from string) error {
	var known *ami.Error
	switch {
	case errors.As(err, &known): // that it is about the bundle is not of the file
		return known
	case errors.Is(err, ec2ami.ErrWrite), errors.Is(err, syscall.ENOSPC), errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
		return storeError(err, "%s cannot be written.", file)
	}
	return objectError(err, from)
}

// ImportEC2Input asks for a bundle of kami's, of one in EC2's own format.
type ImportEC2Input struct {
	ReadEC2Input
	BundleSpec // what is not said is as the EC2 bundle says
}

// ImportEC2Bundle makes a bundle of one in EC2's own format, once all of that is
// verified.
func (r *Region) ImportEC2Bundle(ctx context.Context, in ImportEC2Input) (Bundle, error) {
	old, said, done, err := r.openEC2Bundle(ctx, in.ReadEC2Input)
	if err != nil {
		return Bundle{}, err
	}
	defer done()
	spec, err := r.specOfEC2(ctx, in.BundleSpec, old.Manifest)
	if err != nil {
		return Bundle{}, err
	}
	store, _, err := r.bundleTarget(ctx, spec) // before it is unpacked for nothing
	if err != nil {
		return Bundle{}, err
	}
	store.Close()
	if in.DryRun {
		return Bundle{}, dryRun("make the bundle %q of %s", spec.Location, said.Manifest)
	}
	scratch, err := durable.NewScratch(r.path("tmp"), "ec2bundle")
	if err != nil {
		return Bundle{}, storeError(err, "No work folder can be made.")
	}
	defer scratch.Close()
	raw := scratch.Path("image")
	if err := r.unpackEC2To(ctx, old, raw); err != nil {
		return Bundle{}, unpackError(err, raw, in.From)
	}
	return r.CreateBundle(ctx, CreateBundleInput{BundleSpec: spec, Source: raw, Kind: string(bundle.KindImage)})
}

// unpackEC2To unpacks to a file for work, which is whole sectors as disks are.
func (r *Region) unpackEC2To(ctx context.Context, b *ec2ami.Bundle, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = r.unpackEC2Bundle(ctx, b, f)
	if err == nil {
		err = f.Truncate((b.Size + 511) / 512 * 512)
	}
	return errors.Join(err, f.Close())
}

// specOfEC2 is what an EC2 bundle says that it is, under what was asked for.
func (r *Region) specOfEC2(ctx context.Context, spec BundleSpec, m ec2ami.Manifest) (BundleSpec, error) {
	if m.Type != ec2ami.TypeMachine {
		return spec, ami.Errorf(ami.CodeUnsupportedOperation, "The bundle %s is a %s, which no bundle is of.", m.Name, m.Type).
			WithHint("Unpack it with --to-file, and kami kernel register it.")
	}
	if spec.Architecture == "" {
		spec.Architecture = ami.Architecture(m.Machine.Architecture)
	}
	if spec.Description == "" {
		spec.Description = "From the EC2 bundle " + m.Name + " of " + m.User
	}
	// Others may be put to it; none is taken away.
	spec.ProductCodes = addCodes(m.Machine.ProductCodes, spec.ProductCodes)
	// The kernels of EC2 were EC2's: those that the region has are meant, no others.
	if spec.KernelID == "" && m.Machine.KernelID != "" {
		_, err := r.ResolveKernel(ctx, m.Machine.KernelID, ami.ImageTypeKernel)
		if err == nil {
			spec.KernelID, spec.RamdiskID = ami.KernelID(m.Machine.KernelID), ami.RamdiskID(m.Machine.RamdiskID)
		} else {
			r.progress.Note("the kernel %s is none of this region: guests start with pv-grub; --kernel names another", m.Machine.KernelID)
		}
	}
	given := spec.BlockDeviceMappings != nil
	for _, d := range m.Machine.Mapping {
		device := "/dev/" + ami.DeviceKey(d.Device)
		one := []ami.BlockDeviceMapping{{DeviceName: device, VirtualName: d.Virtual}}
		switch {
		case d.Virtual == "ami" || d.Virtual == "root":
			if spec.RootDeviceName == "" && ami.CheckDeviceName(device) == nil {
				spec.RootDeviceName = device
			}
		case given:
		case ami.ValidateMapping(append(one, spec.BlockDeviceMappings...)) == nil:
			spec.BlockDeviceMappings = append(spec.BlockDeviceMappings, one...)
		default:
			r.progress.Note("the device %q for %q is left out: it is no ephemeral disk", d.Device, d.Virtual)
		}
	}
	return spec, nil
}

// openEC2Bundle opens a bundle with the keys that are given, or the region's. The
// caller calls done.
func (r *Region) openEC2Bundle(ctx context.Context, in ReadEC2Input) (b *ec2ami.Bundle, out EC2Bundle, done func(), err error) {
	open := ec2ami.OpenInput{Manifest: in.Manifest, Unsigned: in.NoVerifySignature}
	if err := r.ec2ReadKeys(in.EC2Keys, &open); err != nil {
		return nil, out, nil, err
	}
	if open.Store, err = object.Open(ctx, in.From, object.Options{}); err != nil {
		return nil, out, nil, objectError(err, in.From)
	}
	done = func() { open.Store.Close() }
	if b, err = ec2ami.Open(ctx, open); err != nil {
		done()
		return nil, out, nil, objectError(err, in.From)
	}
	if !b.Signed {
		r.progress.Note("the signature of %s was not verified: it is what whoever could write to the store made it", in.Manifest)
	}
	return b, describeEC2Bundle(open.Store, in.Manifest, &b.Manifest, b.Signed), done, nil
}

// ec2ReadKeys collects what may open a bundle: what is given comes first. A key that
// is given stands alone for its user's certificate, which is that key's.
func (r *Region) ec2ReadKeys(in EC2Keys, open *ec2ami.OpenInput) error {
	if in.Cert != "" {
		cert, err := readPEM(in.Cert, ec2ami.ParseCertificate)
		if err != nil {
			return err
		}
		open.Signers = append(open.Signers, cert)
	}
	if in.PrivateKey != "" {
		key, err := readPEM(in.PrivateKey, ec2ami.ParsePrivateKey)
		if err != nil {
			return err
		}
		open.Keys = append(open.Keys, key)
		if in.Cert == "" {
			open.Signers = append(open.Signers, &key.PublicKey)
		}
	}
	for _, name := range []string{r.account, cloudName} {
		pair, ok, err := r.oldEC2Pair(name)
		if err != nil {
			return err
		}
		if ok && in.PrivateKey == "" {
			open.Keys = append(open.Keys, pair.key)
		}
		if ok && in.Cert == "" && name != cloudName {
			open.Signers = append(open.Signers, pair.cert)
		}
	}
	return nil
}

// unpackEC2Bundle unpacks the image to an empty file.
func (r *Region) unpackEC2Bundle(ctx context.Context, b *ec2ami.Bundle, f *os.File) error {
	if err := f.Truncate(b.Size); err != nil {
		return err
	}
	step := r.progress.Step("unpacking "+b.Name, b.Size)
	digested, err := b.Unpack(ctx, f, step.Add)
	step.Done(err)
	if err == nil && digested != ec2ami.DigestOfTar {
		r.progress.Note("the manifest's digest of the image is of %s, as some old tools have it; each part was verified by its own", digested)
	}
	return err
}
