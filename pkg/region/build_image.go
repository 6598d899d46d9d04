package region

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/build"
	"github.com/kamivm/kami/pkg/disk/foreign"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/recipe"
)

// BuildImage makes a registered image from a recipe.
func (r *Region) BuildImage(ctx context.Context, in BuildInput) (ami.Image, error) {
	dir, err := r.recipeDir(in.Recipe)
	if err != nil {
		return ami.Image{}, err
	}
	rec, err := recipe.Load(dir)
	if err != nil {
		return ami.Image{}, ami.Errorf(ami.CodeInvalidParameterValue, "The recipe %s has faults:\n%w", dir, err).
			WithHint("Mend them and build again; docs/recipes.md says what each field means.")
	}
	if rec, err = rec.Built(in.Architecture, in.SecureBoot); err != nil {
		return ami.Image{}, ami.Errorf(ami.CodeInvalidParameterCombination, "%s cannot be built so: %w.", rec.Name, err)
	}
	if in.Name == "" {
		in.Name = rec.Name + "-" + time.Now().UTC().Format("20060102-150405")
	}
	if in.Description == "" {
		in.Description = rec.Description
	}
	if err := r.checkNewName(ctx, in.Name, in.Description, in.Tags); err != nil {
		return ami.Image{}, err
	}
	if rec.From == "" && in.VirtualizationType == "" {
		in.VirtualizationType = rec.VirtualizationType
	}
	virtualization, pv, err := r.bootOf(ctx, in.VirtualizationType, rec.Architecture, PVBoot{})
	if err != nil {
		return ami.Image{}, err
	}
	if err := r.checkBuildRoot(ctx, in); err != nil {
		return ami.Image{}, err
	}
	if rec.SecureBoot {
		if err := checkSecureBuild(rec, in); err != nil {
			return ami.Image{}, err
		}
	}
	if in.DryRun {
		return ami.Image{}, dryRun("build %s as %q", rec.Name, in.Name)
	}
	if rec.From != "" {
		return r.buildFrom(ctx, rec, in)
	}
	scratch, err := durable.NewScratch(r.path("tmp"), "build")
	if err != nil {
		return ami.Image{}, storeError(err, "No work folder can be made.")
	}
	defer scratch.Close()
	res, err := build.Build(ctx, build.Options{
		Recipe: rec, Tmp: scratch.Dir(), Progress: r.progress, Mirrors: in.Mirrors, Paravirtual: virtualization == ami.VirtualizationParavirtual,
	})
	if err != nil {
		return ami.Image{}, r.buildFailed(err, rec.Name, scratch, in.Keep)
	}
	raw, err := os.Open(res.RawDisk)
	if err != nil {
		return ami.Image{}, storeError(err, "The disk that was built cannot be read.")
	}
	defer raw.Close()
	src, err := qcow2.RawSource(raw)
	if err != nil {
		return ami.Image{}, storeError(err, "The disk that was built cannot be read.")
	}
	if in.RootDeviceType == ami.RootDeviceInstanceStore {
		return r.bundleBuilt(ctx, in, rec, virtualization, res, src)
	}
	image := r.newImage(in.Name, in.Description, in.Tags)
	image.Architecture, image.BootMode = res.Architecture, res.BootMode
	image.VirtualizationType, image.KernelID, image.ImdsSupport = virtualization, pv.KernelID, rec.ImdsSupport
	if res.RootDeviceName != "" {
		image.RootDeviceName = res.RootDeviceName
	}
	if res.DefaultUser != "" {
		image.Tags = withTag(image.Tags, TagDefaultUser, res.DefaultUser)
	}
	image.Tags = withTag(image.Tags, TagRecipe, rec.Name)
	if rec.SecureBoot && virtualization == ami.VirtualizationHVM {
		return r.adoptSecure(ctx, image, src, rec.Name, in.NoRelative)
	}
	return r.adopt(ctx, image, []foreign.Disk{{Source: src}}, "Built from "+rec.Name, in.NoRelative)
}

// recipeDir finds a recipe by its folder or by its name.
func (r *Region) recipeDir(ref string) (string, error) {
	if _, err := os.Stat(filepath.Join(ref, "recipe.yaml")); err == nil {
		return ref, nil
	}
	var looked []string
	if !strings.ContainsRune(ref, filepath.Separator) {
		for _, dir := range r.opts.RecipesDirs {
			if _, err := os.Stat(filepath.Join(dir, ref, "recipe.yaml")); err == nil {
				return filepath.Join(dir, ref), nil
			}
			looked = append(looked, dir)
		}
	}
	e := ami.Errorf(ami.CodeInvalidParameterValue, "There is no recipe %q.", ref)
	if len(looked) > 0 {
		return "", e.WithHint("Give a folder with a recipe.yaml, or a name in %s.", strings.Join(looked, ", "))
	}
	return "", e.WithHint("Give a folder with a recipe.yaml.")
}

// buildFailed says what a failed build printed, and keeps its files on request.
func (r *Region) buildFailed(err error, name string, scratch *durable.Scratch, keep bool) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	if e := packagesMissing(err, name); e != nil && !keep {
		return e
	}
	e := ami.Errorf(ami.CodeInvalidParameterValue, "The build of %s failed: %w", name, err)
	var step *build.StepError
	if errors.As(err, &step) && step.Output != "" {
		e.Message += "\nThe last lines of its output:\n" + indent(step.Output)
	}
	e.Hint = "With --keep the files of a failed build are kept for a look."
	if keep {
		kept := r.path("kept", fmt.Sprintf("%s-%d", name, time.Now().Unix()))
		err := os.MkdirAll(filepath.Dir(kept), 0o700)
		if err == nil {
			err = os.Rename(scratch.Dir(), kept)
		}
		if err != nil {
			kept = fmt.Sprintf("nowhere (%v)", err)
		}
		e.Hint = "The files of the build are kept in " + kept + "; remove them when you have seen enough."
	}
	return e
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n    ")
}

// sweepBuilds removes the work folders of builds that were killed, where only
// the build's own users may.
func (r *Region) sweepBuilds(ctx context.Context) error {
	builds, err := names(r.path("tmp"), "build-", ".work")
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range builds {
		dir := r.path("tmp", "build-"+name+".work")
		lock, free, err := durable.TryLock(filepath.Join(dir, ".lock"))
		if err != nil || !free {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, build.RemoveTree(ctx, dir), lock.Unlock())
	}
	return errors.Join(errs...)
}

// packagesMissing is the error of a build whose recipe names packages that there
// are not, nil if that is not why it failed.
func packagesMissing(err error, name string) error {
	var packages *build.PackageError
	if !errors.As(err, &packages) {
		return nil
	}
	return ami.Errorf(ami.CodeInvalidParameterValue, "The recipe %s names what cannot be installed:\n%w", name, packages).
		WithHint("Mend its packages and build again; https://packages.debian.org finds names.")
}
