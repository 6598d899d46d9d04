package region

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/build"
	"github.com/kamivm/kami/pkg/recipe"
)

// TagRecipe is the tag of an image that names the recipe it was built from.
const TagRecipe = "kami:recipe"

// builderPrefix begins the lease of a guest that is being changed by a build.
const builderPrefix = "build-"

// buildLimit bounds how long the guest of a build may take to boot.
const buildLimit = 10 * time.Minute

// buildFrom makes an image by changing a booted guest of another one: the way
// in which EC2 images are made. The guest is gone when it returns.
func (r *Region) buildFrom(ctx context.Context, rec recipe.Recipe, in BuildInput) (image ami.Image, err error) {
	base, err := r.baseOf(ctx, rec.From, in.VirtualizationType, rec.Architecture)
	if err != nil {
		return ami.Image{}, err
	}
	key, err := build.NewKey()
	if err != nil {
		return ami.Image{}, storeError(err, "No key can be made for the build.")
	}
	id := ami.NewInstanceID()
	// Held until the guest is gone, so that what a killed build leaves running
	// is found and ended by the next command.
	j, err := r.begin(ctx, nil, builderPrefix+string(id))
	if err != nil {
		return ami.Image{}, storeError(err, "The build cannot be recorded.")
	}
	defer j.close(ctx)
	guest := RunInstancesInput{
		Image: string(base.ImageID), InstanceType: "t3.small", MemoryMiB: rec.Memory, Count: 1,
		Tags:       []ami.Tag{{Key: "Name", Value: "build of " + rec.Name}},
		publicKeys: []string{key.Public()}, instanceID: id,
	}
	if _, err := r.RunInstances(ctx, guest); err != nil {
		return ami.Image{}, err
	}
	if err := r.change(ctx, id, rec, key); err != nil {
		if in.Keep && !errors.Is(err, context.Canceled) {
			j.abandon(ctx)
			return ami.Image{}, r.changeFailed(err, rec.Name, id, true)
		}
		return ami.Image{}, r.changeFailed(err, rec.Name, id, false)
	}
	if _, err := r.StopInstances(ctx, StopInput{InstanceIDs: []ami.InstanceID{id}}); err != nil {
		return ami.Image{}, err
	}
	tags := in.Tags
	if rec.User != "" {
		tags = withTag(tags, TagDefaultUser, rec.User)
	}
	return r.saveBuilder(ctx, id, rec, in, tags)
}

// baseOf finds the image that a recipe stands on: by id, by name, or the newest
// one that was built from the recipe of that name, hvm unless virtualization says
// otherwise.
func (r *Region) baseOf(ctx context.Context, from, virtualization string, arch ami.Architecture) (ami.Image, error) {
	base, err := r.ResolveImage(ctx, from, false)
	if err == nil && base.IsInstanceStore() {
		return base, ami.Errorf(ami.CodeInvalidParameterCombination, "The recipe stands on %q, whose guests cannot be stopped: its root is of instance-store, not of ebs.", from)
	}
	if err == nil && virtualization != "" && base.VirtualizationType != virtualization {
		return base, ami.Errorf(ami.CodeInvalidParameterCombination, "The recipe stands on %q, which is %s, not %s.", from, base.VirtualizationType, virtualization)
	}
	if err == nil || ami.ErrorCode(err) != ami.CodeInvalidAMIIDNotFound {
		return base, err
	}
	how := from
	if arch != ami.ArchX8664 {
		how += " --architecture " + string(arch)
	}
	if virtualization == ami.VirtualizationParavirtual {
		how += " --virtualization-type paravirtual"
	} else {
		virtualization = ami.VirtualizationHVM
	}
	built, ferr := r.DescribeImages(ctx, DescribeInput{Filters: []Filter{
		{Name: "tag:" + TagRecipe, Values: []string{from}},
		{Name: "state", Values: []string{string(ami.ImageAvailable)}},
		{Name: "virtualization-type", Values: []string{virtualization}},
		{Name: "architecture", Values: []string{string(arch)}},
		{Name: "root-device-type", Values: []string{ami.RootDeviceEBS}},
	}})
	if ferr != nil {
		return ami.Image{}, ferr
	}
	if len(built) == 0 {
		return ami.Image{}, ami.Errorf(ami.CodeInvalidAMIIDNotFound, "The recipe stands on %q, and there is no image of that id or name, nor one built from that recipe as %s.", from, virtualization).
			WithHint("kami build %s makes it.", how)
	}
	return slices.MaxFunc(built, func(a, b ami.Image) int { return a.CreationDate.Compare(b.CreationDate) }), nil
}

// change waits for the guest and has the recipe change it.
func (r *Region) change(ctx context.Context, id ami.InstanceID, rec recipe.Recipe, key build.Key) error {
	if _, err := r.WaitInstance(ctx, id, WaitSSH, buildLimit); err != nil {
		return err
	}
	target, err := r.SSH(ctx, id)
	if err != nil {
		return err
	}
	return build.Guest{
		Recipe: rec, Address: net.JoinHostPort(target.Host, strconv.Itoa(target.Port)), User: target.User, Key: key, Progress: r.progress,
	}.Change(ctx)
}

// changeFailed says what a failed build in a guest printed.
func (r *Region) changeFailed(err error, name string, id ami.InstanceID, kept bool) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	var known *ami.Error
	var step *build.StepError
	if !errors.As(err, &step) && errors.As(err, &known) {
		return err
	}
	if e := packagesMissing(err, name); e != nil && !kept {
		return e
	}
	e := ami.Errorf(ami.CodeInvalidParameterValue, "The build of %s failed: %w", name, err)
	if step != nil && step.Output != "" {
		e.Message += "\nThe last lines of its output:\n" + indent(step.Output)
	}
	e.Hint = "With --keep the guest of a failed build is kept running for a look."
	if kept {
		e.Hint = "The guest is kept: kami console " + string(id) + " shows what it writes; kami instance terminate " + string(id) + " ends it."
	}
	return e
}

// undoBuilder ends the guest of a build that is over.
func (r *Region) undoBuilder(ctx context.Context, id ami.InstanceID) error {
	inst, err := r.instance(ctx, id)
	if ami.ErrorCode(err) == ami.CodeInvalidInstanceIDNotFound {
		return nil // it never came to be
	}
	if err != nil || inst.State.Name == ami.InstanceTerminated {
		return err
	}
	if inst.State.Name == ami.InstancePending {
		return r.undoInstance(ctx, id)
	}
	return r.terminate(ctx, inst, true)
}

// withTag adds a tag unless there is one of that key.
func withTag(tags []ami.Tag, key, value string) []ami.Tag {
	if slices.ContainsFunc(tags, func(t ami.Tag) bool { return t.Key == key }) {
		return tags
	}
	return append(slices.Clone(tags), ami.Tag{Key: key, Value: value})
}
