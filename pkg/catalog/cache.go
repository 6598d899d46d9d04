package catalog

import (
	"time"

	"github.com/kamivm/kami/pkg/digest"
)

// CachedLayer is a layer that can be made again of what Key names, and is kept so
// that it need not be. Like a snapshot it keeps its layer from being collected; a
// collection that asks for it takes the record first.
type CachedLayer struct {
	Key     string        `json:"Key"`
	Layer   digest.Digest `json:"LayerDigest"`
	Of      string        `json:"Of"` // what it is, for people
	Created time.Time     `json:"CreateTime"`
	Used    time.Time     `json:"LastUseTime"` // by a launch, to the hour
}

// PutCachedLayer writes a cached layer, in the place of one of its key.
func (tx *Tx) PutCachedLayer(c CachedLayer) error {
	return put(tx, "cached_layers", c, []string{"id", "layer", "created"}, c.Key, string(c.Layer), stamp(c.Created))
}

// CachedLayer reads the cached layer of a key. It returns ErrNotFound.
func (tx *Tx) CachedLayer(key string) (CachedLayer, error) {
	return one[CachedLayer](tx, "cached_layers", "id = ?", key)
}

// CachedLayers reads all cached layers, oldest first.
func (tx *Tx) CachedLayers() ([]CachedLayer, error) {
	return many[CachedLayer](tx, "cached_layers", "TRUE")
}

// DeleteCachedLayer deletes a cached layer's record. One that is not there is no
// error.
func (tx *Tx) DeleteCachedLayer(key string) error { return remove(tx, "cached_layers", "id = ?", key) }
