package ami

import (
	"slices"
	"time"
)

// An Offer sells images: who launches one that has its product code has subscribed to
// it before, and pays its prices. It is known by its product code, which no other
// offer of the region ever has. It is kami's own noun, for what EC2 leaves to AWS
// Marketplace.
type Offer struct {
	ProductCode  string    `json:"ProductCode"`
	OwnerID      string    `json:"OwnerId"` // the account that sells
	Title        string    `json:"Title"`
	HourlyPrice  string    `json:"HourlyPrice"`  // of an instance that runs, as a decimal number; "0" is for nothing
	MonthlyPrice string    `json:"MonthlyPrice"` // of a subscription, likewise
	Currency     string    `json:"Currency"`     // ISO 4217, such as EUR
	Terms        string    `json:"Terms,omitempty"`
	CreationTime time.Time `json:"CreationTime"`
	// DeletionTime is since when nobody can subscribe any more. The record stays, for
	// those who have subscribed pay by it.
	DeletionTime time.Time `json:"DeletionTime,omitzero"`
}

// A Subscription is an account's to an offer, from one instant to another. An account
// that subscribes again has another one.
type Subscription struct {
	ProductCode  string    `json:"ProductCode"` // of the offer
	AccountID    string    `json:"AccountId"`
	SubscribedAt time.Time `json:"SubscribedAt"`
	CancelledAt  time.Time `json:"CancelledAt,omitzero"` // zero: it is not
}

// MarketplaceCode is the type of product codes that offers have.
const MarketplaceCode = "marketplace"

// JoinProductCodes returns all codes of some lists, each once, in order.
func JoinProductCodes(lists ...[]ProductCode) (all []ProductCode) {
	for _, c := range slices.Concat(lists...) {
		if !slices.ContainsFunc(all, func(o ProductCode) bool { return o.ID == c.ID }) {
			all = append(all, c)
		}
	}
	return all
}

// ProductCodeIDs are the codes without their types.
func ProductCodeIDs(codes []ProductCode) (ids []string) {
	for _, c := range codes {
		ids = append(ids, c.ID)
	}
	return ids
}
