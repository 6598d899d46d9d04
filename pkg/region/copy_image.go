package region

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/digest"
)

// CopyImageInput asks for a copy of an image in the region that is asked.
type CopyImageInput struct {
	SourceRegion  string // "" is the region that is asked
	SourceImageID string // or its name
	Name          string
	Description   string // "" names the source
	Encrypted     bool   // encrypt what is not
	KmsKeyID      string // id or alias, of the region that is asked; "" is its own
	CopyImageTags bool
	Tags          []ami.Tag // for the copy and its snapshots
	ClientToken   string    // asked again with the same one, it is the same copy
	DryRun        bool
}

// CopiedImage is what a copy made and what that cost.
type CopiedImage struct {
	ImageID       ami.ImageID `json:"ImageId"`
	Name          string      `json:"Name"`
	RegionName    string      `json:"RegionName"` // that it is in
	SourceImageID ami.ImageID `json:"SourceImageId"`
	SourceRegion  string      `json:"SourceRegion"`

	LayersCopied int `json:"LayersCopied"`
	LayersShared int `json:"LayersShared"` // that the region had
	// TotalBytes is all that the image stands on, as it is kept here, and SavedBytes
	// what of it the region had, as a layer, as chunks, or by a second name of a
	// file. MovedBytes went over the wire or were copied.
	TotalBytes int64 `json:"TotalBytes"`
	SavedBytes int64 `json:"SavedBytes"`
	MovedBytes int64 `json:"MovedBytes"`
}

// shared counts a layer that the region had.
func (c *CopiedImage) shared(l parcelLayer) {
	c.LayersShared++
	c.TotalBytes += l.FileSize
	c.SavedBytes += l.FileSize
}

// copied counts a layer of which lacked of all bytes had to be moved.
func (c *CopiedImage) copied(l parcelLayer, lacked, all int64) {
	c.LayersCopied++
	c.TotalBytes += l.FileSize
	if all > 0 {
		c.SavedBytes += int64(float64(l.FileSize) * float64(all-lacked) / float64(all))
	}
}

// CopyImage copies an image to the region of opts, of any kind, from another one
// of its home or from that region itself. All bytes are verified as they arrive;
// the copy is there when it is complete, and one that is broken off leaves nothing
// but what the next try does not have to move again.
func CopyImage(ctx context.Context, opts Options, in CopyImageInput) (CopiedImage, error) {
	if opts.Name == "" {
		opts.Name = DefaultRegion
	}
	if opts.Progress == nil {
		opts.Progress = ami.NoProgress
	}
	if in.SourceRegion == "" {
		in.SourceRegion = opts.Name
	}
	if err := in.check(); err != nil {
		return CopiedImage{}, err
	}
	fromFar, err := isRemote(opts.Home, in.SourceRegion)
	if err != nil {
		return CopiedImage{}, err
	}
	toFar, err := isRemote(opts.Home, opts.Name)
	switch {
	case err != nil:
		return CopiedImage{}, err
	case fromFar && toFar:
		return CopiedImage{}, ami.Errorf(ami.CodeUnsupportedOperation, "Both %q and %q are object stores: nobody is there to copy.", in.SourceRegion, opts.Name).
			WithHint("Copy to a region of this host first, and from there.")
	case toFar:
		return pushImage(ctx, opts, in)
	}
	r, err := Open(ctx, opts)
	if err != nil {
		return CopiedImage{}, err
	}
	defer r.Close()
	return r.once(ctx, in, func(use func(ami.ImageID) error) (CopiedImage, error) {
		var from origin
		if fromFar {
			from, err = openFar(ctx, opts, in.SourceRegion)
		} else {
			from, err = openNear(ctx, opts, in.SourceRegion)
		}
		if err != nil {
			return CopiedImage{}, err
		}
		defer from.close(ctx)
		p, err := from.parcel(ctx, in.SourceImageID)
		if err != nil {
			return CopiedImage{}, err
		}
		return r.receive(ctx, in, from, p, use)
	})
}

// check finds what is wrong with a request before any work begins.
func (in CopyImageInput) check() error {
	errs := []error{ami.ValidateTags(in.Tags)}
	if in.Name == "" {
		errs = append(errs, ami.Errorf(ami.CodeMissingParameter, "The copy has no name.").WithHint("Give it one, which may be that of the source in another region."))
	} else {
		errs = append(errs, ami.CheckName(in.Name))
	}
	if len(in.Description) > 255 {
		errs = append(errs, ami.Errorf(ami.CodeInvalidParameterValue, "The description has %d characters; at most 255 are allowed.", len(in.Description)))
	}
	if in.SourceImageID == "" {
		errs = append(errs, ami.Errorf(ami.CodeMissingParameter, "It is not said which image to copy."))
	}
	return errors.Join(errs...)
}

// describe is the description of a copy.
func (in CopyImageInput) describe(source ami.Image, region string) string {
	if in.Description != "" {
		return in.Description
	}
	text := fmt.Sprintf("[Copied %s from %s]", source.ImageID, region)
	if source.Description != "" {
		text += " " + source.Description
	}
	if len(text) > 255 {
		text = strings.ToValidUTF8(text[:255], "")
	}
	return text
}

// tagged are the tags of a copy: its own, the source's where they are asked for and
// the caller's, and always what kami itself has to know of the image.
func (in CopyImageInput) tagged(source ami.Image, account string) ([]ami.Tag, error) {
	tags := slices.Clone(in.Tags)
	if in.CopyImageTags && source.OwnerID == account {
		for _, t := range source.Tags {
			if !strings.HasPrefix(t.Key, "aws:") && !slices.ContainsFunc(tags, func(has ami.Tag) bool { return has.Key == t.Key }) {
				tags = append(tags, t)
			}
		}
	}
	tags = inheritTags(tags, source.Tags)
	return tags, ami.ValidateTags(tags)
}

// digest names a request, so that one that is made again is known.
func (in CopyImageInput) digest() (digest.Digest, error) {
	in.ClientToken, in.DryRun = "", false
	text, err := json.Marshal(in)
	return digest.Of(text), err
}

// once makes a copy unless one was made with the same client token, which it
// returns then. Of several with one token at once, one makes it. do calls use
// with the id of the image before there is anything of it.
func (r *Region) once(ctx context.Context, in CopyImageInput, do func(use func(ami.ImageID) error) (CopiedImage, error)) (CopiedImage, error) {
	if in.ClientToken == "" || in.DryRun {
		return do(func(ami.ImageID) error { return nil })
	}
	request, err := in.digest()
	if err != nil {
		return CopiedImage{}, err
	}
	name := digest.Of([]byte("copy\n" + r.account + "\n" + in.ClientToken)).Hex()
	path, known, unlock, err := r.takeToken(ctx, name)
	if err != nil {
		return CopiedImage{}, storeError(err, "The client token %q cannot be looked up.", in.ClientToken)
	}
	defer unlock()
	if known.ImageID != "" {
		image, err := r.image(ctx, known.ImageID)
		gone := ami.ErrorCode(err) == ami.CodeInvalidAMIIDNotFound || ami.ErrorCode(err) == ami.CodeInvalidAMIIDUnavailable
		switch {
		case gone: // retired since, or never finished
		case err != nil:
			return CopiedImage{}, err
		case known.Request != request:
			return CopiedImage{}, tokenMismatch(in.ClientToken, string(known.ImageID))
		case image.State == ami.ImageAvailable, image.State == ami.ImageDisabled:
			return CopiedImage{ImageID: image.ImageID, Name: image.Name, RegionName: r.opts.Name, SourceImageID: image.SourceImageID, SourceRegion: image.SourceImageRegion}, nil
		}
	}
	return do(func(id ami.ImageID) error {
		if err := os.MkdirAll(r.path("drafts"), 0o700); err != nil {
			return err
		}
		return writeToken(path, startToken{ImageID: id, Request: request})
	})
}
