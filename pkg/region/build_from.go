package region

import (
	"context"

	"github.com/kamivm/kami/pkg/ami"
	"github.com/kamivm/kami/pkg/recipe"
)

// buildFrom makes an image by changing a booted guest of another one.
func (r *Region) buildFrom(context.Context, recipe.Recipe, BuildInput) (ami.Image, error) {
	return ami.Image{}, ami.Errorf(ami.CodeUnsupportedOperation, "A recipe that stands on another image cannot be built yet.").
		WithHint("Launch that image, change the guest, and kami image create from it.")
}
