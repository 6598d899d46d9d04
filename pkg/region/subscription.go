package region

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// Subscribe subscribes the caller to an offer, from now on. Who has is so already.
// Terms that the offer has are to be accepted.
func (r *Region) Subscribe(ctx context.Context, code string, acceptTerms, dry bool) (s ami.Subscription, err error) {
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		o, err := offerNow(tx, code)
		if err != nil {
			return err
		}
		now, err := r.tick(tx)
		if err != nil {
			return err
		}
		now = now.Truncate(time.Millisecond)
		had, err := tx.SubscriptionsOf(r.account, code)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(had, func(s ami.Subscription) bool { return s.CancelledAt.IsZero() }); i >= 0 {
			s = had[i]
			return nil
		}
		switch {
		case o.OwnerID == r.account:
			return ami.Errorf(ami.CodeOperationNotPermitted, "The offer %s is this account's own, which needs no subscription to it.", code)
		case !o.DeletionTime.IsZero():
			return ami.Errorf(ami.CodeIncorrectState, "The offer %s is deleted: nobody can subscribe to it any more.", code)
		case o.Terms != "" && !acceptTerms:
			return ami.Errorf(ami.CodeOptInRequired, "The offer %s has terms, which have to be accepted.", code).
				WithHint("kami offer show %s shows them; kami subscription create %s --accept-terms accepts them.", code, code)
		case dry:
			return dryRun("subscribe to %s (%s)", code, o.Title)
		}
		for _, other := range had { // one after the other, whatever the clock says
			for _, least := range []time.Time{other.SubscribedAt.Add(time.Millisecond), other.CancelledAt} {
				if now.Before(least) {
					now = least
				}
			}
		}
		s = ami.Subscription{ProductCode: code, AccountID: r.account, SubscribedAt: now}
		return tx.PutSubscription(s)
	})
	return s, storeError(err, "The subscription cannot be written.")
}

// Unsubscribe ends the caller's subscription to an offer. Instances live on, and are
// started again; none is launched any more.
func (r *Region) Unsubscribe(ctx context.Context, code string, dry bool) (s ami.Subscription, err error) {
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		had, err := tx.SubscriptionsOf(r.account, code)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(had, func(s ami.Subscription) bool { return s.CancelledAt.IsZero() })
		if i < 0 {
			return ami.Errorf(ami.CodeInvalidParameterValue, "This account has not subscribed to %q.", code).
				WithHint("kami subscription list shows to what it has.")
		}
		now, err := r.tick(tx)
		if err != nil {
			return err
		}
		if dry {
			return dryRun("cancel the subscription to %s", code)
		}
		s = had[i]
		if s.CancelledAt = now.Truncate(time.Millisecond); !s.CancelledAt.After(s.SubscribedAt) {
			s.CancelledAt = s.SubscribedAt.Add(time.Millisecond)
		}
		return tx.PutSubscription(s)
	})
	return s, storeError(err, "The subscription cannot be cancelled.")
}

// SubscriptionsInput selects subscriptions.
type SubscriptionsInput struct {
	Sold      bool // those of others to the caller's offers, not the caller's own
	Cancelled bool // also those that are cancelled
}

// Subscriptions returns the caller's subscriptions, or those to his offers, oldest
// first.
func (r *Region) Subscriptions(ctx context.Context, in SubscriptionsInput) (out []ami.Subscription, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		mine := map[string]bool{}
		offers, err := tx.Offers()
		if err = r.legible(err); err != nil {
			return err
		}
		for _, o := range offers {
			mine[o.ProductCode] = o.OwnerID == r.account
		}
		all, err := tx.Subscriptions()
		for _, s := range all {
			if (in.Sold && mine[s.ProductCode] || !in.Sold && s.AccountID == r.account) && (in.Cancelled || s.CancelledAt.IsZero()) {
				out = append(out, s)
			}
		}
		return r.legible(err)
	})
	return out, storeError(err, "The subscriptions cannot be read.")
}

// checkSubscribed refuses what has product codes to who has not subscribed to them all
// and sells none of them himself. A code of DevPay's, which is no more, that nobody
// offers here is a mere mark.
func (r *Region) checkSubscribed(tx *catalog.Tx, what string, codes []ami.ProductCode) error {
	for _, c := range codes {
		o, err := tx.Offer(c.ID)
		if errors.Is(err, catalog.ErrNotFound) {
			if c.Type != ami.MarketplaceCode {
				continue
			}
			return ami.Errorf(ami.CodeOptInRequired, "%s is sold as %s, which nobody offers in the region %q.", what, c.ID, r.opts.Name).
				WithHint("Who sells it makes the offer here too: kami offer create --product-code %s.", c.ID)
		}
		if err != nil {
			return err
		}
		if o.OwnerID == r.account {
			continue
		}
		had, err := tx.SubscriptionsOf(r.account, c.ID)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(had, func(s ami.Subscription) bool { return s.CancelledAt.IsZero() }) {
			return ami.Errorf(ami.CodeOptInRequired, "%s is sold as %s (%s), and the account %s has not subscribed to that.", what, c.ID, o.Title, r.account).
				WithHint("kami offer show %s says what it costs; kami subscription create %s subscribes to it.", c.ID, c.ID)
		}
	}
	return nil
}

// checkPaid is checkSubscribed of what is launched: an image, and the snapshots of a
// mapping. It returns the codes that the instance has of them.
func (r *Region) checkPaid(ctx context.Context, image ami.Image, mapping []ami.BlockDeviceMapping) (codes []ami.ProductCode, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		mapped, err := mappedCodes(tx, mapping)
		codes = ami.JoinProductCodes(image.ProductCodes, mapped)
		if err != nil {
			return err
		}
		return r.checkSubscribed(tx, "The image "+string(image.ImageID), codes)
	})
	return codes, storeError(err, "The product codes of %s cannot be read.", image.ImageID)
}

// mappedCodes are the product codes of a mapping's snapshots.
func mappedCodes(tx *catalog.Tx, mapping []ami.BlockDeviceMapping) (codes []ami.ProductCode, err error) {
	for _, id := range snapshotsOf(ami.Image{BlockDeviceMappings: mapping}) {
		snap, err := tx.Snapshot(id)
		if err != nil {
			return nil, notFoundOr(err, notFoundSnapshot(id))
		}
		codes = ami.JoinProductCodes(codes, snap.ProductCodes)
	}
	return codes, nil
}

// checkAttachedPaid checks the product codes of a volume that is to be attached, as
// EC2 does: who has it has subscribed, and what is sold on a marketplace is not slipped
// under a guest that runs.
func (r *Region) checkAttachedPaid(ctx context.Context, v ami.Volume, inst ami.Instance) error {
	sold := slices.ContainsFunc(v.ProductCodes, func(c ami.ProductCode) bool { return c.Type == ami.MarketplaceCode })
	if sold && inst.State.Name != ami.InstanceStopped {
		return incorrectState(inst, fmt.Sprintf("given the volume %s, which has product codes", v.VolumeID), "stopped")
	}
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		return r.checkSubscribed(tx, "The volume "+string(v.VolumeID), v.ProductCodes)
	})
	return storeError(err, "The product codes of %s cannot be read.", v.VolumeID)
}

// checkRead refuses to hand out, as a file of its own, what has product codes that the
// caller does not sell: nothing would say any more that it is paid for.
func (r *Region) checkRead(ctx context.Context, what string, codes []ami.ProductCode) error {
	if len(codes) == 0 { // most often, and for each block of a snapshot
		return nil
	}
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		for _, c := range codes {
			o, err := tx.Offer(c.ID)
			if errors.Is(err, catalog.ErrNotFound) && c.Type != ami.MarketplaceCode {
				continue
			}
			if err != nil && !errors.Is(err, catalog.ErrNotFound) {
				return err
			}
			if err != nil || o.OwnerID != r.account {
				return ami.Errorf(ami.CodeOperationNotPermitted, "%s has the product code %s: only who sells it may export it.", what, c.ID).
					WithHint("It can be launched, and imaged, by who has subscribed to it.")
			}
		}
		return nil
	})
	return storeError(err, "The product codes cannot be read.")
}
