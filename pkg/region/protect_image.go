package region

import (
	"context"
	"time"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/catalog"
)

// protectionCooldown is how long an image stays protected after its protection was
// turned off, where it was to have a cooldown.
const protectionCooldown = 24 * time.Hour

// ProtectImage keeps an image of the caller's from being deregistered. With cooldown
// it stays so for 24 hours after the protection is turned off.
func (r *Region) ProtectImage(ctx context.Context, id ami.ImageID, cooldown, dry bool) (ami.Image, error) {
	return r.editImage(ctx, id, dry, "protect", func(tx *catalog.Tx, i *ami.Image) error {
		if cooldown {
			i.DeregistrationProtection = ami.ProtectedWithCooldown
			return nil
		}
		err := r.coolDown(tx, i) // which a weaker protection does not get around
		i.DeregistrationProtection = ami.Protected
		return err
	})
}

// coolDown has the cooldown begin of an image that was to have one.
func (r *Region) coolDown(tx *catalog.Tx, i *ami.Image) error {
	if i.DeregistrationProtection != ami.ProtectedWithCooldown {
		return nil
	}
	now, err := r.tick(tx)
	i.CooldownExpiresOn = now.Add(protectionCooldown).Truncate(time.Second)
	return err
}

// UnprotectImage turns an image's protection off, at once or when its cooldown is over.
func (r *Region) UnprotectImage(ctx context.Context, id ami.ImageID, dry bool) (ami.Image, error) {
	return r.editImage(ctx, id, dry, "turn off the protection of", func(tx *catalog.Tx, i *ami.Image) error {
		err := r.coolDown(tx, i)
		i.DeregistrationProtection = ""
		return err
	})
}

// checkUnprotected refuses to deregister what is protected.
func (r *Region) checkUnprotected(tx *catalog.Tx, i ami.Image) error {
	if i.DeregistrationProtection != "" {
		return ami.Errorf(ami.CodeOperationNotPermitted, "The image %s (%s) is protected from being deregistered.", i.ImageID, i.Name).
			WithHint("kami image unprotect %s turns that off.", i.ImageID)
	}
	if i.CooldownExpiresOn.IsZero() {
		return nil
	}
	now, err := r.seen(tx)
	if err == nil && now.Before(i.CooldownExpiresOn) {
		return ami.Errorf(ami.CodeOperationNotPermitted, "The image %s (%s) is protected from being deregistered until %s, the end of its cooldown.",
			i.ImageID, i.Name, i.CooldownExpiresOn.Format(time.RFC3339))
	}
	return err
}
