package main

import (
	"fmt"
	"html"
	"slices"
	"strings"
)

// chart is a picture of a few numbers: bars where each line has one point, lines
// over 1, 2, 3 … where it has more.
type chart struct {
	File  string  `json:"file"`
	Title string  `json:"title"`
	Unit  unit    `json:"unit"`
	Limit float64 `json:"limit,omitempty"` // of bars, drawn across; 0 is none
	Lines []line  `json:"lines"`
}

type line struct {
	Name   string    `json:"name"`
	Points []float64 `json:"points"`
}

// last is where a line ends up.
func (l line) last() float64 { return l.Points[len(l.Points)-1] }

// end is the greatest number that has to find room. What is far beyond the
// others, or beyond the limit, is cut off.
func (c chart) end() float64 {
	most := c.Limit
	for _, l := range c.Lines {
		most = max(most, slices.Max(l.Points))
	}
	if c.Limit > 0 {
		most = min(most, 3*c.Limit)
	}
	return most * 1.02
}

// text draws the chart, or where its lines end, in characters.
func (c chart) text() string {
	const wide = 40
	var s strings.Builder
	names := 0
	for _, l := range c.Lines {
		names = max(names, len(l.Name))
	}
	for _, l := range c.Lines {
		n := min(int(l.last()/c.end()*wide+0.5), wide)
		cells := []rune(strings.Repeat("█", n) + strings.Repeat(" ", wide-n))
		if at := int(c.Limit / c.end() * wide); c.Limit > 0 && at < wide && cells[at] == ' ' {
			cells[at] = '|'
		}
		fmt.Fprintf(&s, "%-*s %s %s\n", names, l.Name, string(cells), c.Unit.text(l.last()))
	}
	return s.String()
}

// The measures of a picture in pixels.
const (
	chartWide = 760
	chartHead = 34
	namesWide = 220
	plotWide  = 440
	barHigh   = 20
	plotHigh  = 240
)

// colours of lines, apart also for those who do not see all colours.
func colour(i int) string { return []string{"#0969da", "#bf8700", "#6e7781", "#8250df"}[i%4] }

// svg draws the chart as a picture on white, for light pages and dark ones.
func (c chart) svg() string {
	plot, high := c.bars()
	if len(c.Lines) > 0 && len(c.Lines[0].Points) > 1 {
		plot, high = c.curves(), plotHigh
	}
	high += chartHead + 14
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12" fill="#1f2328">
<rect width="100%%" height="100%%" rx="6" fill="#ffffff"/>
<text x="12" y="22" font-size="14" font-weight="bold">%s</text>
%s</svg>
`, chartWide, high, html.EscapeString(c.Title), plot)
}

func (c chart) bars() (string, int) {
	var s strings.Builder
	scale := plotWide / c.end()
	high := len(c.Lines) * barHigh
	for i, l := range c.Lines {
		y, paint := chartHead+i*barHigh, colour(0)
		if c.Limit > 0 && l.last() > c.Limit {
			paint = colour(1)
		}
		w := min(l.last()*scale, plotWide)
		fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%s</text>`+"\n",
			namesWide-8, y+14, html.EscapeString(l.Name), namesWide, y+3, max(w, 1), barHigh-6, paint, namesWide+w+6, y+14, c.Unit.text(l.last()))
	}
	if c.Limit > 0 {
		fmt.Fprintf(&s, `<path d="M%.1f %dv%d" stroke="#cf222e" stroke-width="1.5" stroke-dasharray="4 3"/>`+"\n", namesWide+c.Limit*scale, chartHead, high)
	}
	return s.String(), high
}

func (c chart) curves() string {
	var s strings.Builder
	const left, bottom = 80.0, chartHead + plotHigh - 24.0
	n := len(c.Lines[0].Points)
	x := func(i int) float64 { return left + float64(i)*(plotWide+60)/float64(n-1) }
	y := func(v float64) float64 { return bottom - v/c.end()*(plotHigh-40) }
	fmt.Fprintf(&s, `<path d="M%.0f %.0fH%.0f" stroke="#d0d7de"/>`+"\n", left, bottom, x(n-1))
	for i := range n {
		fmt.Fprintf(&s, `<text x="%.1f" y="%.0f" text-anchor="middle">%d</text>`, x(i), bottom+16, i+1)
	}
	ends := make([]float64, 0, len(c.Lines)) // where names are, so that none is over another
	for i, l := range c.Lines {
		var points []string
		for j, v := range l.Points {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(j), y(v)))
		}
		at := y(l.last())
		for slices.ContainsFunc(ends, func(e float64) bool { return e-14 < at && at < e+14 }) {
			at += 2
		}
		ends = append(ends, at)
		fmt.Fprintf(&s, "\n"+`<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/><text x="%.1f" y="%.1f" fill="%s">%s %s</text>`,
			strings.Join(points, " "), colour(i), x(n-1)+8, at+4, colour(i), html.EscapeString(l.Name), c.Unit.text(l.last()))
	}
	s.WriteString("\n")
	return s.String()
}
