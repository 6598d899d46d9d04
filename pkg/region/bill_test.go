package region

import (
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// meterHand is a clock that stands at the beginning of a month, and the host's time.
type meterHand struct {
	hand
	up time.Duration
}

func newMeterHand() *meterHand {
	return &meterHand{hand{time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}, time.Hour}
}

func (h *meterHand) pass(d time.Duration) { h.turn(d); h.up += d }

func (h *meterHand) options(o *Options) {
	h.clock(o)
	o.Uptime = func() (string, time.Duration) { return "a boot", h.up }
}

// bill is a month's bill of what costs something by the line.
func bill(t *testing.T, r *Region, month string) Bill {
	t.Helper()
	return get(r.Bill(t.Context(), BillInput{Month: month}))(t)
}

// wantLines compares the lines of a kind, each as type, quantity and cost.
func wantLines(t *testing.T, b Bill, kind string, want ...string) {
	t.Helper()
	var got []string
	for _, l := range b.Lines {
		if l.Kind == kind {
			got = append(got, l.Type+" "+l.Quantity+" "+l.Cost)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: got the %s lines %q, want %q", b.Month, kind, got, want)
	}
}

func priced(t *testing.T, h *house, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(h.home, pricesName), []byte(text), 0o600))
}

const somePrices = `
currency: EUR
instance_hour: {t3.micro: 0.0104, default: "1"}
volume_gib_month: {default: 0.08}
snapshot_gib_month: 0.05
product_hour: {acme: 0.3}
`

func TestBillOfInstances(t *testing.T) {
	t.Parallel()
	h, clock := newHouse(t), newMeterHand()
	priced(t, h, somePrices)
	r := h.open(t, clock.options)
	inst := running(t, r)
	clock.pass(90 * time.Minute)
	wantLines(t, bill(t, r, ""), BillInstance, "t3.micro 1.5 0.0156") // it goes on
	stop(t, r, inst.InstanceID)
	clock.pass(time.Hour)
	get(r.StartInstances(t.Context(), []ami.InstanceID{inst.InstanceID}, false))(t)
	clock.pass(10 * time.Second) // which costs a minute
	stop(t, r, inst.InstanceID)
	b := bill(t, r, "2026-11")
	wantLines(t, b, BillInstance, "t3.micro 1.5 0.0156", "t3.micro 0.0166666667 0.0001733333")
	if total := b.Totals[0]; total.Quantity != "1.5166666667" || total.Cost != "0.0157733333" || total.Currency != "EUR" {
		t.Errorf("got the total %+v", total)
	}
	if got := get(h.open(t, clock.options, as(stranger)).Bill(t.Context(), BillInput{}))(t); len(got.Lines) != 0 {
		t.Errorf("a stranger pays for %+v", got.Lines)
	}
	if got := get(r.Bill(t.Context(), BillInput{AllAccounts: true}))(t); len(got.Lines) != len(b.Lines) {
		t.Errorf("got %d lines of all accounts, want %d", len(got.Lines), len(b.Lines))
	}
	_, err := h.open(t, clock.options, as(stranger)).Bill(t.Context(), BillInput{AllAccounts: true})
	wantCode(t, err, ami.CodeUnauthorizedOperation)
	_, err = r.Bill(t.Context(), BillInput{Month: "2026-12"})
	wantSays(t, err, "has not begun")
	_, err = r.Bill(t.Context(), BillInput{Month: "November"})
	wantCode(t, err, ami.CodeInvalidParameterValue)
}

// A run over the end of a month is in both bills, and nothing of it in both.
func TestBillCutsAtTheMonth(t *testing.T) {
	t.Parallel()
	h, clock := newHouse(t), newMeterHand()
	priced(t, h, somePrices)
	clock.pass(30*24*time.Hour - 45*time.Minute - 300*time.Millisecond)
	r := h.open(t, clock.options)
	inst := running(t, r)
	clock.pass(2 * time.Hour)
	terminate(t, r, inst.InstanceID)
	wantLines(t, bill(t, r, "2026-11"), BillInstance, "t3.micro 0.7502777778 0.0078028889")
	wantLines(t, bill(t, r, "2026-12"), BillInstance, "t3.micro 1.2497222222 0.0129971111")
}

// The minute that a run costs at least is cut by the month as well.
func TestBillCutsTheLeastRun(t *testing.T) {
	t.Parallel()
	h, clock := newHouse(t), newMeterHand()
	priced(t, h, somePrices)
	clock.pass(30*24*time.Hour - 10*time.Second)
	r := h.open(t, clock.options)
	inst := running(t, r)
	clock.pass(5 * time.Second)
	terminate(t, r, inst.InstanceID)
	clock.pass(time.Hour)
	wantLines(t, bill(t, r, "2026-11"), BillInstance, "t3.micro 0.0027777778 0.0000288889")
	wantLines(t, bill(t, r, "2026-12"), BillInstance, "t3.micro 0.0138888889 0.0001444444")
}

// However the clock is set, an hour is an hour; and a command that opens the region
// again finds what goes on.
func TestBillWithAClockSetBack(t *testing.T) {
	t.Parallel()
	h, clock := newHouse(t), newMeterHand()
	clock.pass(5 * 24 * time.Hour)
	r := h.open(t, clock.options)
	inst := running(t, r)
	clock.pass(2 * time.Hour)
	clock.turn(-36 * time.Hour)
	wantLines(t, bill(t, r, "2026-11"), BillInstance, "t3.micro 2 0")
	clock.pass(time.Hour)
	must(t, r.Close())
	r = h.open(t, clock.options)
	stop(t, r, inst.InstanceID)
	clock.turn(48 * time.Hour)
	wantLines(t, bill(t, r, "2026-11"), BillInstance, "t3.micro 3 0")
}

// A guest that ended by itself ran until its last sign of life, whenever that is
// noticed.
func TestBillOfAGuestThatDied(t *testing.T) {
	t.Parallel()
	h, clock := newHouse(t), newMeterHand()
	r := h.open(t, clock.options)
	inst := running(t, r)
	old := clock.at
	clock.pass(3 * time.Hour)
	v := volumeOf(t, r, inst, inst.RootDeviceName)
	for _, path := range []string{r.layers.HeadPath(v.VolumeID), r.consolePath(inst.InstanceID)} {
		if err := os.Chtimes(path, old, old.Add(time.Hour)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	h.driver.PowerOff(inst.InstanceID)
	wantLines(t, bill(t, r, ""), BillInstance, "t3.micro 1 0")
	wantState(t, r, inst.InstanceID, ami.InstanceStopped)
}

// Each byte of a layer is paid for once, by the oldest snapshot that stands on it.
func TestBillOfSnapshots(t *testing.T) {
	t.Parallel()
	h, clock := newHouse(t), newMeterHand()
	const g = gib
	day := 24 * time.Hour
	at := func(days int) time.Time { return clock.at.Add(time.Duration(days) * day) }
	snap := func(id string, from, to int, layers ...ami.LayerUse) catalog.UsageRecord {
		return catalog.UsageRecord{ID: id, Usage: ami.Usage{Kind: ami.UsageSnapshot, ResourceID: id, OwnerID: ami.DefaultAccount, From: at(from), To: at(to), Layers: layers}}
	}
	base, more := ami.LayerUse{Layer: "aa", Bytes: 30 * g}, ami.LayerUse{Layer: "bb", Bytes: 3 * g}
	tests := []struct {
		name string
		all  []catalog.UsageRecord
		want []string
	}{
		{"whole", []catalog.UsageRecord{snap("a", -10, 40, base)}, []string{"a 30"}},
		{"increment", []catalog.UsageRecord{snap("b", 10, 40, more, base), snap("a", 0, 40, base)}, []string{"a 30", "b 2"}},
		{"one layer twice", []catalog.UsageRecord{snap("a", 0, 30, base), snap("b", 0, 30, base)}, []string{"a 30"}},
		{"parent deleted", []catalog.UsageRecord{snap("a", 0, 10, base), snap("b", 0, 30, more, base)}, []string{"a 10", "b 23"}},
		{"three, of which the middle one goes", []catalog.UsageRecord{snap("a", 0, 10, base), snap("b", 5, 8, base), snap("c", 6, 20, base)}, []string{"a 10", "c 10"}},
		{"with a gap", []catalog.UsageRecord{snap("a", 0, 10, base), snap("b", 20, 30, base)}, []string{"a 10", "b 10"}},
		{"of another month", []catalog.UsageRecord{snap("a", 31, 40, base)}, nil},
	}
	for _, tt := range tests {
		m := &biller{Bill: Bill{Start: clock.at, End: clock.at.AddDate(0, 1, 0)}}
		m.snapshots(tt.all)
		var got []string
		for _, l := range m.Lines {
			got = append(got, l.ResourceID+" "+l.Quantity)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}

	// And through the region: an image of a guest that changed little costs little.
	priced(t, h, somePrices)
	r := h.open(t, clock.options)
	inst := stop(t, r, running(t, r).InstanceID)
	get(r.CreateImage(t.Context(), CreateImageInput{InstanceID: inst.InstanceID, Name: "next"}))(t)
	clock.pass(30*day - time.Second)
	b := bill(t, r, "2026-11")
	var bytes int64
	for _, l := range get(r.layers.Layers(t.Context()))(t) {
		bytes += l.FileSize
	}
	sum := new(big.Rat)
	for _, l := range b.Lines {
		if l.Kind == BillSnapshot {
			sum.Add(sum, l.quantity)
		}
	}
	gibs, _ := new(big.Rat).Mul(sum, big.NewRat(gib, 1)).Float64()
	if float64(bytes)-gibs > 1 || gibs > float64(bytes) {
		t.Errorf("the snapshots are charged for %.1f bytes, want the %d of the layers", gibs, bytes)
	}
}

func TestBillOfVolumes(t *testing.T) {
	t.Parallel()
	h, clock := newHouse(t), newMeterHand()
	priced(t, h, somePrices)
	r := h.open(t, clock.options)
	v := get(r.CreateVolume(t.Context(), CreateVolumeInput{Size: 10}))(t)
	clock.pass(3 * 24 * time.Hour)
	must(t, r.DeleteVolume(t.Context(), v.VolumeID, false))
	clock.pass(time.Hour)
	wantLines(t, bill(t, r, ""), BillVolume, "gp3 1 0.08")
}

func TestBillOfProducts(t *testing.T) {
	t.Parallel()
	h, clock := newHouse(t), newMeterHand()
	priced(t, h, somePrices)
	r := h.open(t, clock.options)
	offer := ami.Offer{ProductCode: "web", OwnerID: stranger, HourlyPrice: "0.5", MonthlyPrice: "20", Currency: "USD", CreationTime: clock.at}
	mine := offer
	mine.ProductCode, mine.OwnerID = "mine", ami.DefaultAccount
	later := offer // of a code that the instance had before anybody offered it
	later.ProductCode, later.HourlyPrice = "devpay", "100"
	inst := ami.Instance{
		InstanceID: ami.NewInstanceID(), OwnerID: ami.DefaultAccount, InstanceType: "m5.large", State: ami.StateRecord(ami.InstanceRunning),
		ProductCodes: []ami.ProductCode{{ID: "acme"}, {ID: "web"}, {ID: "mine"}, {ID: "devpay"}},
	}
	put := func(fn func(tx *catalog.Tx) error) { must(t, r.catalog.Update(t.Context(), fn)) }
	put(func(tx *catalog.Tx) error { return tx.PutOffer(offer) })
	put(func(tx *catalog.Tx) error { return tx.PutOffer(mine) })
	put(func(tx *catalog.Tx) error { return tx.PutOffer(later) })
	put(func(tx *catalog.Tx) error { return tx.PutInstance(inst) })
	for _, from := range []time.Time{clock.at, clock.at.Add(time.Hour)} {
		s := ami.Subscription{ProductCode: "web", AccountID: ami.DefaultAccount, SubscribedAt: from, CancelledAt: from.Add(time.Minute)}
		put(func(tx *catalog.Tx) error { return tx.PutSubscription(s) })
	}
	clock.pass(2 * time.Hour)
	inst.State = ami.StateRecord(ami.InstanceStopped)
	put(func(tx *catalog.Tx) error { return tx.PutInstance(inst) })
	b := bill(t, r, "")
	wantLines(t, b, BillInstance, "m5.large 2 2")
	wantLines(t, b, BillProduct, "acme 2 0.6", "devpay 2 0", "web 2 1")
	wantLines(t, b, BillSubscription, "web 1 20") // a month, though there were two
	var totals []string
	for _, total := range b.Totals {
		if total.Kind == BillTotalKind {
			totals = append(totals, total.Cost+" "+total.Currency)
		}
	}
	if want := []string{"2.6 EUR", "21 USD"}; !slices.Equal(totals, want) {
		t.Errorf("got the totals %q, want %q", totals, want)
	}
}

// A run whose root is replaced by one that is sold costs that from then on.
func TestBillOfAProductThatComesLater(t *testing.T) {
	t.Parallel()
	h, clock := newHouse(t), newMeterHand()
	priced(t, h, somePrices)
	r, seller := h.open(t, clock.options), h.open(t, clock.options, as(stranger))
	offered(t, seller, "web", func(in *CreateOfferInput) { in.HourlyPrice = "0.5" })
	i := sold(t, seller, "web-1", "web", accountOf(ami.DefaultAccount))
	subscribed(t, r, "web")
	inst := running(t, r)
	clock.pass(time.Hour)
	get(r.ReplaceRootVolume(t.Context(), ReplaceRootInput{InstanceID: inst.InstanceID, ImageID: i.ImageID}))(t)
	clock.pass(2 * time.Hour)
	b := bill(t, r, "")
	wantLines(t, b, BillInstance, "t3.micro 1 0.0104", "t3.micro 2 0.0208")
	wantLines(t, b, BillProduct, "web 2 1")
}

// A month of a subscription is charged in each month in which it is there.
func TestBillOfSubscriptions(t *testing.T) {
	at := func(month time.Month, day int) time.Time { return time.Date(2026, month, day, 0, 0, 0, 0, time.UTC) }
	tests := []struct {
		name            string
		from, to, now   time.Time
		october, inNext string // the stretch that is told, in days of the months
	}{
		{"goes on", at(10, 5), time.Time{}, at(11, 3), "10-05 11-01", "11-01 11-03"},
		{"cancelled", at(10, 5), at(10, 6), at(11, 3), "10-05 10-06", ""},
		{"cancelled as the month ends", at(10, 5), at(11, 1), at(11, 3), "10-05 11-01", ""},
		{"cancelled in the next", at(10, 5), at(11, 1).Add(1), at(11, 3), "10-05 11-01", "11-01 11-01"},
		{"from the first instant", at(11, 1), time.Time{}, at(11, 1), "", "11-01 11-01"},
		{"ended as the month begins", at(9, 5), at(10, 1), at(11, 3), "", ""},
		{"with the clock set back", at(10, 5), time.Time{}, at(10, 2), "10-05 10-05", ""},
	}
	for _, tt := range tests {
		for month, want := range map[time.Month]string{10: tt.october, 11: tt.inNext} {
			m := &biller{
				Bill: Bill{Start: at(month, 1), End: at(month+1, 1)},
				deals: deals{
					offers:        map[string]ami.Offer{"web": {ProductCode: "web", MonthlyPrice: "20"}},
					subscriptions: []ami.Subscription{{ProductCode: "web", SubscribedAt: tt.from, CancelledAt: tt.to}},
				},
			}
			m.subscriptions(tt.now)
			var got string
			for _, l := range m.Lines {
				got += l.Start.Format("01-02 ") + l.End.Format("01-02")
			}
			if got != want {
				t.Errorf("%s: in %s got %q, want %q", tt.name, month, got, want)
			}
		}
	}
}

func TestPrices(t *testing.T) {
	for text, says := range map[string]string{
		somePrices:                                          "",
		"currency: euro":                                    "three capital letters",
		"currency: EUR\nfoo: 1":                             "foo",
		"currency: EUR\nsnapshot_gib_month: -1":             "not an amount",
		"currency: EUR\ninstance_hour: {t3.micro: 1e3}":     "t3.micro",
		"currency: EUR\nvolume_gib_month: {gp3: free}":      "gp3",
		"currency: EUR\nproduct_hour: {acme: 0.1234567890}": "",
	} {
		_, err := parsePrices([]byte(text))
		if says == "" {
			must(t, err)
		} else {
			wantSays(t, err, says)
		}
	}
	p := get(parsePrices([]byte(somePrices)))(t)
	if p.InstanceHour["t3.micro"] != "0.0104" {
		t.Errorf("got the price %q, want the text of the list", p.InstanceHour["t3.micro"])
	}
}

// The rows of FOCUS have all mandatory columns, and sum up to the bill.
func TestBillAsFOCUS(t *testing.T) {
	t.Parallel()
	h, clock := newHouse(t), newMeterHand()
	priced(t, h, somePrices)
	r := h.open(t, clock.options)
	running(t, r)
	clock.pass(100 * time.Minute)
	b := bill(t, r, "")
	rows := b.FOCUS()
	mandatory := []string{
		"BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory",
		"ChargeClass", "ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName",
		"ListCost", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "ServiceCategory", "ServiceName",
	}
	for _, name := range mandatory {
		if !slices.Contains(rows[0], name) {
			t.Errorf("there is no column %s", name)
		}
	}
	nulls := []string{"ChargeClass"}
	sum := new(big.Rat)
	for _, row := range rows[1:] {
		sum.Add(sum, decimal(row[slices.Index(rows[0], "BilledCost")]))
		for i, name := range rows[0] {
			if (row[i] == "") != slices.Contains(nulls, name) {
				t.Errorf("%s is %q", name, row[i])
			}
		}
	}
	if total := b.Totals[len(b.Totals)-1]; total.Kind != BillTotalKind || figure(sum) != total.Cost || len(rows) != len(b.Lines)+1 {
		t.Errorf("%d rows sum up to %s, want %+v", len(rows)-1, figure(sum), total)
	}
}
