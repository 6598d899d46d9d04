package region

import (
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/kamivm/kami/pkg/ami"
)

// Prices is a price list. Its amounts are decimal numbers as text, never floating
// point; of those by type, default is for what is not named.
type Prices struct {
	Currency         string            `json:"Currency" yaml:"currency"` // ISO 4217, such as EUR
	InstanceHour     map[string]string `json:"InstanceHour,omitempty" yaml:"instance_hour"`
	VolumeGiBMonth   map[string]string `json:"VolumeGiBMonth,omitempty" yaml:"volume_gib_month"`
	SnapshotGiBMonth string            `json:"SnapshotGiBMonth,omitempty" yaml:"snapshot_gib_month"`
	ProductHour      map[string]string `json:"ProductHour,omitempty" yaml:"product_hour"` // of codes that have no offer

	path string // "" where there is none
}

// pricesName is the price list's file, in the region's folder or else in the home.
const pricesName = "prices.yaml"

// defaultCurrency is that of amounts that are all nothing.
const defaultCurrency = "USD"

// prices reads the price list: the region's own, else the home's, else one on which
// everything is free.
func (r *Region) prices() (Prices, error) {
	for _, path := range []string{r.path(pricesName), filepath.Join(r.opts.Home, pricesName)} {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Prices{}, storeError(err, "The price list %s cannot be read.", path)
		}
		p, err := parsePrices(b)
		if err != nil {
			return Prices{}, ami.Errorf(ami.CodeInvalidParameterValue, "The price list %s is not valid: %w", path, err).
				WithHint("docs/billing.md shows one.")
		}
		p.path = path
		return p, nil
	}
	return Prices{Currency: defaultCurrency}, nil
}

var (
	amount   = regexp.MustCompile(`^[0-9]{1,12}(\.[0-9]{1,12})?$`)
	currency = regexp.MustCompile(`^[A-Z]{3}$`)
)

func parsePrices(b []byte) (p Prices, err error) {
	if err := yaml.UnmarshalWithOptions(b, &p, yaml.Strict()); err != nil {
		return p, errors.New(strings.TrimSpace(yaml.FormatError(err, false, false)))
	}
	var errs []error
	if !currency.MatchString(p.Currency) {
		errs = append(errs, fmt.Errorf("the currency %q is not three capital letters, such as EUR", p.Currency))
	}
	check := func(what, text string) {
		if !amount.MatchString(text) {
			errs = append(errs, fmt.Errorf("%s: %q is not an amount such as 0.0104", what, text))
		}
	}
	if p.SnapshotGiBMonth != "" {
		check("snapshot_gib_month", p.SnapshotGiBMonth)
	}
	for _, list := range []struct {
		name   string
		prices map[string]string
	}{{"instance_hour", p.InstanceHour}, {"volume_gib_month", p.VolumeGiBMonth}, {"product_hour", p.ProductHour}} {
		keys := make([]string, 0, len(list.prices))
		for k := range list.prices {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			check(list.name+"."+k, list.prices[k])
		}
	}
	return p, errors.Join(errs...)
}

// priceOf is the price of a type on a list; nothing where it is not there.
func priceOf(list map[string]string, kind string) *big.Rat {
	if text, ok := list[kind]; ok {
		return decimal(text)
	}
	return decimal(list["default"])
}

// decimal is the number that a decimal text says; none is nothing.
func decimal(text string) *big.Rat {
	if !amount.MatchString(text) {
		return new(big.Rat)
	}
	n, ok := new(big.Rat).SetString(text)
	if !ok {
		return new(big.Rat)
	}
	return n
}

// moneyPlaces is to how many decimal places amounts and quantities are told: a row's
// cost is rounded to that, half up, and sums are of what is told.
const moneyPlaces = 10

// figure is a number as it is told, without zeros at its end.
func figure(n *big.Rat) string {
	text := n.FloatString(moneyPlaces)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}
