package region

import (
	"context"
	"errors"
	"fmt"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/hypervisor"
)

// A guest's metadata are written down when it starts, in its folder, and again
// when a fact changes that it is told of at once (tags, options, user data). Who
// answers for a connection of the guest's reads that file and nothing else, so
// that it is quick, and a guest has no way to anything but its own facts.

// AvailabilityZone is the one zone of a region, of that name.
func AvailabilityZone(region string) string { return region + "a" }

// maxAncestors bounds how far an image's descent is told.
const maxAncestors = 64

// Metadata returns what an instance's guest is told of itself. It returns
// InvalidInstanceID.NotFound, and IncorrectInstanceState for one that has ended.
func (r *Region) Metadata(ctx context.Context, id ami.InstanceID) (ami.Metadata, error) {
	inst, err := r.ownRecord(ctx, id)
	if err != nil {
		return ami.Metadata{}, err
	}
	md, err := readMetadata(r.metadataPath(id))
	if errors.Is(err, errNoMetadata) { // of a guest of an older kami's
		md, err = r.facts(ctx, nil, inst)
	}
	if err == nil {
		err = r.identify(ctx, &md)
	}
	return md, storeError(err, "The metadata of %s cannot be told.", id)
}

// ownRecord is the record of one of the caller's instances that has not ended,
// without asking what its guest does.
func (r *Region) ownRecord(ctx context.Context, id ami.InstanceID) (inst ami.Instance, err error) {
	if _, err := ami.ParseInstanceID(string(id)); err != nil {
		return inst, err
	}
	err = r.catalog.View(ctx, func(tx *catalog.Tx) (err error) {
		inst, err = tx.Instance(id)
		return err
	})
	switch {
	case errors.Is(err, catalog.ErrNotFound), err == nil && (inst.OwnerID != r.account || isPast(inst)):
		return inst, notFoundInstance(id)
	case err == nil && inst.State.Name == ami.InstanceTerminated:
		return inst, incorrectState(inst, "asked for its metadata", "running or stopped")
	}
	return inst, storeError(err, "The instance %s cannot be read.", id)
}

// facts puts together what the guest of inst is told when it starts under
// driver, which is nil where that is not known. Who it lets in and its user data
// are the launch's to say, and not among them.
func (r *Region) facts(ctx context.Context, driver hypervisor.Driver, inst ami.Instance) (ami.Metadata, error) {
	md := ami.Metadata{
		InstanceID: inst.InstanceID, ImageID: inst.ImageID, ReservationID: inst.ReservationID, LaunchIndex: inst.AmiLaunchIndex,
		OwnerID: inst.OwnerID, InstanceType: inst.InstanceType, Architecture: inst.Architecture, Virtualization: inst.VirtualizationType,
		KernelID: inst.KernelID, RamdiskID: inst.RamdiskID, LaunchTime: inst.LaunchTime, Hostname: inst.Hostname, MAC: inst.MAC,
		Region: r.opts.Name, AvailabilityZone: AvailabilityZone(r.opts.Name), RootDeviceName: inst.RootDeviceName,
		Devices: metadataDevices(inst), ProductCodes: ami.ProductCodeIDs(inst.ProductCodes),
	}
	if inst.KeyName != "" {
		key, err := r.keyPair(ctx, inst.KeyName)
		if err == nil {
			md.PublicKeys = []ami.PublicKey{{Name: key.KeyName, Key: key.PublicKey}}
		} else if ami.ErrorCode(err) != ami.CodeInvalidKeyPairNotFound { // deleted since
			return md, err
		}
	}
	if servesMetadata(driver, inst) {
		md.PrivateIP, md.Subnet = hypervisor.MetadataGuest, hypervisor.MetadataNetwork
	}
	tell(&md, inst)
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		image, err := tx.Image(inst.ImageID)
		if inst.IsInstanceStore() {
			md.ManifestPath = image.ImageLocation
		}
		for err == nil && image.SourceImageID != "" && len(md.Ancestors) < maxAncestors {
			md.Ancestors = append(md.Ancestors, image.SourceImageID)
			image, err = tx.Image(image.SourceImageID)
		}
		if errors.Is(err, catalog.ErrNotFound) { // forgotten since
			return nil
		}
		return err
	})
	return md, storeError(err, "The image of %s cannot be read.", inst.InstanceID)
}

// tell puts into md what a running guest is told at once.
func tell(md *ami.Metadata, inst ami.Instance) {
	md.Options = inst.MetadataOptions.Over(ami.DefaultMetadataOptions(""))
	if md.Tags = nil; md.Options.InstanceTags == ami.Enabled {
		md.Tags = inst.Tags
	}
}

// metadataDevices gives the devices of an instance the names that the metadata
// have for them. The root has its own place.
func metadataDevices(inst ami.Instance) []ami.MetadataDevice {
	devices := []ami.MetadataDevice{}
	volumes := 0
	for _, bd := range inst.BlockDeviceMappings {
		name := bd.Virtual
		switch {
		case sameDevice(bd.DeviceName, inst.RootDeviceName):
			continue
		case name == "":
			volumes++
			name = fmt.Sprint("ebs", volumes)
		}
		devices = append(devices, ami.MetadataDevice{Name: name, Device: bd.DeviceName})
	}
	return devices
}

// servesMetadata says whether the guest of inst reaches the metadata service.
func servesMetadata(driver hypervisor.Driver, inst ami.Instance) bool {
	return inst.Network == "" && driver != nil && hypervisor.RunsMetadata(driver)
}

// metadataProgram is what the hypervisor runs for each connection of the guest's
// to the metadata service; nil for none. It is given to QEMU once and is run as
// long as the guest lives, also by a newer kami at the same path: the words here
// stay what they are.
func (r *Region) metadataProgram(driver hypervisor.Driver, inst ami.Instance) []string {
	if r.opts.Program == "" || !servesMetadata(driver, inst) {
		return nil
	}
	return []string{r.opts.Program, "imds", "answer", "--home", r.opts.Home, "--region", r.opts.Name, string(inst.InstanceID)}
}

// noSeed says whether a launch can leave the seed to the metadata service: the
// image's software is known to ask there. A paravirtual guest has no SMBIOS that
// would tell it to.
func (r *Region) noSeed(driver hypervisor.Driver, inst ami.Instance, image ami.Image) bool {
	return image.ImdsSupport == ami.IMDSv2 && image.VirtualizationType != ami.VirtualizationParavirtual && inst.MetadataOptions.HTTPEndpoint == ami.Enabled && r.metadataProgram(driver, inst) != nil
}

func checkImdsSupport(version string) error {
	if version == "" || version == ami.IMDSv2 {
		return nil
	}
	return ami.Errorf(ami.CodeInvalidParameterValue, "The metadata support %q is not %s.", version, ami.IMDSv2)
}
