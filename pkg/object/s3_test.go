package object_test

import (
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/object"
	"github.com/kamivm/kami/pkg/object/objecttest"
)

// quick are options for tests: faults are over soon.
func quick() object.Options {
	return object.Options{Stall: 2 * time.Second, Attempts: 4, Backoff: 50 * time.Millisecond, PartSize: 5 << 20}
}

// opener opens the store at an address again and again.
func opener(t *testing.T, address string, opts object.Options) func() object.Store {
	return func() object.Store {
		s, err := object.Open(t.Context(), address, opts)
		if err != nil {
			t.Error(err)
			return nil
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
}

func TestS3(t *testing.T) {
	server := objecttest.StartS3(t)
	objecttest.Run(t, func(t *testing.T) func() object.Store { return opener(t, server.URL(t), quick()) })
}
