package region

import (
	"cmp"
	"math/big"
	"slices"
)

// sum puts the lines in order and adds them up.
func (m *biller) sum() {
	order := func(kind string) int {
		return slices.Index([]string{BillInstance, BillProduct, BillSubscription, BillVolume, BillSnapshot}, kind)
	}
	slices.SortStableFunc(m.Lines, func(a, b BillLine) int {
		return cmp.Or(cmp.Compare(a.AccountID, b.AccountID), cmp.Compare(order(a.Kind), order(b.Kind)), cmp.Compare(a.Type, b.Type),
			a.Start.Compare(b.Start), cmp.Compare(a.ResourceID, b.ResourceID))
	})
	type sums struct{ quantity, cost *big.Rat }
	var keys []BillTotal
	of := map[BillTotal]*sums{}
	add := func(key BillTotal, quantity, cost *big.Rat) {
		s := of[key]
		if s == nil {
			s = &sums{new(big.Rat), new(big.Rat)}
			of[key], keys = s, append(keys, key)
		}
		s.quantity.Add(s.quantity, quantity)
		s.cost.Add(s.cost, cost)
	}
	for _, l := range m.Lines {
		add(BillTotal{AccountID: l.AccountID, Kind: l.Kind, Type: l.Type, Unit: l.Unit, UnitPrice: l.UnitPrice, Currency: l.Currency}, l.quantity, l.cost)
	}
	for _, l := range m.Lines {
		add(BillTotal{AccountID: l.AccountID, Kind: BillTotalKind, Currency: l.Currency}, new(big.Rat), l.cost)
	}
	for _, key := range keys {
		total := key
		if key.Kind != BillTotalKind {
			total.Quantity = figure(of[key].quantity)
		}
		total.Cost = figure(of[key].cost)
		m.Totals = append(m.Totals, total)
	}
	slices.SortStableFunc(m.Totals, func(a, b BillTotal) int { return cmp.Compare(a.AccountID, b.AccountID) })
}
