package region

import (
	"context"

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
// It is for whoever keeps the region: it says of all of them to anybody.
func (r *Region) Accounts(ctx context.Context) ([]AccountUse, error) {
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
