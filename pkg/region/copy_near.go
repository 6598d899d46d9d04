package region

import (
	"context"
	"errors"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/qcow2"
	"github.com/kamivm/kami/pkg/snapshot"
)

// near is a region of this host as the origin of images. Their layers are files:
// one name more where the file system can, else copied.
type near struct {
	r   *Region
	job *job // keeps what is copied, whatever is deleted meanwhile
}

func openNear(ctx context.Context, opts Options, name string) (*near, error) {
	opts.Name = name
	r, err := Open(ctx, opts)
	if err != nil {
		return nil, err
	}
	return &near{r: r}, nil
}

func (n *near) same(r *Region) bool { return r.dir == n.r.dir }

func (n *near) close(ctx context.Context) {
	n.letGo(ctx)
	n.r.Close()
}

// letGo ends the hold of what was copied.
func (n *near) letGo(ctx context.Context) {
	if n.job != nil {
		n.job.abandon(ctx)
		n.job = nil
	}
}

// copyPrefix begins the lease of the source of a copy.
const copyPrefix = "copy-"

func (n *near) parcel(ctx context.Context, ref string) (parcel, error) {
	image, err := n.r.ResolveImage(ctx, ref, false)
	if err != nil {
		return parcel{}, err
	}
	for try := 0; ; try++ {
		p, err := n.r.pack(ctx, image)
		if err != nil {
			return p, err
		}
		err = n.hold(ctx, p)
		if !errors.Is(err, snapshot.ErrNotFound) || try > 2 { // its chain was merged meanwhile
			return p, err
		}
	}
}

// hold keeps the layers of a parcel until close: a lease names the layer of each
// snapshot.
func (n *near) hold(ctx context.Context, p parcel) error {
	n.letGo(ctx)
	ids := make([]string, len(p.Snapshots))
	for i := range ids {
		ids[i] = copyPrefix + string(ami.NewSnapshotID())
	}
	// Looked at once more in the commit: whoever deletes later sees the lease.
	j, err := n.r.begin(ctx, func(tx *catalog.Tx) error {
		_, err := n.r.launchedNow(tx, p.Image.ImageID)
		return err
	}, ids...)
	if err != nil {
		return storeError(err, "The image %s cannot be held.", p.Image.ImageID)
	}
	n.job = j
	for i, s := range p.Snapshots {
		if err := n.r.mustHold(ctx, ids[i], s.Layer); err != nil {
			return storeError(err, "The layer of %s cannot be used.", s.SnapshotID)
		}
	}
	return nil
}

func (n *near) bring(ctx context.Context, to *Region, id ami.SnapshotID, l parcelLayer, parent digest.Digest, done *CopiedImage) (snapshot.Layer, error) {
	if parent != l.Parent { // the same content, which is another file here
		img, err := n.r.layers.OpenLayer(l.Digest)
		if err != nil {
			return snapshot.Layer{}, err
		}
		defer img.Close()
		return to.rewriteLayer(ctx, id, img, l, parent, done)
	}
	chain, err := n.r.layers.Chain(l.Digest)
	if err != nil {
		return snapshot.Layer{}, err
	}
	return to.adoptLayer(ctx, id, chain[0], l, done)
}

// rewriteLayer is writeLayer for a layer whose content stands on another file of its
// parent's here.
func (r *Region) rewriteLayer(ctx context.Context, id ami.SnapshotID, src qcow2.Source, l parcelLayer, parent digest.Digest, done *CopiedImage) (snapshot.Layer, error) {
	made, err := r.writeLayer(ctx, id, src, parent)
	done.copied(l, 1, 1)
	done.MovedBytes += made.FileSize
	return made, err
}

// adoptLayer is writeLayer of a file that is the layer already. Its parent is held.
func (r *Region) adoptLayer(ctx context.Context, id ami.SnapshotID, path string, l parcelLayer, done *CopiedImage) (snapshot.Layer, error) {
	var moved int64
	layer, err := r.makeHeld(ctx, string(id), func(ctx context.Context) (made snapshot.Layer, err error) {
		step := r.progress.Step("copying "+l.Digest.Short(), l.FileSize)
		made, moved, err = r.layers.AdoptLayer(ctx, path, snapshot.Layer{Digest: l.Digest, Parent: l.Parent, Content: l.Content}, step)
		step.Done(err)
		return made, err
	})
	if err == nil {
		done.copied(l, moved, l.FileSize)
		done.MovedBytes += moved
	}
	return layer, err
}

func (n *near) flat(_ context.Context, _ *Region, _ parcel, s ami.Snapshot) (qcow2.Source, func() error, error) {
	img, err := n.r.layers.OpenLayer(s.Layer)
	if err != nil {
		return nil, nil, err
	}
	return qcow2.Flatten(img), img.Close, nil
}

func (n *near) end(context.Context) error { return nil }

func (n *near) object(_ context.Context, d digest.Digest) ([]byte, error) { return n.r.object(d) }
