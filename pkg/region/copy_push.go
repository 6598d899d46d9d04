package region

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/bundle"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/snapshot"
)

// layerRecord says what a layer of a remote region is.
type layerRecord struct {
	Version int              `json:"Version"`
	Layer   parcelLayer      `json:"Layer"`
	Runs    []byte           `json:"Runs"`       // where the blob's bytes lie on the disk: encodeRuns
	Bytes   int64            `json:"BlobBytes"`  // that the layer adds to its parent
	Digest  digest.Digest    `json:"BlobDigest"` // SHA-256 of the blob
	Index   bundle.IndexFile `json:"Index"`      // "" without any bytes
}

const maxLayerRecord = 48 << 20 // bytes

// layerBlob is the name of a layer's blob in the bucket.
func layerBlob(d digest.Digest) string { return "layers/" + d.Hex() }

func layerManifest(d digest.Digest) string { return remoteBucket + "/" + layerBlob(d) + ".manifest" }

// layer reads a layer's record.
func (f *remote) layer(ctx context.Context, d digest.Digest) (layerRecord, error) {
	var rec layerRecord
	b, err := f.read(ctx, layerManifest(d), maxLayerRecord)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, fmt.Errorf("%w: %s: %w", snapshot.ErrCorrupt, layerManifest(d), err)
	}
	if l := rec.Layer; rec.Version != parcelVersion || l.Digest != d || !l.Content.Valid() || l.Size <= 0 || l.Size > maxDisk || rec.Bytes < 0 || rec.Bytes > l.Size {
		return rec, fmt.Errorf("%w: %s is not that of a layer", snapshot.ErrCorrupt, layerManifest(d))
	}
	return rec, nil
}

// pushImage copies an image of this host to a remote region.
func pushImage(ctx context.Context, opts Options, in CopyImageInput) (CopiedImage, error) {
	f, err := openRemote(ctx, opts.Home, opts.Name)
	if err != nil {
		return CopiedImage{}, err
	}
	defer f.store.Close()
	from, err := openNear(ctx, opts, in.SourceRegion)
	if err != nil {
		return CopiedImage{}, err
	}
	defer from.close(ctx)
	p, err := from.parcel(ctx, in.SourceImageID)
	if err != nil {
		return CopiedImage{}, err
	}
	done, err := f.push(ctx, opts, in, from.r, p)
	return done, remoteError(copyError(err, p), f.store.URL())
}

// remoteError gives what went wrong with an object store its hint.
func remoteError(err error, address string) error {
	var known *ami.Error
	if errors.As(err, &known) && known.Code == ami.CodeInternalError && known.Err != nil {
		switch {
		case errors.Is(err, object.ErrDenied), errors.Is(err, object.ErrUnreachable):
			return objectError(known.Err, address)
		case errors.Is(err, bundle.ErrInUse):
			known.Code, known.Hint = ami.CodeIncorrectState, "Try again when that has ended."
		}
	}
	return err
}

func (f *remote) push(ctx context.Context, opts Options, in CopyImageInput, r *Region, p parcel) (CopiedImage, error) {
	done := CopiedImage{Name: in.Name, RegionName: f.name, SourceImageID: p.Image.ImageID, SourceRegion: p.Region}
	if in.Encrypted || in.KmsKeyID != "" || slices.ContainsFunc(p.Layers, func(l parcelLayer) bool { return l.KeyID != "" }) {
		return done, ami.Errorf(ami.CodeUnsupportedOperation, "The region %q is an object store, which has no keys: no encrypted image can be copied there.", f.name).
			WithHint("kami image store keeps an encrypted image in one file as it is; the keys stay here.")
	}
	if err := checkSold(p.Image, r.account); err != nil {
		return done, err
	}
	tags, err := in.tagged(p.Image, r.account)
	if err != nil {
		return done, err
	}
	request, err := in.digest()
	if err != nil {
		return done, err
	}
	token := "tokens/" + digest.Of([]byte(r.account+"\n"+in.ClientToken)).Hex() + ".json"
	if in.ClientToken != "" {
		if again, err := f.again(ctx, opts, in, token, request); err != nil || again.ImageID != "" {
			return again, err
		}
	}
	all, known, err := f.images(ctx, r.progress)
	if err != nil {
		return done, err
	}
	for _, other := range all {
		if other.Image.Name == in.Name && other.Image.OwnerID == r.account {
			return done, duplicateName(in.Name, other.Image.ImageID)
		}
	}
	if in.DryRun {
		return done, dryRun("copy %s from %s to %s as %q", p.Image.ImageID, p.Region, f.store.URL(), in.Name)
	}
	if !known {
		r.progress.Note("an image of %q that cannot be read may have the same name", f.name)
	}
	release, err := bundle.Making(ctx, f.store, remoteBucket, r.progress)
	if err != nil {
		return done, err
	}
	defer release(ctx)
	image := r.newImage(in.Name, in.describe(p.Image, p.Region), tags)
	carry(&image, p.Image)
	image.SourceImageID, image.SourceImageRegion, image.State = p.Image.ImageID, p.Region, ami.ImageAvailable
	out := parcel{Version: parcelVersion, Region: f.name, Image: image, Snapshots: slices.Clone(p.Snapshots), Kernels: p.Kernels}
	if in.ClientToken != "" {
		text, err := json.Marshal(startToken{ImageID: out.Image.ImageID, Request: request})
		if err == nil {
			err = f.write(ctx, token, text)
		}
		if err != nil {
			return done, err
		}
	}
	if err := f.pushLayers(ctx, r, p, &out, all, &done); err != nil {
		return done, err
	}
	for i, s := range out.Snapshots {
		s.SnapshotID, s.VolumeID, s.OwnerID, s.Tags = ami.NewSnapshotID(), "", r.account, in.Tags
		s.Description = fmt.Sprintf("Copied for %s from %s of %s in %s", out.Image.ImageID, p.Snapshots[i].SnapshotID, p.Image.ImageID, p.Region)
		s.StartTime = out.Image.CreationDate
		out.Snapshots[i] = s
	}
	out.Image.BlockDeviceMappings = copiedMapping(p, out.Snapshots)
	for _, d := range p.objects() {
		b, err := r.object(d)
		if err == nil {
			err = f.write(ctx, objectRecord(d), b)
		}
		if err != nil {
			return done, err
		}
		done.MovedBytes += int64(len(b))
	}
	text, err := out.encode()
	if err == nil {
		_, err = parseParcel(text) // what could not be read again is not written
	}
	if err != nil {
		return done, err
	}
	if err := f.write(ctx, imageRecord(out.Image.ImageID), text); err != nil {
		return done, err
	}
	durable.Step("copy.pushed")
	done.ImageID = out.Image.ImageID
	return done, nil
}

// again returns the copy that was made with the same client token, if it was.
func (f *remote) again(ctx context.Context, opts Options, in CopyImageInput, token string, request digest.Digest) (CopiedImage, error) {
	b, err := f.read(ctx, token, maxRemote)
	if errors.Is(err, object.ErrNotFound) {
		return CopiedImage{}, nil
	}
	var was startToken
	if err == nil {
		err = json.Unmarshal(b, &was)
	}
	if err != nil {
		return CopiedImage{}, err
	}
	p, err := f.find(ctx, opts, string(was.ImageID))
	switch {
	case ami.ErrorCode(err) == ami.CodeInvalidAMIIDNotFound: // never finished, or retired since
		return CopiedImage{}, nil
	case err != nil:
		return CopiedImage{}, err
	case was.Request != request:
		return CopiedImage{}, tokenMismatch(in.ClientToken, string(was.ImageID))
	}
	return CopiedImage{ImageID: p.Image.ImageID, Name: p.Image.Name, RegionName: f.name, SourceImageID: p.Image.SourceImageID, SourceRegion: p.Image.SourceImageRegion}, nil
}

// pushLayers sends the layers that the region lacks, parents first, and says in out
// what the image stands on there.
func (f *remote) pushLayers(ctx context.Context, r *Region, p parcel, out *parcel, all []parcel, done *CopiedImage) error {
	// What has the same content is the same layer, whatever its file was.
	named, at := map[digest.Digest]parcel{}, map[digest.Digest]digest.Digest{}
	for _, other := range all {
		for _, l := range other.Layers {
			if _, again := at[l.Content]; !again {
				named[l.Content], at[l.Content] = other, l.Digest
			}
		}
	}
	is := map[digest.Digest]digest.Digest{} // layers of p, as they are there
	for _, l := range p.Layers {
		var rec layerRecord
		err := object.ErrNotFound
		if d, there := at[l.Content]; there {
			rec, err = f.layer(ctx, d)
			if err == nil && rec.Layer.Size == l.Size {
				owner := named[l.Content]
				chain := owner.chain(d)
				slices.Reverse(chain)
				for _, under := range chain {
					if out.layer(under.Digest) == nil {
						out.Layers = append(out.Layers, under)
					}
				}
			} else if err == nil {
				err = object.ErrNotFound
			}
		}
		if errors.Is(err, object.ErrNotFound) || errors.Is(err, snapshot.ErrCorrupt) {
			rec, err = f.pushLayer(ctx, r, l, is[l.Parent], done)
			if err == nil && out.layer(rec.Layer.Digest) == nil {
				out.Layers = append(out.Layers, rec.Layer)
			}
		} else if err == nil {
			done.shared(l)
		}
		if err != nil {
			return err
		}
		is[l.Digest] = rec.Layer.Digest
	}
	for i, s := range out.Snapshots {
		out.Snapshots[i].Layer = is[s.Layer]
	}
	return nil
}

// pushLayer sends what a layer adds to its parent, as far as the region lacks it.
// Where a copy was broken off here, what had been sent is found.
func (f *remote) pushLayer(ctx context.Context, r *Region, l parcelLayer, parent digest.Digest, done *CopiedImage) (layerRecord, error) {
	rec := layerRecord{Version: parcelVersion, Layer: l}
	rec.Layer.Parent = parent
	if was, err := f.layer(ctx, l.Digest); err == nil && was.Layer == rec.Layer { // of a copy that was broken off later
		done.shared(l)
		return was, nil
	}
	img, err := r.layers.OpenLayer(l.Digest)
	if err != nil {
		return rec, err
	}
	defer img.Close()
	runs, size, err := runsOf(ctx, img, l.Parent == "")
	if err != nil {
		return rec, err
	}
	rec.Runs, rec.Bytes = encodeRuns(runs), size
	if len(rec.Runs) > maxRuns {
		return rec, fmt.Errorf("the layer %s has its data in too many places", l.Digest.Short())
	}
	lacked := int64(0)
	if size > 0 {
		if lacked, err = f.pushBlob(ctx, r, &rec, layerBytes{img, dataRuns(runs), size}, done); err != nil {
			return rec, err
		}
	}
	done.copied(l, lacked, size)
	text, err := json.Marshal(rec)
	if err != nil {
		return rec, err
	}
	done.MovedBytes += int64(len(text))
	err = f.write(ctx, layerManifest(l.Digest), text)
	durable.Step("copy.manifest")
	return rec, err
}

func (f *remote) pushBlob(ctx context.Context, r *Region, rec *layerRecord, src layerBytes, done *CopiedImage) (lacked int64, err error) {
	name := rec.Layer.Digest.Short()
	step := r.progress.Step("looking what "+f.name+" lacks of "+name, src.size)
	plan, err := bundle.PlanBlob(ctx, f.store, remoteBucket, src, bundle.CopyChunkSizes, step.Add)
	step.Done(err)
	if err != nil {
		return 0, err
	}
	lacked = plan.Lacking
	for try := 0; plan.Lacking > 0; try++ {
		if try > 2 {
			return lacked, fmt.Errorf("%w: %d bytes that were sent to %s are not there", snapshot.ErrCorrupt, plan.Lacking, f.store.URL())
		}
		step := r.progress.Step(fmt.Sprintf("sending %s: %.1f MiB to send, %.1f MiB saved", name, mib(plan.Lacking), mib(plan.Bytes-plan.Lacking)), plan.Lacking)
		sent, err := plan.Send(ctx, step.Add)
		step.Done(err)
		done.MovedBytes += sent.StoredBytes
		if err != nil {
			return lacked, err
		}
		durable.Step("copy.sent")
		if err := plan.Look(ctx); err != nil { // whether all of it has arrived
			return lacked, err
		}
	}
	rec.Digest = plan.Digest
	if rec.Index, err = plan.WriteIndex(ctx, layerBlob(rec.Layer.Digest)); err != nil {
		return lacked, err
	}
	done.MovedBytes += rec.Index.Size
	durable.Step("copy.index")
	return lacked, nil
}
