package region

import (
	"fmt"
	"strings"
	"time"
)

// provider is who provides, publishes and bills what is used.
const provider = "kami"

// focusColumn is a column and what it says of a line.
type focusColumn struct {
	name string
	text func(Bill, BillLine) string
}

// focusColumns are the columns of FOCUS, the FinOps Open Cost and Usage Specification,
// version 1.0: all that are mandatory, and of the conditional and recommended ones
// those that a region has something to say in.
// https://focus.finops.org/focus-specification/v1-0/
func focusColumns() []focusColumn {
	return []focusColumn{
		{"BilledCost", func(_ Bill, l BillLine) string { return l.Cost }},
		{"BillingAccountId", func(_ Bill, l BillLine) string { return l.AccountID }},
		{"BillingAccountName", func(_ Bill, l BillLine) string { return l.AccountID }},
		{"BillingCurrency", func(_ Bill, l BillLine) string { return l.Currency }},
		{"BillingPeriodEnd", func(b Bill, _ BillLine) string { return focusTime(b.End) }},
		{"BillingPeriodStart", func(b Bill, _ BillLine) string { return focusTime(b.Start) }},
		{"ChargeCategory", func(_ Bill, l BillLine) string { return either(l.Kind == BillSubscription, "Purchase", "Usage") }},
		{"ChargeClass", func(Bill, BillLine) string { return "" }}, // null: no row corrects another one
		{"ChargeDescription", func(_ Bill, l BillLine) string { return l.describe() }},
		{"ChargeFrequency", func(_ Bill, l BillLine) string { return either(l.Kind == BillSubscription, "Recurring", "Usage-Based") }},
		{"ChargePeriodEnd", func(_ Bill, l BillLine) string { return focusTime(l.End) }},
		{"ChargePeriodStart", func(_ Bill, l BillLine) string { return focusTime(l.Start) }},
		{"ConsumedQuantity", func(_ Bill, l BillLine) string { return either(l.Kind == BillSubscription, "", l.Quantity) }},
		{"ConsumedUnit", func(_ Bill, l BillLine) string { return either(l.Kind == BillSubscription, "", l.Unit) }},
		{"ContractedCost", func(_ Bill, l BillLine) string { return l.Cost }}, // nobody has a discount
		{"ContractedUnitPrice", func(_ Bill, l BillLine) string { return l.UnitPrice }},
		{"EffectiveCost", func(_ Bill, l BillLine) string { return l.Cost }},
		{"InvoiceIssuerName", func(Bill, BillLine) string { return provider }},
		{"ListCost", func(_ Bill, l BillLine) string { return l.Cost }},
		{"ListUnitPrice", func(_ Bill, l BillLine) string { return l.UnitPrice }},
		{"PricingCategory", func(Bill, BillLine) string { return "Standard" }},
		{"PricingQuantity", func(_ Bill, l BillLine) string { return l.Quantity }},
		{"PricingUnit", func(_ Bill, l BillLine) string { return l.Unit }},
		{"ProviderName", func(Bill, BillLine) string { return provider }},
		{"PublisherName", func(_ Bill, l BillLine) string { return either(l.Seller == "", provider, l.Seller) }},
		{"RegionId", func(b Bill, _ BillLine) string { return b.Region }},
		{"RegionName", func(b Bill, _ BillLine) string { return b.Region }},
		{"ResourceId", func(_ Bill, l BillLine) string { return l.ResourceID }},
		{"ResourceType", func(_ Bill, l BillLine) string { return focusNouns(l.Kind).resource }},
		{"ServiceCategory", func(_ Bill, l BillLine) string { return focusNouns(l.Kind).category }},
		{"ServiceName", func(_ Bill, l BillLine) string { return focusNouns(l.Kind).service }},
		{"SkuId", func(_ Bill, l BillLine) string { return l.sku() }},
		{"SkuPriceId", func(_ Bill, l BillLine) string { return l.sku() + "@" + l.UnitPrice }},
	}
}

// focusNoun is what FOCUS calls a kind of lines.
type focusNoun struct{ resource, category, service string }

func focusNouns(kind string) focusNoun {
	return map[string]focusNoun{
		BillInstance:     {"Instance", "Compute", "Instances"},
		BillVolume:       {"Volume", "Storage", "Volumes"},
		BillSnapshot:     {"Snapshot", "Storage", "Snapshots"},
		BillProduct:      {"Instance", "Other", "Marketplace"},
		BillSubscription: {"Subscription", "Other", "Marketplace"},
	}[kind]
}

func either(one bool, a, b string) string {
	if one {
		return a
	}
	return b
}

func focusTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// sku is what is sold: kind and type.
func (l BillLine) sku() string { return strings.TrimSuffix(l.Kind+":"+l.Type, ":") }

func (l BillLine) describe() string {
	return fmt.Sprintf("%s %s of %s at %s %s", l.Quantity, l.Unit, l.sku(), l.UnitPrice, l.Currency)
}

// FOCUS is the bill as rows of text, of which the first is the names of the columns:
// those of the FinOps Open Cost and Usage Specification, version 1.0. Its costs sum up
// to the bill's totals.
func (b Bill) FOCUS() [][]string {
	columns := focusColumns()
	head := make([]string, len(columns))
	for i, c := range columns {
		head[i] = c.name
	}
	rows := [][]string{head}
	for _, l := range b.Lines {
		row := make([]string, len(columns))
		for i, c := range columns {
			row[i] = c.text(b, l)
		}
		rows = append(rows, row)
	}
	return rows
}
