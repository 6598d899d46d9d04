package region

import (
	"cmp"
	"context"
	"math/big"
	"slices"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
	"github.com/kamivm/kami/pkg/digest"
)

// BillInput asks for a bill.
type BillInput struct {
	Month       string // such as 2026-11, in UTC; "" is the one that runs
	AllAccounts bool   // of everybody, which is for whoever keeps the region
}

// Bill is what was used in a month, and what it costs by the price list of today.
type Bill struct {
	Region       string      `json:"RegionName"`
	Month        string      `json:"Month"`
	Start        time.Time   `json:"BillingPeriodStart"`
	End          time.Time   `json:"BillingPeriodEnd"`       // exclusive
	Until        time.Time   `json:"UsageUntil"`             // what goes on is cut here
	MeteredSince time.Time   `json:"MeteredSince"`           // before that nothing was noted
	PriceList    string      `json:"PriceListFile,omitzero"` // "" is none: all costs are 0
	Lines        []BillLine  `json:"Lines"`
	Totals       []BillTotal `json:"Totals"`
}

// The kinds of a bill's lines.
const (
	BillInstance     = string(ami.UsageInstance)
	BillVolume       = string(ami.UsageVolume)
	BillSnapshot     = string(ami.UsageSnapshot)
	BillProduct      = "product"      // the hours of an instance, for what its image is sold as
	BillSubscription = "subscription" // a month of one
)

// BillLine is one use of one thing. Numbers are decimal texts with at most ten places.
type BillLine struct {
	AccountID  string    `json:"AccountId"`
	Kind       string    `json:"Kind"`
	ResourceID string    `json:"ResourceId"`
	Type       string    `json:"Type,omitempty"` // of an instance or volume; a product's code
	Start      time.Time `json:"ChargePeriodStart"`
	End        time.Time `json:"ChargePeriodEnd"`
	Quantity   string    `json:"Quantity"`
	Unit       string    `json:"Unit"` // Hours, GiB-Months or Months
	UnitPrice  string    `json:"UnitPrice"`
	Cost       string    `json:"Cost"`
	Currency   string    `json:"Currency"`
	Seller     string    `json:"SellerId,omitempty"` // the account that offers a product
	// ProductCodes are those of an instance.
	ProductCodes []string `json:"ProductCodes,omitempty"`

	quantity, cost *big.Rat
}

// BillTotal is the sum of the lines of one account, kind, type and price. Kind "total"
// is of all of an account's.
type BillTotal struct {
	AccountID string `json:"AccountId"`
	Kind      string `json:"Kind"`
	Type      string `json:"Type,omitempty"`
	Quantity  string `json:"Quantity,omitempty"`
	Unit      string `json:"Unit,omitempty"`
	UnitPrice string `json:"UnitPrice,omitempty"`
	Cost      string `json:"Cost"`
	Currency  string `json:"Currency"`
}

// BillTotalKind is the kind of an account's total.
const BillTotalKind = "total"

// leastRun is what a run of an instance costs at least, as on EC2's Linux instances.
const leastRun = time.Minute

const monthForm = "2006-01"

// Bill makes the bill of a month: of the caller, or of all accounts, which is
// UnauthorizedOperation to one that does not keep the region.
func (r *Region) Bill(ctx context.Context, in BillInput) (Bill, error) {
	if in.AllAccounts {
		if err := r.checkKeeper(); err != nil {
			return Bill{}, err
		}
	}
	now := r.now()
	start := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	if in.Month != "" {
		var err error
		if start, err = time.Parse(monthForm, in.Month); err != nil {
			return Bill{}, ami.Errorf(ami.CodeInvalidParameterValue, "%q is no month.", in.Month).WithHint("Give one as %s.", now.Format(monthForm))
		}
	}
	if start.After(now) {
		return Bill{}, ami.Errorf(ami.CodeInvalidParameterValue, "The month %s has not begun.", in.Month)
	}
	list, err := r.prices()
	if err != nil {
		return Bill{}, err
	}
	asked := func(account string) bool { return in.AllAccounts || account == r.account }
	var instances []ami.Instance
	var usages []catalog.UsageRecord
	b := Bill{Region: r.opts.Name, Month: start.Format(monthForm), Start: start, End: start.AddDate(0, 1, 0), PriceList: list.path}
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		instances, err = tx.Instances()
		return r.legible(err)
	})
	if err != nil {
		return Bill{}, storeError(err, "The instances cannot be read.")
	}
	// Guests that ended by themselves are noticed.
	r.observe(ctx, slices.DeleteFunc(instances, func(i ami.Instance) bool { return !asked(i.OwnerID) }))
	var deals deals
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		if usages, err = tx.Usages(b.Start.Add(-leastRun), b.End); r.legible(err) != nil {
			return err
		}
		if deals, err = r.readDeals(tx); err != nil {
			return err
		}
		return tx.Setting("", catalog.SettingMetered, &b.MeteredSince)
	})
	if err != nil {
		return Bill{}, storeError(err, "What was used cannot be read.")
	}
	at := r.instant()
	for i, u := range usages {
		if u.To.IsZero() {
			usages[i].To = u.EndAt(at.Time, at.Boot, at.Up)
		}
	}
	b.Until = at.Time
	if b.End.Before(b.Until) {
		b.Until = b.End
	}
	m := &biller{Bill: b, prices: list, deals: deals}
	for _, u := range usages {
		switch {
		case !asked(u.OwnerID):
		case u.Kind == ami.UsageInstance:
			m.instance(u.Usage)
		case u.Kind == ami.UsageVolume:
			m.storage(u.Usage, BillVolume, m.byteSeconds(u.From, u.To, u.Bytes))
		}
	}
	m.snapshots(usages) // all of them, for they share layers
	m.subscriptions(at.Time)
	m.Lines = slices.DeleteFunc(m.Lines, func(l BillLine) bool { return !asked(l.AccountID) })
	m.sum()
	return m.Bill, nil
}

// biller makes a bill's lines.
type biller struct {
	Bill
	prices Prices
	deals  deals
}

// within cuts an interval to the bill's month, in whole seconds.
func (m *biller) within(from, to time.Time) (time.Time, time.Time, int64) {
	from, to = from.Truncate(time.Second), to.Truncate(time.Second)
	if from.Before(m.Start) {
		from = m.Start
	}
	if to.After(m.End) {
		to = m.End
	}
	return from, to, max(int64(to.Sub(from)/time.Second), 0)
}

func (m *biller) add(l BillLine, quantity, price *big.Rat) {
	cost, _ := new(big.Rat).SetString(figure(new(big.Rat).Mul(quantity, price)))
	l.Quantity, l.UnitPrice, l.Cost, l.quantity, l.cost = figure(quantity), figure(price), figure(cost), quantity, cost
	if l.Currency == "" {
		l.Currency = m.prices.Currency
	}
	m.Lines = append(m.Lines, l)
}

// instance makes the lines of a run: its hours, and those of its products.
func (m *biller) instance(u ami.Usage) {
	if u.To.Sub(u.From) < leastRun {
		u.To = u.From.Add(leastRun)
	}
	from, to, seconds := m.within(u.From, u.To)
	if seconds == 0 {
		return
	}
	hours := big.NewRat(seconds, 3600)
	l := BillLine{AccountID: u.OwnerID, Kind: BillInstance, ResourceID: u.ResourceID, Type: u.Type, Start: from, End: to, Unit: "Hours", ProductCodes: u.ProductCodes}
	m.add(l, hours, priceOf(m.prices.InstanceHour, u.Type))
	for _, code := range u.ProductCodes {
		l := l
		l.Kind, l.Type, l.ProductCodes = BillProduct, code, nil
		price := decimal(m.prices.ProductHour[code])
		offer, ok := m.deals.offers[code]
		if ok && offer.OwnerID == u.OwnerID { // its own
			continue
		}
		// Nobody pays what he never agreed to: an instance whose code was a mere mark when
		// it was launched does not cost what somebody offers by it since.
		if ok && m.deals.agreed[deal{u.OwnerID, code}] {
			price, l.Currency, l.Seller = decimal(offer.HourlyPrice), offer.Currency, offer.OwnerID
		}
		m.add(l, hours, price)
	}
}

// byteSeconds is bytes times seconds in the month.
func (m *biller) byteSeconds(from, to time.Time, bytes int64) *big.Int {
	_, _, seconds := m.within(from, to)
	return new(big.Int).Mul(big.NewInt(seconds), big.NewInt(bytes))
}

// storage makes the line of a volume or snapshot: the average of its GiB over the
// whole month.
func (m *biller) storage(u ami.Usage, kind string, byteSeconds *big.Int) {
	if byteSeconds.Sign() == 0 {
		return
	}
	from, to, _ := m.within(u.From, u.To)
	month := new(big.Int).Mul(big.NewInt(int64(m.End.Sub(m.Start)/time.Second)), big.NewInt(gib))
	price := decimal(m.prices.SnapshotGiBMonth)
	if kind == BillVolume {
		price = priceOf(m.prices.VolumeGiBMonth, u.Type)
	}
	m.add(BillLine{AccountID: u.OwnerID, Kind: kind, ResourceID: u.ResourceID, Type: u.Type, Start: from, End: to, Unit: "GiB-Months"},
		new(big.Rat).SetFrac(byteSeconds, month), price)
}

// snapshots makes the lines of the snapshots. Each layer is charged once, whoever
// stands on it: to the oldest snapshot that does, and when that is deleted to the next.
func (m *biller) snapshots(all []catalog.UsageRecord) {
	all = slices.DeleteFunc(slices.Clone(all), func(u catalog.UsageRecord) bool { return u.Kind != ami.UsageSnapshot })
	slices.SortStableFunc(all, func(a, b catalog.UsageRecord) int {
		return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.ID, b.ID))
	})
	// All who were there before began before, so that what they pay of what is still
	// to come is one stretch.
	paid := map[digest.Digest]time.Time{}
	for _, u := range all {
		sum := new(big.Int)
		for _, layer := range u.Layers {
			from := u.From
			if until := paid[layer.Layer]; until.After(from) {
				from = until
			}
			if u.To.After(from) {
				sum.Add(sum, m.byteSeconds(from, u.To, layer.Bytes))
				paid[layer.Layer] = u.To
			}
		}
		m.storage(u.Usage, BillSnapshot, sum)
	}
}
