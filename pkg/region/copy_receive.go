package region

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// An origin is where images come from: another region of this host, one in an
// object store, or a file.
type origin interface {
	// parcel returns what there is to know of an image, by id or name, and keeps it
	// from being removed until close.
	parcel(ctx context.Context, ref string) (parcel, error)
	// bring makes a layer in a region, under the lease of a snapshot that is being
	// copied, over the layer parent of that region, which has the content of the
	// parent that it has at home. It counts what that moved.
	bring(ctx context.Context, to *Region, id ami.SnapshotID, l parcelLayer, parent digest.Digest, done *CopiedImage) (snapshot.Layer, error)
	// flat opens the whole content of a snapshot, to be written anew.
	flat(ctx context.Context, to *Region, p parcel, s ami.Snapshot) (src qcow2.Source, done func() error, err error)
	// object returns a small object of the parcel's, verified.
	object(ctx context.Context, d digest.Digest) ([]byte, error)
	// end says, when all has been brought, whether it was all that was promised.
	end(ctx context.Context) error
	// same says whether what is encrypted there is so with keys of that region.
	same(r *Region) bool
	close(ctx context.Context)
}

// receive makes an image of a parcel: its layers first, its record last.
func (r *Region) receive(ctx context.Context, in CopyImageInput, from origin, p parcel, use func(ami.ImageID) error) (CopiedImage, error) {
	done := CopiedImage{Name: in.Name, RegionName: r.opts.Name, SourceImageID: p.Image.ImageID, SourceRegion: p.Region}
	if err := checkSold(p.Image, r.account); err != nil {
		return done, err
	}
	if err := r.checkSignedParcel(ctx, from, p); err != nil {
		return done, err
	}
	tags, err := in.tagged(p.Image, r.account)
	if err != nil {
		return done, err
	}
	description := in.describe(p.Image, p.Region)
	if err := r.checkNewName(ctx, in.Name, description, tags); err != nil {
		return done, err
	}
	keys, err := r.keysOf(ctx, in, from, p)
	if err != nil {
		return done, err
	}
	image := r.newImage(in.Name, description, tags)
	carry(&image, p.Image)
	image.SourceImageID, image.SourceImageRegion = p.Image.ImageID, p.Region
	if image.KernelID, image.RamdiskID, err = r.kernelsOf(ctx, p); err != nil {
		return done, err
	}
	if in.DryRun {
		return done, dryRun("copy %s from %s as %q", p.Image.ImageID, p.Region, in.Name)
	}
	if err := use(image.ImageID); err != nil {
		return done, storeError(err, "The client token cannot be kept.")
	}
	snaps := make([]ami.Snapshot, len(p.Snapshots))
	for i, s := range p.Snapshots {
		text := fmt.Sprintf("Copied for %s from %s of %s in %s", image.ImageID, s.SnapshotID, p.Image.ImageID, p.Region)
		snaps[i] = r.newSnapshot("", text, s.SizeBytes, in.Tags)
		snaps[i].VolumeSize, snaps[i].UsageOperation = s.VolumeSize, s.UsageOperation
		// Whoever has the copy may not sell it: its snapshots say too what it is sold as.
		snaps[i].ProductCodes = ami.JoinProductCodes(s.ProductCodes, p.Image.ProductCodes)
		snaps[i].Encrypted, snaps[i].KmsKeyID = keys[i] != "", keys[i]
	}
	j, err := r.beginImage(ctx, image, snaps)
	if err != nil {
		return done, err
	}
	defer j.close(ctx)
	for i, s := range p.Snapshots {
		if snaps[i], err = r.receiveSnapshot(ctx, snaps[i], from, p, s, &done); err != nil {
			return done, copyError(err, p)
		}
		durable.Step("copy.snapshot")
	}
	for _, d := range p.objects() {
		b, err := from.object(ctx, d)
		if err == nil {
			_, err = r.putObject(ctx, b)
		}
		if err != nil {
			return done, copyError(err, p)
		}
	}
	if err := from.end(ctx); err != nil {
		return done, copyError(err, p)
	}
	image.BlockDeviceMappings = copiedMapping(p, snaps)
	image.State = ami.ImageAvailable
	err = j.commit(ctx, func(tx *catalog.Tx) error {
		for i := range snaps {
			if err := finishSnapshot(tx, &snaps[i]); err != nil {
				return err
			}
		}
		return finishImage(tx, &image)
	})
	done.ImageID = image.ImageID
	return done, storeError(err, "The image %s cannot be recorded.", image.ImageID)
}

// carry gives an image what a copy has of its source. Who may use the source, and
// for how long, is the source's alone.
func carry(to *ami.Image, from ami.Image) {
	to.Architecture, to.BootMode, to.VirtualizationType = from.Architecture, from.BootMode, from.VirtualizationType
	to.RootDeviceName, to.ImdsSupport, to.KernelCmdline = from.RootDeviceName, from.ImdsSupport, from.KernelCmdline
	to.KernelID, to.RamdiskID, to.ProductCodes = from.KernelID, from.RamdiskID, from.ProductCodes
	to.UEFIData, to.Consistency, to.TpmSupport = from.UEFIData, from.Consistency, from.TpmSupport
	to.EnaSupport, to.SriovNetSupport = from.EnaSupport, from.SriovNetSupport
	to.SetUsage(from.UsageOperation)
	to.Signatures = from.Signatures // which are of what is in it
}

// checkSold refuses what is paid for and not the caller's to copy.
func checkSold(i ami.Image, account string) error {
	if i.OwnerID != account && len(i.ProductCodes) > 0 {
		return ami.Errorf(ami.CodeOperationNotPermitted, "The image %s has product codes and is another account's: it can be launched, but not copied.", i.ImageID)
	}
	return nil
}

// keysOf decides for each snapshot with which key its copy is encrypted, "" for
// none. What is encrypted stays so; in another region by a key of that one.
func (r *Region) keysOf(ctx context.Context, in CopyImageInput, from origin, p parcel) ([]string, error) {
	keys := make([]string, len(p.Snapshots))
	if in.KmsKeyID != "" && !in.Encrypted {
		_, err := r.keyFor(ctx, nil, in.KmsKeyID, ami.Snapshot{}, in.DryRun)
		return nil, err
	}
	for i, s := range p.Snapshots {
		encrypted := in.Encrypted || s.Encrypted
		if !encrypted {
			continue
		}
		home := ami.Snapshot{}
		if from.same(r) {
			home = s
		}
		var err error
		if keys[i], err = r.keyFor(ctx, &encrypted, in.KmsKeyID, home, in.DryRun); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// kernelsOf finds what a paravirtual image starts with in this region: pv-grub,
// which is everywhere, or a kernel and a ramdisk of the same bytes.
func (r *Region) kernelsOf(ctx context.Context, p parcel) (kernel ami.KernelID, ramdisk ami.RamdiskID, err error) {
	find := func(id, kind string) (string, error) {
		if id == "" || id == string(ami.PVGrub) {
			return id, nil
		}
		i := slices.IndexFunc(p.Kernels, func(k ami.Image) bool { return string(k.ImageID) == id })
		all, err := r.DescribeKernels(ctx, DescribeInput{})
		if err != nil {
			return "", err
		}
		for _, k := range all {
			if i >= 0 && k.ImageType == kind && k.Data != "" && k.Data == p.Kernels[i].Data && k.State == ami.ImageAvailable {
				return string(k.ImageID), nil
			}
		}
		return "", ami.Errorf(ami.CodeUnsupportedOperation, "The image starts with the %s %s, which the region %q does not have.", kind, id, r.opts.Name).
			WithHint("Register the same file there first (kami --region %s kernel register), and copy again.", r.opts.Name)
	}
	k, err := find(string(p.Image.KernelID), ami.ImageTypeKernel)
	if err != nil {
		return "", "", err
	}
	rd, err := find(string(p.Image.RamdiskID), ami.ImageTypeRamdisk)
	return ami.KernelID(k), ami.RamdiskID(rd), err
}

// copiedMapping is the image's mapping with the snapshots of this region.
func copiedMapping(p parcel, snaps []ami.Snapshot) (out []ami.BlockDeviceMapping) {
	for _, m := range p.Image.BlockDeviceMappings {
		if m.Ebs != nil {
			ebs := *m.Ebs
			ebs.Encrypted, ebs.KmsKeyID = nil, "" // told anew of the snapshot
			for i, s := range p.Snapshots {
				if s.SnapshotID == ebs.SnapshotID {
					ebs.SnapshotID = snaps[i].SnapshotID
					break
				}
			}
			m.Ebs = &ebs
		}
		out = append(out, m)
	}
	return out
}

// receiveSnapshot fills the pending snapshot snap with the content of s.
func (r *Region) receiveSnapshot(ctx context.Context, snap ami.Snapshot, from origin, p parcel, s ami.Snapshot, done *CopiedImage) (ami.Snapshot, error) {
	chain := p.chain(s.Layer)
	needs := func(key string) bool {
		return !slices.ContainsFunc(chain, func(l parcelLayer) bool { return l.KeyID != "" && l.KeyID != key })
	}
	asItIs := snap.KmsKeyID == "" || from.same(r) && s.KmsKeyID == snap.KmsKeyID && needs(s.KmsKeyID)
	if !asItIs {
		src, closed, err := from.flat(ctx, r, p, s)
		if err != nil {
			return snap, err
		}
		enc, err := r.layers.Encrypt(src, snap.KmsKeyID)
		if err == nil {
			snap, err = r.fill(ctx, snap, enc, "", s.Consistency)
		}
		if err == nil && s.ContentDigest != "" { // which signatures are of
			err = sameContent(s, snap.ContentDigest, snap.SizeBytes)
		}
		done.LayersCopied++
		done.TotalBytes += snap.LayerBytes
		done.MovedBytes += snap.LayerBytes
		return snap, errors.Join(err, closed())
	}
	layer, err := r.receiveChain(ctx, snap.SnapshotID, from, chain, done)
	if err != nil {
		return snap, err
	}
	if layer.Content != s.ContentDigest {
		return snap, fmt.Errorf("%w: the copy of %s has the content %s, and is to have %s", snapshot.ErrCorrupt, s.SnapshotID, layer.Content.Short(), s.ContentDigest.Short())
	}
	snap.State, snap.Progress = ami.SnapshotCompleted, "100%"
	snap.Layer, snap.ContentDigest, snap.LayerBytes = layer.Digest, layer.Content, layer.FileSize
	snap.SizeBytes, snap.Consistency = layer.Size, s.Consistency
	return snap, nil
}

// receiveChain brings the layers of a chain, nearest first, of which the region
// has none, over the first one that it has: nothing else of it is read.
func (r *Region) receiveChain(ctx context.Context, id ami.SnapshotID, from origin, chain []parcelLayer, done *CopiedImage) (snapshot.Layer, error) {
	var layer snapshot.Layer
	lacking := len(chain)
	for i, l := range chain {
		have, err := r.haveLayer(ctx, id, l)
		if err != nil {
			return layer, err
		}
		if have != "" {
			if layer, err = r.layers.Layer(have); err != nil {
				return layer, err
			}
			layer.Content, lacking = l.Content, i
			break
		}
	}
	for _, l := range chain[lacking:] {
		done.shared(l)
	}
	for i := lacking - 1; i >= 0; i-- {
		l, err := from.bring(ctx, r, id, chain[i], layer.Digest, done)
		if err != nil {
			return layer, err
		}
		if l.Content != chain[i].Content {
			return layer, fmt.Errorf("%w: %s has the content %s, and is to have %s", snapshot.ErrCorrupt, chain[i].Digest.Short(), l.Content.Short(), chain[i].Content.Short())
		}
		if l.KeyID != chain[i].KeyID {
			return layer, fmt.Errorf("%w: %s is encrypted by the key %q, and is to be by %q", snapshot.ErrCorrupt, chain[i].Digest.Short(), l.KeyID, chain[i].KeyID)
		}
		layer = l
		durable.Step("copy.layer")
	}
	return layer, nil
}

// haveLayer finds a layer of the same content, and holds it by the snapshot's
// lease: "" where there is none. It may have another name, for its chain was merged
// or it was written by another version.
func (r *Region) haveLayer(ctx context.Context, id ami.SnapshotID, l parcelLayer) (digest.Digest, error) {
	known := []digest.Digest{l.Digest}
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		snaps, err := tx.Snapshots()
		for _, s := range snaps {
			if s.ContentDigest == l.Content && s.SizeBytes == l.Size && s.State == ami.SnapshotCompleted && s.KmsKeyID == l.KeyID && s.Layer != l.Digest {
				known = append(known, s.Layer)
			}
		}
		return r.legible(err)
	})
	if err != nil {
		return "", storeError(err, "The snapshots cannot be read.")
	}
	for _, d := range known {
		held, err := r.holdLayer(ctx, string(id), d)
		if errors.Is(err, snapshot.ErrCorrupt) { // what cannot be read is not had
			continue
		}
		if err != nil {
			return "", err
		}
		if !held {
			continue
		}
		blocks, err := r.layers.Blocks(ctx, d)
		if errors.Is(err, snapshot.ErrCorrupt) || errors.Is(err, qcow2.ErrCorrupt) {
			continue
		}
		if err != nil {
			return "", err
		}
		if have, err := r.layers.Layer(d); err != nil || have.KeyID != l.KeyID || have.Size != l.Size {
			continue
		}
		if blocks.Content() == l.Content {
			return d, nil
		}
	}
	return "", nil
}

// copyError is what went wrong with a copy, for a person.
func copyError(err error, p parcel) error {
	var known *ami.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) {
		return err
	}
	what := fmt.Sprintf("The image %s of %s cannot be copied.", p.Image.ImageID, p.Region)
	err = storeError(err, "%s", what)
	if errors.As(err, &known) && (errors.Is(err, snapshot.ErrCorrupt) || errors.Is(err, qcow2.ErrCorrupt)) {
		known.Hint = "What it is copied from is damaged there: kami store verify, in that region, says what that harms."
	}
	return err
}
