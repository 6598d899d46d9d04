package region

import (
	"context"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// AccountUse is what one account owns in a region.
type AccountUse struct {
	AccountID string `json:"AccountId"`
	Images    int    `json:"Images"` // kernels and ramdisks too
	Snapshots int    `json:"Snapshots"`
	Volumes   int    `json:"Volumes"`
	Instances int    `json:"Instances"`
	KeyPairs  int    `json:"KeyPairs"`
}

// Accounts returns the accounts that own something in the region, by their numbers.
// It says of all of them, and so only to the one that keeps the region; to another it
// is UnauthorizedOperation.
func (r *Region) Accounts(ctx context.Context) ([]AccountUse, error) {
	if err := r.checkKeeper(); err != nil {
		return nil, err
	}
	var out []AccountUse
	err := r.catalog.View(ctx, func(tx *catalog.Tx) error {
		owned, err := tx.Owned()
		for _, o := range owned {
			out = append(out, AccountUse{
				AccountID: o.Owner, Images: o.Images, Snapshots: o.Snapshots, Volumes: o.Volumes,
				Instances: o.Instances, KeyPairs: o.KeyPairs,
			})
		}
		return err
	})
	return out, storeError(err, "The owners of what is in the region cannot be read.")
}

// checkKeeper refuses what concerns all accounts to those that do not keep the
// region: the default one does.
func (r *Region) checkKeeper() error {
	if r.account == ami.DefaultAccount {
		return nil
	}
	return ami.Errorf(ami.CodeUnauthorizedOperation, "You are not authorized to perform this operation: it concerns all accounts, and %s does not keep the region.", r.account).
		WithHint("Say --as %s.", ami.DefaultAccount)
}
