package region

import (
	"encoding/json"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/kamivm/kami/pkg/digest"
	"github.com/kamivm/kami/pkg/internal/durable"
	"github.com/kamivm/kami/pkg/snapshot"
)

const (
	scrubVersion = 1
	// scrubAge is how long after its last layer an interrupted verify is gone on
	// with.
	scrubAge = 7 * 24 * time.Hour
	// scrubShare bounds the part of the time that goes into keeping the scrub: one
	// in so many.
	scrubShare = 20
)

// scrub is what is kept of the verifying of layers: when each was read last, so
// that a sample begins with those read longest ago, and when a verify of all was
// begun that has not come to its end, so that the next one goes on with it. It
// lies in verify.json; without it nothing is lost but that.
type scrub struct {
	Version int                       `json:"Version"`
	Started time.Time                 `json:"StartTime,omitzero"` // of what has not come to its end
	Layers  map[digest.Digest]reading `json:"Layers"`

	path string
	mu   sync.Mutex
	kept time.Time     // when it was written last while layers are read
	cost time.Duration // how long that took
}

// reading is when a layer was read last, and how it was.
type reading struct {
	Time time.Time `json:"Time"`
	OK   bool      `json:"Ok"`
}

// openScrub reads what is kept of a region's layers. What cannot be read, or was
// written by another version, is begun anew.
func (r *Region) openScrub() *scrub {
	s := &scrub{}
	b, err := os.ReadFile(r.path("verify.json"))
	if err != nil || json.Unmarshal(b, s) != nil || s.Version != scrubVersion || s.Layers == nil {
		s = &scrub{Version: scrubVersion, Layers: map[digest.Digest]reading{}}
	}
	s.path = r.path("verify.json")
	return s
}

// begin forgets the layers that are gone, and returns those that are still to be
// read: all of them, unless an interrupted verify is gone on with.
func (s *scrub) begin(layers []snapshot.Layer, restart bool) (todo, done []snapshot.Layer) {
	there, latest := map[digest.Digest]bool{}, time.Time{}
	for _, l := range layers {
		there[l.Digest] = true
	}
	for d, read := range s.Layers {
		if !there[d] {
			delete(s.Layers, d)
		} else if read.Time.After(latest) {
			latest = read.Time
		}
	}
	if restart || s.Started.IsZero() || latest.Before(s.Started) || time.Since(latest) > scrubAge {
		s.Started = time.Now().UTC()
		return layers, nil
	}
	for _, l := range layers {
		// One that was touched since has to show again that it is what it was.
		if read := s.Layers[l.Digest]; read.OK && !read.Time.Before(s.Started) && read.Time.After(l.Created) {
			done = append(done, l)
		} else {
			todo = append(todo, l)
		}
	}
	return todo, done
}

// sample returns the layers that were read longest ago and come to so many
// percent of all bytes, at least one, and those that were not well the last time:
// they are read until they are.
func (s *scrub) sample(layers []snapshot.Layer, percent int) (picked []snapshot.Layer) {
	var total, sum int64
	rest := slices.Clone(layers)
	for _, l := range layers {
		total += l.FileSize
	}
	rest = slices.DeleteFunc(rest, func(l snapshot.Layer) bool {
		read, known := s.Layers[l.Digest]
		if known && !read.OK {
			picked = append(picked, l)
		}
		return known && !read.OK
	})
	slices.SortStableFunc(rest, func(a, b snapshot.Layer) int {
		return s.Layers[a.Digest].Time.Compare(s.Layers[b.Digest].Time)
	})
	for i, l := range rest {
		if i > 0 && sum >= total*int64(percent)/100 {
			break
		}
		picked, sum = append(picked, l), sum+l.FileSize
	}
	return picked
}

// note keeps how a layer was. It is not written each time: what a killed process
// had not written is read once more.
func (s *scrub) note(d digest.Digest, ok bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Layers[d] = reading{time.Now().UTC(), ok}
	begun := time.Now()
	if begun.Sub(s.kept) < scrubShare*s.cost {
		return nil
	}
	err := s.write()
	s.kept = time.Now()
	s.cost = s.kept.Sub(begun)
	return err
}

// keep writes the scrub; with ended nothing is to be gone on with.
func (s *scrub) keep(ended bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ended {
		s.Started = time.Time{}
	}
	return s.write()
}

func (s *scrub) write() error {
	return durable.WriteFile(s.path, 0o600, func(f *os.File) error { return json.NewEncoder(f).Encode(s) })
}
