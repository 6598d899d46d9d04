package region

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/launch"
	"github.com/kamivm/kami/pkg/machine"
)

// MaxUserData is EC2's limit on user data, in bytes.
const MaxUserData = 16 << 10

// TagDefaultUser is the tag of an image that names the user to log in as.
const TagDefaultUser = "kami:default-user"

// emulatedCPUs is how many CPUs an emulated guest has, whatever its type, unless
// they were asked for. QEMU before 8.2 can crash where one emulated CPU changes
// the memory map (at boot, when devices are found) while another one reads from
// a device; and hosts without KVM have few cores to spare.
const emulatedCPUs = 1

// maxCount is how many instances one launch makes at most, as many as one host
// is ever asked for on purpose.
const maxCount = 100

// RunInstances launches instances of an image: all of them or none.
func (r *Region) RunInstances(ctx context.Context, in RunInstancesInput) (ami.Reservation, error) {
	in, err := r.templated(ctx, in)
	if err != nil {
		return ami.Reservation{}, err
	}
	image, err := r.ResolveImage(ctx, in.Image, in.Latest)
	if err != nil {
		return ami.Reservation{}, err
	}
	in.InstanceType = typeFor(image, in.InstanceType)
	proto, mapping, err := r.plan(ctx, image, in)
	if err != nil {
		return ami.Reservation{}, err
	}
	driver, err := r.driver(ctx, "")
	if err != nil {
		return ami.Reservation{}, err
	}
	accel, why := accelFor(image.Architecture)
	if accel != machine.AccelKVM {
		if in.RequireKVM {
			return ami.Reservation{}, ami.Errorf(ami.CodeInsufficientInstanceCapacity, "KVM is required and cannot be used: %s.", why).
				WithHint("kami doctor says how to mend it; without --require-kvm the guest runs emulated.")
		}
		r.progress.Note("KVM cannot be used (%s): the guest is emulated, and slower", why)
		if in.CPUs == 0 {
			proto.CPUs = emulatedCPUs
		}
	}
	if proto.Network, err = r.network(ctx, driver, in.Network); err != nil {
		return ami.Reservation{}, err
	}
	proto.NoSeed = r.noSeed(driver, proto, image)
	if image.IsInstanceStore() {
		if err := r.checkRoot(ctx, image); err != nil {
			return ami.Reservation{}, err
		}
	}
	if in.DryRun {
		return ami.Reservation{}, dryRun("launch %d of %s (%s)", max(in.Count, 1), image.ImageID, image.Name)
	}
	proto.Driver, proto.Connect, proto.Accel = driver.Name(), driver.URI(), string(accel)
	res := ami.Reservation{ReservationID: ami.NewReservationID(), OwnerID: r.account}
	for i := range max(in.Count, 1) {
		inst := proto
		inst.ReservationID, inst.AmiLaunchIndex = res.ReservationID, i
		inst, err = r.runOne(ctx, inst, image, mapping, in)
		if err != nil {
			var errs []error
			for _, done := range res.Instances { // all or none
				errs = append(errs, r.unlaunch(context.WithoutCancel(ctx), done))
			}
			return ami.Reservation{}, errors.Join(append([]error{err}, errs...)...)
		}
		res.Instances = append(res.Instances, inst)
	}
	r.noteLaunch(ctx, image.ImageID)
	return res, nil
}

// plan checks a launch as a whole before anything is made, and fills in what
// its instances have in common.
func (r *Region) plan(ctx context.Context, image ami.Image, in RunInstancesInput) (ami.Instance, []ami.BlockDeviceMapping, error) {
	fail := func(err error) (ami.Instance, []ami.BlockDeviceMapping, error) { return ami.Instance{}, nil, err }
	if image.State != ami.ImageAvailable {
		return fail(notAvailable(image))
	}
	if err := r.noteAudit(ctx, image); err != nil {
		return fail(err)
	}
	if in.Count < 0 || in.Count > maxCount {
		return fail(ami.Errorf(ami.CodeInvalidParameterValue, "The count %d is not from 1 to %d.", in.Count, maxCount))
	}
	if err := errors.Join(checkUserData(in.UserData), ami.ValidateTags(in.Tags), checkHostname(in.Hostname), in.MetadataOptions.Validate()); err != nil {
		return fail(err)
	}
	options := in.MetadataOptions.Over(ami.DefaultMetadataOptions(image.ImdsSupport))
	if err := checkToldTags(options, in.Tags); err != nil {
		return fail(err)
	}
	if in.KeyName != "" {
		if _, err := r.keyPair(ctx, in.KeyName); err != nil {
			return fail(err)
		}
	}
	size, err := launch.Type(in.InstanceType)
	if err == nil {
		err = launch.CheckType(size.Name, image.Architecture)
	}
	if err != nil {
		return fail(err)
	}
	if in.CPUs > 0 {
		size.CPUs = in.CPUs
	}
	if in.MemoryMiB > 0 {
		size.MemoryMiB = in.MemoryMiB
	}
	if size.CPUs > 512 || size.MemoryMiB < 64 || size.MemoryMiB > 16<<20 {
		return fail(ami.Errorf(ami.CodeInvalidParameterValue, "%d CPUs with %d MiB cannot be run.", size.CPUs, size.MemoryMiB).
			WithHint("Use 1 to 512 CPUs and from 64 MiB of memory."))
	}
	mapping, err := r.planMapping(image, in.BlockDeviceMappings)
	if err != nil {
		return fail(err)
	}
	if err := r.checkMapping(ctx, mapping, image); err != nil {
		return fail(err)
	}
	if err := r.checkSignedLaunch(ctx, image, mapping); err != nil {
		return fail(err)
	}
	codes, err := r.checkPaid(ctx, image, mapping)
	if err != nil {
		return fail(err)
	}
	pv, asked, boot, err := r.planBoot(ctx, image, in)
	if err != nil {
		return fail(err)
	}
	shutdown, err := planShutdown(image, in.ShutdownBehavior)
	if err != nil {
		return fail(err)
	}
	return ami.Instance{
		OwnerID: r.account, ImageID: image.ImageID, InstanceType: size.Name,
		State: ami.StateRecord(ami.InstancePending), KeyName: in.KeyName,
		Architecture: image.Architecture, VirtualizationType: image.VirtualizationType,
		KernelID: pv.KernelID, RamdiskID: pv.RamdiskID, KernelCmdline: pv.KernelCmdline,
		BootMode: asked, CurrentBootMode: boot, RootDeviceName: image.RootDeviceName, RootDeviceType: image.RootDeviceType,
		ShutdownBehavior: shutdown, Tags: slices.Concat(in.Tags, in.systemTags), CPUs: size.CPUs, MemoryMiB: size.MemoryMiB, Hostname: in.Hostname,
		MetadataOptions: options, ProductCodes: codes, TpmSupport: image.TpmSupport,
		Platform: image.Platform, PlatformDetails: image.PlatformDetails, UsageOperation: image.UsageOperation,
	}, mapping, nil
}

// bootMode resolves what a guest boots with on this host.
func bootMode(asked ami.BootMode, arch ami.Architecture) (ami.BootMode, error) {
	switch asked {
	case "":
		if arch == ami.ArchARM64 {
			return ami.BootUEFI, nil
		}
		return ami.BootLegacyBIOS, nil
	case ami.BootLegacyBIOS, ami.BootUEFI:
		return asked, nil
	case ami.BootUEFIPreferred:
		if arch != ami.ArchI386 && hasUEFI() {
			return ami.BootUEFI, nil
		}
		return ami.BootLegacyBIOS, nil
	}
	return "", ami.Errorf(ami.CodeInvalidParameterValue, "The boot mode %q is not one of legacy-bios, uefi and uefi-preferred.", asked)
}

// checkMapping finds snapshots that are not there or do not fit, all at once. Those
// of others are there through an image that is launched.
func (r *Region) checkMapping(ctx context.Context, mapping []ami.BlockDeviceMapping, through ...ami.Image) error {
	var errs []error
	for _, m := range mapping {
		if m.Ebs == nil || m.Ebs.SnapshotID == "" {
			continue
		}
		snap, err := r.snapshot(ctx, m.Ebs.SnapshotID, through...)
		if err == nil {
			err = checkCompleted(snap)
		}
		if err == nil {
			_, err = r.keyFor(ctx, m.Ebs.Encrypted, m.Ebs.KmsKeyID, snap, true)
		}
		switch {
		case err != nil:
			errs = append(errs, err)
		case m.Ebs.VolumeSize != nil && *m.Ebs.VolumeSize < snap.VolumeSize:
			errs = append(errs, ami.Errorf(ami.CodeInvalidBlockDeviceMapping,
				"Volume of size %dGB is smaller than snapshot '%s', expect size >= %dGB (device %s).", *m.Ebs.VolumeSize, snap.SnapshotID, snap.VolumeSize, m.DeviceName))
		}
	}
	return errors.Join(errs...)
}

// runOne launches one instance. When it fails nothing of it is left.
func (r *Region) runOne(ctx context.Context, inst ami.Instance, image ami.Image, mapping []ami.BlockDeviceMapping, in RunInstancesInput) (ami.Instance, error) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	inst.InstanceID, inst.LaunchTime, inst.MAC = in.instanceID, now, launch.NewMAC()
	inst.UsageOperationTime = now
	if inst.InstanceID == "" {
		inst.InstanceID = ami.NewInstanceID()
	}
	if inst.Hostname == "" {
		inst.Hostname = launch.Hostname(inst.InstanceID)
	}
	vols, err := r.planVolumes(ctx, &inst, image, mapping, now)
	if err != nil {
		return inst, err
	}
	j, err := r.beginBased(ctx, image, inst, vols, func(tx *catalog.Tx) error {
		if err := errors.Join(checkBooted(tx, inst.KernelID, inst.RamdiskID), r.checkLaunched(tx, &inst, vols)); err != nil {
			return err
		}
		for i := range vols {
			if err := r.beginVolume(tx, &vols[i]); err != nil {
				return err
			}
		}
		return tx.PutInstance(inst)
	})
	if err != nil {
		return inst, storeError(err, "The instance cannot be recorded.")
	}
	defer j.close(ctx)
	for _, v := range vols {
		if _, err := r.layers.CreateHead(v.VolumeID, v.SizeBytes, v.Layer, v.KmsKeyID); err != nil {
			return inst, storeError(err, "The volume %s cannot be made.", v.VolumeID)
		}
	}
	durable.Step("launch.heads")
	if err := r.writeIdentity(ctx, inst, image, in); err != nil {
		return inst, err
	}
	if inst, err = r.start(ctx, inst); err != nil {
		return inst, err
	}
	durable.Step("launch.started")
	inst.State = ami.StateRecord(ami.InstanceRunning)
	err = j.commit(ctx, func(tx *catalog.Tx) error {
		now, err := tx.Instance(inst.InstanceID)
		if err == nil && now.State.Name != ami.InstancePending {
			err = incorrectState(now, "launched", "pending")
		}
		if err != nil {
			return err
		}
		inst.Tags = now.Tags // which others may have changed
		for _, v := range vols {
			v.State = ami.VolumeInUse
			if err := finishVolume(tx, &v); err != nil {
				return err
			}
		}
		return tx.PutInstance(inst)
	})
	return inst, storeError(err, "The instance %s cannot be recorded.", inst.InstanceID)
}

// planVolumes turns the mapping into volume records, which beginVolume completes,
// and fills in the devices of the instance.
func (r *Region) planVolumes(ctx context.Context, inst *ami.Instance, image ami.Image, mapping []ami.BlockDeviceMapping, now time.Time) ([]ami.Volume, error) {
	var vols []ami.Volume
	for _, m := range mapping {
		v := ami.Volume{
			VolumeID: ami.NewVolumeID(), OwnerID: r.account, VolumeType: "gp3", State: ami.VolumeCreating, CreateTime: now,
		}
		del := true
		if m.VirtualName != "" {
			if err := r.planVirtual(ctx, image, m, &v); err != nil {
				return nil, err
			}
		} else {
			if m.Ebs.VolumeType != "" {
				v.VolumeType = m.Ebs.VolumeType
			}
			if m.Ebs.DeleteOnTermination != nil {
				del = *m.Ebs.DeleteOnTermination
			}
			var snap ami.Snapshot
			var err error
			if m.Ebs.SnapshotID != "" {
				if snap, err = r.snapshot(ctx, m.Ebs.SnapshotID, image); err != nil {
					return nil, err
				}
				v.SnapshotID, v.Size, v.SizeBytes = snap.SnapshotID, snap.VolumeSize, snap.SizeBytes
			}
			if s := m.Ebs.VolumeSize; s != nil && *s*gib > v.SizeBytes && *s > v.Size {
				v.Size, v.SizeBytes = *s, *s*gib
			}
			if v.KmsKeyID, err = r.keyFor(ctx, m.Ebs.Encrypted, m.Ebs.KmsKeyID, snap, false); err != nil {
				return nil, err
			}
			v.Encrypted = v.KmsKeyID != ""
		}
		v.Attachments = []ami.VolumeAttachment{{
			VolumeID: v.VolumeID, InstanceID: inst.InstanceID, Device: m.DeviceName,
			State: "attached", DeleteOnTermination: del, AttachTime: now,
		}}
		bd := ami.InstanceBlockDevice{DeviceName: m.DeviceName, Virtual: m.VirtualName, Ebs: ami.InstanceBlockEBS{
			VolumeID: v.VolumeID, DeleteOnTermination: del, AttachTime: now, Status: "attached",
		}}
		inst.BlockDeviceMappings = append(slices.Clone(inst.BlockDeviceMappings), bd)
		vols = append(vols, v)
	}
	return vols, nil
}

// writeIdentity makes the instance's folder: what the guest is told and its
// variables.
func (r *Region) writeIdentity(ctx context.Context, inst ami.Instance, image ami.Image, in RunInstancesInput) error {
	dir := r.instanceDir(inst.InstanceID)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return storeError(err, "The instance's folder cannot be made.")
	}
	driver, err := r.driver(ctx, inst.Connect)
	if err != nil {
		return err
	}
	_, err = r.startMetadata(ctx, driver, inst, func(md *ami.Metadata) {
		md.UserData = in.UserData
		for _, key := range in.publicKeys {
			md.PublicKeys = append(md.PublicKeys, ami.PublicKey{Name: "build", Key: key})
		}
	})
	if err != nil {
		return err
	}
	return r.writeVariables(inst, image)
}

func (r *Region) seedPath(id ami.InstanceID) string {
	return r.path("instances", string(id), "seed.iso")
}

func (r *Region) nvramPath(id ami.InstanceID) string {
	return r.path("instances", string(id), "nvram.fd")
}

func (r *Region) consolePath(id ami.InstanceID) string {
	return r.path("instances", string(id), "console.log")
}

// track says which dirty bitmap a fresh head of v has.
func (r *Region) track(v *ami.Volume) {
	v.TrackedBy, v.TrackedLayer = fmt.Sprint(bitmapName(v.Layer)), v.Layer
}
