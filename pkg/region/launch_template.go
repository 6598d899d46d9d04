package region

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/launch"
)

// maxTemplateVersions is EC2's limit.
const maxTemplateVersions = 10000

// TemplateInput asks for a launch template, or for a version of one.
type TemplateInput struct {
	Name        string
	Description string // of the version
	// SourceVersion is what a new version takes from what it does not say: a number,
	// $Latest or $Default; "" is nothing.
	SourceVersion string
	Default       bool // make the new version the default
	Data          ami.LaunchTemplateData
	DryRun        bool
}

// LaunchTemplates returns the caller's launch templates, oldest first.
func (r *Region) LaunchTemplates(ctx context.Context) (all []ami.LaunchTemplate, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		all, err = tx.Templates(r.account)
		return r.legible(err)
	})
	for _, t := range all {
		markDefault(t)
	}
	return all, storeError(err, "The launch templates cannot be read.")
}

// LaunchTemplate returns one of the caller's launch templates by its name or id.
func (r *Region) LaunchTemplate(ctx context.Context, ref string) (t ami.LaunchTemplate, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		if t, err = tx.Template(r.account, ref); err != nil {
			return notFoundOr(err, notFoundTemplate(ref))
		}
		return nil
	})
	markDefault(t)
	return t, storeError(err, "The launch template %s cannot be read.", ref)
}

// markDefault says of each version of a launch template whether it is the default, which
// it was not always.
func markDefault(t ami.LaunchTemplate) {
	for i, v := range t.Versions {
		t.Versions[i].DefaultVersion = v.VersionNumber == t.DefaultVersionNumber
	}
}

func notFoundTemplate(ref string) error {
	return ami.Errorf(ami.CodeTemplateNotFound, "The specified launch template, with template name %s, does not exist.", ref).
		WithHint("kami template list shows those there are.")
}

// CreateLaunchTemplate makes a launch template with its version 1, the default.
func (r *Region) CreateLaunchTemplate(ctx context.Context, in TemplateInput) (ami.LaunchTemplate, error) {
	t := ami.LaunchTemplate{
		LaunchTemplateID: ami.NewLaunchTemplateID(), LaunchTemplateName: in.Name, OwnerID: r.account, CreateTime: r.now(),
		DefaultVersionNumber: 1, LatestVersionNumber: 1,
	}
	if err := errors.Join(ami.CheckTemplateName(in.Name), checkTemplate(in)); err != nil {
		return t, err
	}
	t.Versions = []ami.LaunchTemplateVersion{{VersionNumber: 1, VersionDescription: in.Description, CreateTime: t.CreateTime, DefaultVersion: true, LaunchTemplateData: in.Data}}
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		err := tx.PutTemplate(t)
		if err == nil && in.DryRun {
			err = dryRun("make the launch template %s", in.Name)
		}
		return err
	})
	if errors.Is(err, catalog.ErrExists) {
		return t, ami.Errorf(ami.CodeTemplateExists, "Launch template name already in use: %s.", in.Name).
			WithHint("kami template version %s makes another version of it.", in.Name)
	}
	return t, storeError(err, "The launch template cannot be recorded.")
}

// CreateLaunchTemplateVersion adds a version to a launch template.
func (r *Region) CreateLaunchTemplateVersion(ctx context.Context, in TemplateInput) (ami.LaunchTemplate, error) {
	if err := checkTemplate(in); err != nil {
		return ami.LaunchTemplate{}, err
	}
	return r.editTemplate(ctx, in.Name, func(t *ami.LaunchTemplate) error {
		data := in.Data
		if in.SourceVersion != "" {
			from, err := t.Version(in.SourceVersion)
			if err != nil {
				return err
			}
			data = data.Over(from.LaunchTemplateData)
		}
		if len(t.Versions) >= maxTemplateVersions {
			return ami.Errorf(ami.CodeResourceLimitExceeded, "The launch template %s has %d versions, and no more are allowed.", in.Name, maxTemplateVersions)
		}
		t.LatestVersionNumber++
		t.Versions = append(t.Versions, ami.LaunchTemplateVersion{
			VersionNumber: t.LatestVersionNumber, VersionDescription: in.Description, CreateTime: r.now(), LaunchTemplateData: data,
		})
		if in.Default {
			t.DefaultVersionNumber = t.LatestVersionNumber
		}
		if in.DryRun {
			return dryRun("make version %d of the launch template %s", t.LatestVersionNumber, in.Name)
		}
		return nil
	})
}

// SetDefaultTemplateVersion makes a version of a launch template its default.
func (r *Region) SetDefaultTemplateVersion(ctx context.Context, ref, version string, dry bool) (ami.LaunchTemplate, error) {
	return r.editTemplate(ctx, ref, func(t *ami.LaunchTemplate) error {
		v, err := t.Version(version)
		if err != nil {
			return err
		}
		t.DefaultVersionNumber = v.VersionNumber
		if dry {
			return dryRun("make version %d the default of %s", v.VersionNumber, ref)
		}
		return nil
	})
}

// DeleteLaunchTemplate deletes a launch template, or with a version that alone. The
// default version is not deleted alone, and a template not while a group launches it or is
// rolled to it.
func (r *Region) DeleteLaunchTemplate(ctx context.Context, ref, version string, dry bool) error {
	if version != "" {
		_, err := r.editTemplate(ctx, ref, func(t *ami.LaunchTemplate) error {
			v, err := t.Version(version)
			if err != nil {
				return err
			}
			if v.DefaultVersion {
				return ami.Errorf(ami.CodeInvalidParameterValue, "The version %d of %s is the default, and cannot be deleted.", v.VersionNumber, t.LaunchTemplateName).
					WithHint("Make another one the default: kami template default %s:VERSION.", t.LaunchTemplateName)
			}
			t.Versions = slices.DeleteFunc(t.Versions, func(o ami.LaunchTemplateVersion) bool { return o.VersionNumber == v.VersionNumber })
			if dry {
				return dryRun("delete the version %d of %s", v.VersionNumber, ref)
			}
			return nil
		})
		return err
	}
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		t, err := tx.Template(r.account, ref)
		if err != nil {
			return notFoundOr(err, notFoundTemplate(ref))
		}
		groups, err := tx.Groups(r.account)
		if err := r.legible(err); err != nil {
			return err
		}
		for _, g := range groups {
			of := []string{g.Launch.Template}
			if g.Refresh != nil && g.Refresh.Status == ami.RefreshInProgress {
				of = append(of, g.Refresh.Target.Template)
			}
			if slices.ContainsFunc(of, func(ref string) bool {
				name, _ := ami.ParseTemplateRef(ref)
				return name == t.LaunchTemplateName || name == string(t.LaunchTemplateID)
			}) {
				return ami.Errorf(ami.CodeGroupInUse, "The launch template %s is what the group %s launches.", t.LaunchTemplateName, g.GroupName).
					WithHint("kami group set %s --template OTHER, or delete the group.", g.GroupName)
			}
		}
		if dry {
			return dryRun("delete the launch template %s", ref)
		}
		return tx.DeleteTemplate(t.LaunchTemplateID)
	})
	return storeError(err, "The launch template %s cannot be deleted.", ref)
}

func (r *Region) editTemplate(ctx context.Context, ref string, edit func(*ami.LaunchTemplate) error) (t ami.LaunchTemplate, err error) {
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if t, err = tx.Template(r.account, ref); err != nil {
			return notFoundOr(err, notFoundTemplate(ref))
		}
		if err := edit(&t); err != nil {
			return err
		}
		markDefault(t)
		return tx.PutTemplate(t)
	})
	return t, storeError(err, "The launch template %s cannot be changed.", ref)
}

// checkTemplate checks what is wrong in every launch. What depends on what there is
// then (images, keys) is checked by the launch, as on EC2.
func checkTemplate(in TemplateInput) error {
	if len(in.Description) > 255 {
		return ami.Errorf(ami.CodeInvalidParameterValue, "The description has %d characters; at most 255 are allowed.", len(in.Description))
	}
	d := in.Data
	errs := []error{checkUserData(d.UserData), ami.ValidateTags(d.Tags), d.MetadataOptions.Validate()}
	if d.InstanceType != "" {
		_, err := launch.Type(d.InstanceType)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// templated is a launch with what its template says and it does not.
func (r *Region) templated(ctx context.Context, in RunInstancesInput) (RunInstancesInput, error) {
	if in.Template == "" {
		return in, nil
	}
	name, version := ami.ParseTemplateRef(in.Template)
	t, err := r.LaunchTemplate(ctx, name)
	if err != nil {
		return in, err
	}
	v, err := t.Version(version)
	if err != nil {
		return in, err
	}
	in = in.with(in.data().Over(v.LaunchTemplateData))
	in.systemTags = append(in.systemTags, ami.Tag{Key: ami.TagTemplateID, Value: string(t.LaunchTemplateID)},
		ami.Tag{Key: ami.TagTemplateVersion, Value: strconv.FormatInt(v.VersionNumber, 10)})
	if in.Image == "" {
		return in, ami.Errorf(ami.CodeMissingParameter, "The request must contain the parameter ImageId: the launch template %s:%d has none.", name, v.VersionNumber).
			WithHint("Name an image beside the template.")
	}
	return in, nil
}

// data is what a launch has in common with a template.
func (in RunInstancesInput) data() ami.LaunchTemplateData {
	return ami.LaunchTemplateData{
		ImageID: in.Image, InstanceType: in.InstanceType, KeyName: in.KeyName, UserData: in.UserData, BlockDeviceMappings: in.BlockDeviceMappings,
		ShutdownBehavior: in.ShutdownBehavior, MetadataOptions: in.MetadataOptions, KernelID: in.KernelID, RamdiskID: in.RamdiskID, Tags: in.Tags,
		CPUs: in.CPUs, MemoryMiB: in.MemoryMiB, BootMode: in.BootMode, Network: in.Network, KernelCmdline: in.KernelCmdline, RequireKVM: in.RequireKVM,
	}
}

// with is a launch that has what a template says.
func (in RunInstancesInput) with(d ami.LaunchTemplateData) RunInstancesInput {
	in.Image, in.InstanceType, in.KeyName, in.UserData, in.BlockDeviceMappings = d.ImageID, d.InstanceType, d.KeyName, d.UserData, d.BlockDeviceMappings
	in.ShutdownBehavior, in.MetadataOptions, in.KernelID, in.RamdiskID, in.Tags = d.ShutdownBehavior, d.MetadataOptions, d.KernelID, d.RamdiskID, d.Tags
	in.CPUs, in.MemoryMiB, in.BootMode, in.Network, in.KernelCmdline, in.RequireKVM = d.CPUs, d.MemoryMiB, d.BootMode, d.Network, d.KernelCmdline, d.RequireKVM
	return in
}

// TemplateDataOf is what a template is to say of a launch.
func TemplateDataOf(in RunInstancesInput) ami.LaunchTemplateData { return in.data() }
