package region

import (
	"time"

	"github.com/kamivm/kami/pkg/catalog"
)

// What a date decides for good (that something is deleted, or a lock is off) is
// decided by the latest time that the region has seen. A host whose clock was set
// back then waits longer; nothing is deleted early, and nothing that was settled
// opens again.

// now is what the clock says.
func (r *Region) now() time.Time {
	if r.opts.Clock != nil {
		return r.opts.Clock().UTC()
	}
	return time.Now().UTC()
}

const settingClock = "clock"

// seen is the latest of what the clock says and what it said when tick was called.
func (r *Region) seen(tx *catalog.Tx) (time.Time, error) {
	var mark time.Time
	err := tx.Setting("", settingClock, &mark)
	if now := r.now(); now.After(mark) {
		return now, err
	}
	return mark, err
}

// tick is seen, and remembers it. Whatever sets a date that decides calls it.
func (r *Region) tick(tx *catalog.Tx) (time.Time, error) {
	at, err := r.seen(tx)
	if err != nil {
		return at, err
	}
	return at, tx.PutSetting("", settingClock, at)
}
