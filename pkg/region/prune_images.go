package region

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// PruneInput says which of the caller's images to retire: those of a name pattern that
// are not the newest.
type PruneInput struct {
	Name          string // EC2's pattern, with * and ?; needed
	Keep          int    // how many of the newest stay
	UnusedFor     time.Duration
	KeepSnapshots bool
}

// PrunePlan is what retiring images does, or would do, newest first.
type PrunePlan struct {
	Images []PruneImage `json:"Images"`
	Freed  int64        `json:"FreedBytes"` // on disk, by all of them

	in PruneInput
}

// PruneImage is what becomes of one image that fits the pattern.
type PruneImage struct {
	ImageID      ami.ImageID       `json:"ImageId"`
	Name         string            `json:"Name"`
	CreationDate time.Time         `json:"CreationDate"`
	Action       string            `json:"Action"`           // deregister or keep
	Reason       string            `json:"Reason,omitempty"` // why it is kept
	Result       *DeregisterResult `json:"Result,omitempty"` // of what was done
}

// Goes says whether the image is retired.
func (p PruneImage) Goes() bool { return p.Action == pruneDeregister }

const (
	pruneDeregister = "deregister"
	pruneKeep       = "keep"
)

// PlanPrune says which images go, which stay and why, and how many bytes that frees.
// Instances that were launched of an image do not keep it: they live on without.
func (r *Region) PlanPrune(ctx context.Context, in PruneInput) (PrunePlan, error) {
	plan := PrunePlan{in: in}
	if in.Name == "" {
		return plan, ami.Errorf(ami.CodeMissingParameter, "No name was given of the images to prune.").WithHint("Give a pattern, such as 'web-*'.")
	}
	if in.Keep < 0 {
		return plan, ami.Errorf(ami.CodeInvalidParameterValue, "%d images cannot be kept.", in.Keep)
	}
	var images, goes []ami.Image
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		plan.Images, goes = nil, nil
		all, err := tx.Images()
		if err = r.legible(err); err != nil {
			return err
		}
		images = slices.DeleteFunc(all, func(i ami.Image) bool {
			return i.OwnerID != r.account || i.ImageType != ami.ImageTypeMachine || !ami.Match(in.Name, i.Name) ||
				i.State != ami.ImageAvailable && i.State != ami.ImageDisabled
		})
		slices.SortStableFunc(images, func(a, b ami.Image) int { return b.CreationDate.Compare(a.CreationDate) })
		for n, i := range images {
			p := PruneImage{ImageID: i.ImageID, Name: i.Name, CreationDate: i.CreationDate, Action: pruneKeep}
			if p.Reason, err = r.keeps(tx, in, n, i); err != nil {
				return err
			}
			if p.Reason == "" {
				p.Action = pruneDeregister
				goes = append(goes, i)
			}
			plan.Images = append(plan.Images, p)
		}
		return nil
	})
	if err != nil {
		return plan, storeError(err, "The images cannot be read.")
	}
	plan.Freed, err = r.wouldFree(ctx, goes, in.KeepSnapshots)
	return plan, err
}

// keeps says why the nth newest image stays, "" where it goes.
func (r *Region) keeps(tx *catalog.Tx, in PruneInput, n int, i ami.Image) (string, error) {
	if n < in.Keep {
		return "one of the newest", nil
	}
	last := i.LastLaunchedTime
	if last.IsZero() {
		last = i.CreationDate
	}
	if in.UnusedFor > 0 && r.now().Sub(last) < in.UnusedFor {
		return "used since", nil
	}
	err := r.checkUnprotected(tx, i)
	if ami.ErrorCode(err) == ami.CodeOperationNotPermitted {
		return "protected from being deregistered", nil
	}
	return "", err
}

// wouldFree is what deregistering all of these with their snapshots frees. What goes
// into the recycle bin, or is locked, frees nothing.
func (r *Region) wouldFree(ctx context.Context, goes []ami.Image, keepSnapshots bool) (freed int64, err error) {
	if len(goes) == 0 || keepSnapshots {
		return 0, nil
	}
	all, err := r.readRecords(ctx)
	if err != nil {
		return 0, err
	}
	set, err := r.layerSet(ctx)
	if err != nil {
		return 0, err
	}
	named, err := r.named(ctx)
	if err != nil {
		return 0, err
	}
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		rules, err := rulesOf(tx, r.account)
		if err != nil {
			return err
		}
		now, err := r.seen(tx)
		for id, s := range all.snapshot {
			stays := s.Locked(now)
			for _, rule := range rules {
				stays = stays || rule.covers(RecycleSnapshots, s.Tags)
			}
			if stays {
				delete(all.snapshot, id)
			}
		}
		return err
	})
	l := newLedger(set, all, named)
	for _, d := range l.freed(goes...) {
		freed += set[d].FileSize
	}
	return freed, storeError(err, "The catalog cannot be read.")
}

// ExecutePrune retires what a plan says and is still to go, one after the other; each
// image's result is in what it returns. It goes on past an image that cannot be
// retired, and returns why.
func (r *Region) ExecutePrune(ctx context.Context, plan PrunePlan) (PrunePlan, error) {
	now, err := r.PlanPrune(ctx, plan.in)
	if err != nil {
		return plan, err
	}
	done := PrunePlan{in: plan.in, Images: slices.Clone(plan.Images)}
	var errs []error
	for n, p := range plan.Images {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		still := slices.ContainsFunc(now.Images, func(o PruneImage) bool { return o.ImageID == p.ImageID && o.Goes() })
		if !p.Goes() {
			continue
		}
		if !still {
			done.Images[n].Action, done.Images[n].Reason = pruneKeep, "changed meanwhile"
			continue
		}
		res, err := r.DeregisterImage(ctx, p.ImageID, !plan.in.KeepSnapshots, false)
		if err != nil {
			errs = append(errs, err)
			done.Images[n].Action, done.Images[n].Reason = pruneKeep, err.Error()
			continue
		}
		done.Images[n].Result = &res
		done.Freed += res.Freed
	}
	return done, errors.Join(errs...)
}
