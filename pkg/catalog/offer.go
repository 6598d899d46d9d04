package catalog

import (
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// An offer is never deleted: bills of what was used under it are made long afterwards.
const offerSchema = `
	CREATE TABLE offers (
		id TEXT PRIMARY KEY, owner TEXT NOT NULL, created TEXT NOT NULL, doc TEXT NOT NULL
	) STRICT;
	CREATE TABLE subscriptions (
		id TEXT PRIMARY KEY, code TEXT NOT NULL, account TEXT NOT NULL, created TEXT NOT NULL, doc TEXT NOT NULL
	) STRICT;
	CREATE INDEX subscribers ON subscriptions (code, account);`

// PutOffer writes an offer.
func (tx *Tx) PutOffer(o ami.Offer) error {
	return put(tx, "offers", o, []string{"id", "owner", "created"}, o.ProductCode, o.OwnerID, stamp(o.CreationTime))
}

// Offer reads an offer, also one that is deleted. It returns ErrNotFound.
func (tx *Tx) Offer(code string) (ami.Offer, error) {
	return one[ami.Offer](tx, "offers", "id = ?", code)
}

// Offers reads all offers, oldest first, also those that are deleted.
func (tx *Tx) Offers() ([]ami.Offer, error) { return many[ami.Offer](tx, "offers", "TRUE") }

// PutSubscription writes a subscription, which is known by what it is to, whose it is
// and when it began.
func (tx *Tx) PutSubscription(s ami.Subscription) error {
	id := s.ProductCode + "/" + s.AccountID + "/" + s.SubscribedAt.UTC().Format(time.RFC3339Nano)
	return put(tx, "subscriptions", s, []string{"id", "code", "account", "created"}, id, s.ProductCode, s.AccountID, stamp(s.SubscribedAt))
}

// Subscriptions reads all subscriptions, oldest first, also those that are cancelled.
func (tx *Tx) Subscriptions() ([]ami.Subscription, error) {
	return many[ami.Subscription](tx, "subscriptions", "TRUE")
}

// SubscriptionsOf reads the subscriptions of one account to one offer, oldest first.
func (tx *Tx) SubscriptionsOf(account, code string) ([]ami.Subscription, error) {
	return many[ami.Subscription](tx, "subscriptions", "code = ? AND account = ?", code, account)
}
