package main

import (
	"fmt"
	"slices"
	"time"
)

// row is one thing that was measured: a table's line.
type row struct {
	Name string  `json:"name"` // for charts
	What string  `json:"what"`
	Kami float64 `json:"kami"`
	Hand float64 `json:"hand,omitempty"` // the bare tool's; 0 is none
	Unit unit    `json:"unit"`
	Most float64 `json:"most,omitempty"` // the bar; 0 is none
	Of   measure `json:"of,omitempty"`
}

// unit is what a row's numbers count.
type unit string

const (
	inSeconds unit = "s"
	inBytes   unit = "B"
	plain     unit = ""
)

// measure is what a row's bar is held against.
type measure string

const (
	ofKami  measure = "kami"  // kami's own number
	ofHand  measure = "hand"  // kami's number over that of the bare tool
	ofExtra measure = "extra" // what kami's number is above that of the bare tool
)

// used is how much of what is allowed was needed: above 1 the bar is missed. It
// is 0 without a bar.
func (r row) used() float64 {
	if r.Most == 0 {
		return 0
	}
	switch r.Of {
	case ofHand:
		return r.Kami / r.Hand / r.Most
	case ofExtra:
		return max(0, (r.Kami-r.Hand)/r.Most) // which is none where kami was quicker
	}
	return r.Kami / r.Most
}

// bar is the bar in words.
func (r row) bar() string {
	switch {
	case r.Most == 0:
		return "-"
	case r.Of == ofHand:
		return fmt.Sprintf("%.2f x", r.Most)
	case r.Of == ofExtra:
		return "+" + r.Unit.text(r.Most)
	}
	return r.Unit.text(r.Most)
}

// ratio is kami's number over the bare tool's.
func (r row) ratio() string {
	switch {
	case r.Hand == 0:
		return "-"
	case r.Of == ofExtra:
		return fmt.Sprintf("%.2f (%+.3f s)", r.Kami/r.Hand, r.Kami-r.Hand)
	}
	return fmt.Sprintf("%.2f", r.Kami/r.Hand)
}

// met says whether the bar is.
func (r row) met() string {
	switch {
	case r.Most == 0:
		return "-"
	case r.used() <= 1:
		return "yes"
	}
	return "no"
}

// text is a number as people read it.
func (u unit) text(v float64) string {
	switch {
	case u == inSeconds && v < 10:
		return fmt.Sprintf("%.3f s", v)
	case u == inSeconds:
		return fmt.Sprintf("%.1f s", v)
	case u == plain:
		return fmt.Sprintf("%.2f", v)
	case v < 1<<20:
		return fmt.Sprintf("%.0f KiB", v/(1<<10))
	case v < 10<<20:
		return fmt.Sprintf("%.1f MiB", v/(1<<20))
	}
	return fmt.Sprintf("%.0f MiB", v/(1<<20))
}

// timed compares the medians of what was timed turn by turn.
func timed(name, what string, kami, hand []time.Duration, of measure, most float64) row {
	r := row{Name: name, What: what, Kami: median(kami).Seconds(), Unit: inSeconds, Of: of, Most: most}
	if len(hand) > 0 {
		r.Hand = median(hand).Seconds()
	}
	return r
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}
