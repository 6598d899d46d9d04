package region

import (
	"context"
	"crypto/rand"
	"errors"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// Images are sold by their product codes. Who sells makes an offer, whose code he puts
// to images; who launches one of those has subscribed to the offer. What was made of
// such an image has the code too, so that it is paid for as well. EC2 leaves the
// selling to AWS Marketplace; the codes, and what they forbid, are EC2's.

// CreateOfferInput asks for an offer.
type CreateOfferInput struct {
	ProductCode  string // "" is a new one
	Title        string
	HourlyPrice  string // decimal; "" is 0
	MonthlyPrice string // decimal; "" is 0
	Currency     string // ISO 4217; "" where both are 0
	Terms        string // what subscribers have to accept; "" for nothing
	DryRun       bool
}

// Limits on offers.
const (
	maxOfferTitle = 255      // characters
	maxOfferTerms = 64 << 10 // bytes
	productDigits = 25       // of a code that is made here, as AWS Marketplace's have
)

// productCode is the form of a product code.
var productCode = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

func (in *CreateOfferInput) check() error {
	bad := func(format string, args ...any) *ami.Error {
		return ami.Errorf(ami.CodeInvalidParameterValue, format, args...)
	}
	if in.HourlyPrice == "" {
		in.HourlyPrice = "0"
	}
	if in.MonthlyPrice == "" {
		in.MonthlyPrice = "0"
	}
	if in.ProductCode == "" {
		in.ProductCode = strings.ToLower(rand.Text()[:productDigits])
	}
	for _, price := range []string{in.HourlyPrice, in.MonthlyPrice} {
		if !amount.MatchString(price) {
			return bad("The price %q is not a decimal number, such as 0.05.", price)
		}
	}
	free := decimal(in.HourlyPrice).Sign() == 0 && decimal(in.MonthlyPrice).Sign() == 0
	if in.Currency == "" && free {
		in.Currency = defaultCurrency
	}
	switch {
	case !productCode.MatchString(in.ProductCode):
		return bad("The product code %q is not of 1 to 64 letters, digits, points, hyphens and underscores.", in.ProductCode)
	case in.Title == "":
		return ami.Errorf(ami.CodeMissingParameter, "The offer has no title.").WithHint("Say what is sold: --title.")
	case utf8.RuneCountInString(in.Title) > maxOfferTitle || !utf8.ValidString(in.Title) || strings.ContainsFunc(in.Title, unicode.IsControl):
		return bad("The title is not a line of at most %d characters.", maxOfferTitle)
	case in.Currency == "":
		return ami.Errorf(ami.CodeMissingParameter, "The price has no currency.").WithHint("Give it: --currency EUR.")
	case !currency.MatchString(in.Currency):
		return bad("The currency %q is not three capital letters, such as EUR.", in.Currency)
	case len(in.Terms) > maxOfferTerms || !utf8.ValidString(in.Terms) || strings.ContainsFunc(in.Terms, commandsTerminal):
		return bad("The terms are not a text of at most %d bytes.", maxOfferTerms)
	}
	return nil
}

// commandsTerminal says whether a character does more to a terminal than to go on in the
// text, for whoever reads the terms of another.
func commandsTerminal(c rune) bool { return unicode.IsControl(c) && !strings.ContainsRune("\t\r\n", c) }

// CreateOffer makes an offer of the caller's.
func (r *Region) CreateOffer(ctx context.Context, in CreateOfferInput) (ami.Offer, error) {
	if err := in.check(); err != nil {
		return ami.Offer{}, err
	}
	o := ami.Offer{
		ProductCode: in.ProductCode, OwnerID: r.account, Title: in.Title, HourlyPrice: in.HourlyPrice, MonthlyPrice: in.MonthlyPrice,
		Currency: in.Currency, Terms: in.Terms,
	}
	err := r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		now, err := r.tick(tx)
		if err != nil {
			return err
		}
		o.CreationTime = now.Truncate(time.Millisecond)
		_, err = tx.Offer(o.ProductCode)
		switch {
		case err == nil:
			return ami.Errorf(ami.CodeInvalidParameterValue, "The product code %q is that of another offer, or was.", o.ProductCode).
				WithHint("Choose another one, or leave it away to be given one.")
		case !errors.Is(err, catalog.ErrNotFound):
			return err
		case in.DryRun:
			return dryRun("offer %q as %s", o.Title, o.ProductCode)
		}
		return tx.PutOffer(o)
	})
	return o, storeError(err, "The offer cannot be written.")
}

// Offers returns what is offered in the region, by whomever, oldest first; with
// deleted also what is offered no more.
func (r *Region) Offers(ctx context.Context, deleted bool) (out []ami.Offer, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		all, err := tx.Offers()
		for _, o := range all {
			if deleted || o.DeletionTime.IsZero() {
				out = append(out, o)
			}
		}
		return r.legible(err)
	})
	return out, storeError(err, "The offers cannot be read.")
}

// Offer returns one offer, also one that is deleted. It returns InvalidParameterValue
// for a product code that is no offer's.
func (r *Region) Offer(ctx context.Context, code string) (o ami.Offer, err error) {
	err = r.catalog.View(ctx, func(tx *catalog.Tx) error {
		o, err = offerNow(tx, code)
		return err
	})
	return o, storeError(err, "The offer %s cannot be read.", code)
}

func offerNow(tx *catalog.Tx, code string) (ami.Offer, error) {
	o, err := tx.Offer(code)
	if errors.Is(err, catalog.ErrNotFound) {
		return o, ami.Errorf(ami.CodeInvalidParameterValue, "Nobody offers anything as %q in this region.", code).
			WithHint("kami offer list shows what is offered.")
	}
	return o, err
}

// ownOffer is an offer of the caller's. It returns AuthFailure for another's.
func (r *Region) ownOffer(tx *catalog.Tx, code string) (ami.Offer, error) {
	o, err := offerNow(tx, code)
	if err == nil && o.OwnerID != r.account {
		return o, ami.Errorf(ami.CodeAuthFailure, "The offer %s is the account %s's.", code, o.OwnerID).
			WithHint("Only who offers it may do that.")
	}
	return o, err
}

// DeleteOffer ends an offer of the caller's: nobody can subscribe any more. Who has
// subscribed stays so, and pays as before.
func (r *Region) DeleteOffer(ctx context.Context, code string, dry bool) (o ami.Offer, err error) {
	err = r.catalog.Update(ctx, func(tx *catalog.Tx) error {
		if o, err = r.ownOffer(tx, code); err != nil {
			return err
		}
		if !o.DeletionTime.IsZero() {
			return ami.Errorf(ami.CodeIncorrectState, "The offer %s is deleted already.", code)
		}
		now, err := r.tick(tx)
		if err != nil {
			return err
		}
		if dry {
			return dryRun("delete the offer %s (%s)", code, o.Title)
		}
		o.DeletionTime = now.Truncate(time.Millisecond)
		return tx.PutOffer(o)
	})
	return o, storeError(err, "The offer %s cannot be deleted.", code)
}

// AddProductCodes puts codes of the caller's offers to an image of the caller's:
// EC2's ModifyImageAttribute of productCodes. As with EC2 they cannot be taken away
// again, and the image cannot be public.
func (r *Region) AddProductCodes(ctx context.Context, id ami.ImageID, codes []string, dry bool) (ami.Image, error) {
	return r.editImage(ctx, id, dry, "put product codes to", func(tx *catalog.Tx, i *ami.Image) error {
		switch {
		case i.ImageType != ami.ImageTypeMachine:
			return ami.Errorf(ami.CodeUnsupportedOperation, "%s is a %s; machine images are sold.", i.ImageID, i.ImageType)
		case i.State != ami.ImageAvailable:
			return ami.Errorf(ami.CodeIncorrectState, "The image %s is %s, and only an available one can be sold.", i.ImageID, i.State)
		case i.Public:
			return ami.Errorf(ami.CodeOperationNotPermitted, "The image %s is public, and what has product codes cannot be.", i.ImageID).
				WithHint("kami image permission remove %s all makes it private.", i.ImageID)
		}
		for _, code := range codes {
			o, err := r.ownOffer(tx, code)
			if err != nil {
				return err
			}
			if !o.DeletionTime.IsZero() {
				return ami.Errorf(ami.CodeIncorrectState, "The offer %s is deleted, and nobody could subscribe to it.", code)
			}
			i.ProductCodes = ami.JoinProductCodes(i.ProductCodes, []ami.ProductCode{{ID: code, Type: ami.MarketplaceCode}})
		}
		return nil
	})
}
