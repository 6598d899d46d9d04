package region

import (
	"math/big"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// deals are what is sold, by product code, and who has subscribed to what.
type deals struct {
	offers        map[string]ami.Offer
	subscriptions []ami.Subscription
	agreed        map[deal]bool // now, or at some time before
}

// deal is what an account has subscribed to.
type deal struct{ account, code string }

func (r *Region) readDeals(tx *catalog.Tx) (d deals, err error) {
	offers, err := tx.Offers()
	if err = r.legible(err); err != nil {
		return d, err
	}
	d.offers = map[string]ami.Offer{}
	for _, o := range offers {
		d.offers[o.ProductCode] = o
	}
	d.subscriptions, err = tx.Subscriptions()
	d.agreed = map[deal]bool{}
	for _, s := range d.subscriptions {
		d.agreed[deal{s.AccountID, s.ProductCode}] = true
	}
	return d, r.legible(err)
}

// subscriptions makes the lines of subscriptions: each month in which one is there for
// a while costs its whole price, once.
func (m *biller) subscriptions(now time.Time) {
	done := map[deal]bool{}
	for _, s := range m.deals.subscriptions {
		offer, ok := m.deals.offers[s.ProductCode]
		end := s.CancelledAt
		if end.IsZero() || end.After(now) {
			end = now
		}
		if end.Before(s.SubscribedAt) { // the clock was set back
			end = s.SubscribedAt
		}
		from, to, _ := m.within(s.SubscribedAt, end)
		k := deal{s.AccountID, s.ProductCode}
		// What ended as the month began is not of it; what has just begun is.
		there := s.SubscribedAt.Before(m.End) && (end.After(m.Start) || !s.SubscribedAt.Before(m.Start))
		if !ok || done[k] || !there {
			continue
		}
		if price := decimal(offer.MonthlyPrice); price.Sign() > 0 {
			done[k] = true
			m.add(BillLine{
				AccountID: s.AccountID, Kind: BillSubscription, ResourceID: s.ProductCode, Type: s.ProductCode,
				Start: from, End: to, Unit: "Months", Currency: offer.Currency, Seller: offer.OwnerID,
			}, big.NewRat(1, 1), price)
		}
	}
}
