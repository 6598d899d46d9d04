package catalog

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

// Offers and subscriptions are as they were written, the oldest first, and each is known
// by what it is of: writing it again changes it.
func TestOffers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	at := func(n int) time.Time { return time.Date(2026, 1, 1, n, 0, 0, 0, time.UTC) }
	offers := []ami.Offer{
		{ProductCode: "web", OwnerID: "1", Title: "Web", HourlyPrice: "0.02", MonthlyPrice: "0", Currency: "EUR", Terms: "x", CreationTime: at(1)},
		{ProductCode: "db", OwnerID: "2", Title: "Data", CreationTime: at(2), DeletionTime: at(3)},
	}
	subscriptions := []ami.Subscription{
		{ProductCode: "web", AccountID: "3", SubscribedAt: at(4), CancelledAt: at(5)},
		{ProductCode: "web", AccountID: "4", SubscribedAt: at(5)},
		{ProductCode: "web", AccountID: "3", SubscribedAt: at(6)},
	}
	s := open(t, path)
	write := func() error {
		return s.Update(t.Context(), func(tx *Tx) error {
			var errs []error
			for _, o := range offers {
				errs = append(errs, tx.PutOffer(o))
			}
			for _, sub := range subscriptions {
				errs = append(errs, tx.PutSubscription(sub))
			}
			return errors.Join(errs...)
		})
	}
	if err := errors.Join(write(), write(), s.Close()); err != nil {
		t.Fatal(err)
	}
	err := open(t, path).View(t.Context(), func(tx *Tx) error {
		all, err := tx.Offers()
		if d := cmp.Diff(offers, all); d != "" || err != nil {
			t.Errorf("offers (-want +got):\n%s%v", d, err)
		}
		if one, err := tx.Offer("db"); err != nil || one != offers[1] {
			t.Errorf("got %+v (%v), want %+v", one, err, offers[1])
		}
		if _, err := tx.Offer("none"); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		}
		subs, err := tx.Subscriptions()
		if d := cmp.Diff(subscriptions, subs); d != "" || err != nil {
			t.Errorf("subscriptions (-want +got):\n%s%v", d, err)
		}
		if subs, err = tx.SubscriptionsOf("3", "web"); len(subs) != 2 || err != nil {
			t.Errorf("got %+v (%v), want those of one account", subs, err)
		}
		if damage, err := tx.Verify(); len(damage) > 0 || err != nil {
			t.Errorf("got the damage %v (%v)", damage, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
