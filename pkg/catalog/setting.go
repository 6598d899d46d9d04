package catalog

import (
	"encoding/json"
	"errors"
	"time"
)

// Setting reads a setting of an account's, or of the region's own with "", into v.
// One that was never made leaves v as it is. It returns ErrDamaged for one that
// cannot be read.
func (tx *Tx) Setting(account, name string, v any) error {
	doc, err := one[json.RawMessage](tx, "settings", "id = ?", account+"/"+name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(doc, v); err != nil {
		return errors.Join(ErrDamaged, err)
	}
	return nil
}

// PutSetting writes a setting.
func (tx *Tx) PutSetting(account, name string, v any) error {
	return put(tx, "settings", v, []string{"id", "created"}, account+"/"+name, stamp(time.Now()))
}
