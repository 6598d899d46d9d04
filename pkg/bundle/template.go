package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/disk/ext4"
	"github.com/kamivm/kami/pkg/qcow2"
)

// Kind is what a template is.
type Kind string

// The kinds. Auto is found by looking.
const (
	KindAuto   Kind = ""
	KindFolder Kind = "folder" // a tree of files
	KindTar    Kind = "tar"    // likewise, also compressed
	KindOCI    Kind = "oci"    // a container image: an OCI layout, in a folder or a tar
	KindDocker Kind = "docker" // a container image: docker save's tar
	KindRecipe Kind = "recipe" // a folder with a recipe.yaml
	KindImage  Kind = "image"  // a filesystem or disk, in any format that kami imports
)

// Kinds lists what a person can name.
func Kinds() []Kind {
	return []Kind{KindFolder, KindTar, KindOCI, KindDocker, KindRecipe, KindImage}
}

// TemplateInput says what is to be packed.
type TemplateInput struct {
	Path         string
	Kind         Kind
	Name         string // the bundle's: identifiers are made of it
	Size         int64  // of the root filesystem in bytes; 0 is by what is in it
	Partition    string // "" is as the template has it, and none for a tree
	Architecture ami.Architecture
	Filter       Filter
	// Script is a program that is given the tree's folder as its argument, before
	// it is packed; "" is none.
	Script   string
	Cmdline  string // of the kernel, where a boot loader is added
	Tmp      string // an empty folder, absolute
	Progress ami.Progress
}

// Template is a blob that is ready to be packed.
type Template struct {
	qcow2.Source
	Kind         Kind
	Architecture ami.Architecture // "" where nothing tells
	BootMode     ami.BootMode     // of a whole disk
	Partition    string
	User         string // to log in as, of a recipe
	Left         Left   // what the filter left out

	closers []io.Closer
}

// Close releases what the blob is read from.
func (t *Template) Close() error {
	var errs []error
	for _, c := range slices.Backward(t.closers) {
		errs = append(errs, c.Close())
	}
	t.closers = nil
	return errors.Join(errs...)
}

// OpenTemplate makes a blob of a template. Whatever lies beside it is in in.Tmp,
// which the caller removes after Close. It returns ErrTemplate for what is not to
// be packed, and foreign's errors for images.
func OpenTemplate(ctx context.Context, in TemplateInput) (*Template, error) {
	f, err := in.Filter.compile()
	if err != nil {
		return nil, err
	}
	if in.Partition != "" && !slices.Contains(Partitions(), in.Partition) {
		return nil, fmt.Errorf("%w: the partitioning %q is not one of %s", ErrTemplate, in.Partition, strings.Join(Partitions(), ", "))
	}
	if in.Architecture == "" {
		in.Architecture = ami.ArchX8664
	}
	if in.Kind == KindAuto {
		if in.Kind, err = detect(ctx, in.Path); err != nil {
			return nil, err
		}
	}
	o := &packing{TemplateInput: in, filter: f, out: &Template{Kind: in.Kind, Architecture: in.Architecture}}
	switch in.Kind {
	case KindFolder:
		err = o.folder(ctx)
	case KindTar:
		err = o.archive(ctx)
	case KindOCI, KindDocker:
		err = o.container(ctx)
	case KindRecipe:
		err = o.recipe(ctx)
	case KindImage:
		err = o.image(ctx)
	default:
		err = fmt.Errorf("%w: the kind %q is not one of %v", ErrTemplate, in.Kind, Kinds())
	}
	if err != nil {
		o.out.Close()
		return nil, err
	}
	o.out.Left = f.left
	return o.out, nil
}

// packing makes one template's blob.
type packing struct {
	TemplateInput
	filter *filter
	out    *Template
}

func (o *packing) tmp(name string) string { return filepath.Join(o.Tmp, name) }

// limit is how much the files of a tree may have.
func (o *packing) limit() int64 { return o.Size }

// folder packs a folder: as it lies there if nothing is changed in it.
func (o *packing) folder(ctx context.Context) error {
	t := &tree{root: o.Path}
	if o.Script != "" || o.Partition == PartitionGPT {
		return o.staged(ctx, func(s *stage) error { return s.stageFolder(ctx, t) })
	}
	in, err := openFolders(o.Path)
	if err != nil {
		return err
	}
	o.out.closers = append(o.out.closers, in)
	step := o.Progress.Step("looking through "+o.Path, 0)
	root, err := t.plant(ctx, o.filter, in)
	step.Done(err)
	if err != nil {
		return err
	}
	t.files += mounted(root)
	return o.take(o.filesystem(o.Path, t.bytes, t.files).make(root))
}

// take makes a filesystem the blob.
func (o *packing) take(img *ext4.Image, err error) error {
	if err != nil {
		return err
	}
	o.out.closers = append(o.out.closers, img)
	o.out.Source, o.out.Partition = img, PartitionNone
	return nil
}

// staged puts a tree together and makes its filesystem.
func (o *packing) staged(ctx context.Context, fill func(*stage) error) error {
	s, err := newStage(o.tmp("tree"), o.filter, o.limit())
	if err != nil {
		return err
	}
	step := o.Progress.Step("unpacking "+filepath.Base(o.Path), 0)
	err = fill(s)
	if err == nil && len(s.all) == 1 {
		err = fmt.Errorf("%w: there is nothing in it", ErrTemplate)
	}
	step.Done(err)
	if err != nil {
		return err
	}
	if err := o.script(ctx, s); err != nil {
		return err
	}
	if err := s.mounts(); err != nil {
		return err
	}
	if o.Partition == PartitionGPT {
		return o.disk(ctx, s)
	}
	in, err := openFolders(s.root)
	if err != nil {
		return err
	}
	o.out.closers = append(o.out.closers, in)
	return o.take(s.image(in, o.filesystem(s.root, s.limit-s.left+int64(len(s.all))*ext4.Block, len(s.all))))
}

func (o *packing) filesystem(root string, content int64, files int) filesystem {
	size := o.Size
	if size == 0 {
		size = sizeFor(content)
	}
	return filesystem{size: size / ext4.Block * ext4.Block, uuid: o.rootUUID(root), label: o.Name, files: files}
}

var rootIs = regexp.MustCompile(`(?im)root=UUID=([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})|^UUID=([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s+/\s`)

// rootUUID is the identifier of the root filesystem: the one by which the tree's
// own boot configuration looks for it, else one made of the bundle's name.
func (o *packing) rootUUID(root string) string {
	for _, name := range []string{"boot/grub/grub.cfg", "boot/grub/menu.lst", "boot/grub2/grub.cfg", "etc/fstab"} {
		if m := rootIs.FindStringSubmatch(textOf(root, name)); m != nil {
			return strings.ToLower(m[1] + m[2])
		}
	}
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("kami/bundle/"+o.Name+"/root")).String()
}

// open makes the file at path the blob.
func (o *packing) open(path, partition string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	o.out.closers = append(o.out.closers, f)
	o.out.Partition = partition
	o.out.Source, err = qcow2.RawSource(f)
	return err
}

// archive packs a tar.
func (o *packing) archive(ctx context.Context) error {
	f, err := os.Open(o.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := plain(f)
	if err != nil {
		return err
	}
	defer r.Close()
	return o.staged(ctx, func(s *stage) error { return s.stageTar(ctx, r) })
}

// container packs the root of a container image.
func (o *packing) container(ctx context.Context) error {
	path, err := o.unwrapped(ctx)
	if err != nil {
		return err
	}
	img, err := openContainer(path, o.Kind, o.Architecture)
	if err != nil {
		return err
	}
	return o.staged(ctx, func(s *stage) error {
		arch, err := s.stageContainer(ctx, img)
		if arch != "" {
			o.out.Architecture = arch
		}
		return err
	})
}

// unwrapped returns the path of a container image as its readers want it: an OCI
// layout as a folder, docker's archive uncompressed.
func (o *packing) unwrapped(ctx context.Context) (string, error) {
	st, err := os.Stat(o.Path)
	if err != nil || st.IsDir() {
		return o.Path, err
	}
	f, err := os.Open(o.Path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	r, err := plain(f)
	if err != nil {
		return "", err
	}
	defer r.Close()
	limit := o.limit()
	if limit == 0 {
		limit = defaultRoot
	}
	if o.Kind == KindOCI {
		dir := o.tmp("layout")
		return dir, unpackLayout(ctx, r, dir, 2*limit)
	}
	head := make([]byte, 512)
	if _, err := f.ReadAt(head, 0); err == nil && string(head[257:262]) == "ustar" {
		return o.Path, nil
	}
	out, err := os.Create(o.tmp("docker.tar"))
	if err != nil {
		return "", err
	}
	n, err := io.Copy(out, io.LimitReader(patient{ctx, r}, 2*limit+1))
	if err == nil && n > 2*limit {
		err = fmt.Errorf("%w: unpacked it is longer than %d bytes", ErrTemplate, 2*limit)
	}
	return out.Name(), errors.Join(err, out.Close())
}

// script runs the hook, and takes over what it has changed.
func (o *packing) script(ctx context.Context, s *stage) error {
	if o.Script == "" {
		return nil
	}
	if err := s.expose(); err != nil {
		return err
	}
	step := o.Progress.Step("running "+o.Script, 0)
	cmd := exec.CommandContext(ctx, o.Script, s.root)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = ctx.Err()
	} else if err != nil {
		err = fmt.Errorf("%w: %s: %w\n%s", ErrTemplate, o.Script, err, lastLines(string(out)))
	}
	if err == nil {
		err = s.adopt()
	}
	step.Done(err)
	return err
}

func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return "    " + strings.Join(lines[max(0, len(lines)-20):], "\n    ")
}
