package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// result is what one part measured, where and when.
type result struct {
	Part     string   `json:"part"`
	Rows     []row    `json:"rows"`
	Charts   []chart  `json:"charts,omitempty"`
	Rounds   int      `json:"rounds"`
	Seconds  float64  `json:"seconds"` // how long all of the part took
	Peak     int64    `json:"peak"`    // bytes: the most that a process of kami, or of what it ran, had
	Date     string   `json:"date"`
	Machine  string   `json:"machine"`
	Versions []string `json:"versions"`
}

// page is all that is known, of this run and of those before it.
type page struct {
	Results []result `json:"results"`
}

func rowsPath(out string) string { return strings.TrimSuffix(out, filepath.Ext(out)) + ".json" }

// readPage reads what runs before this one have measured.
func readPage(out string) (page, error) {
	var p page
	text, err := os.ReadFile(rowsPath(out))
	if errors.Is(err, os.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	return p, err
}

// put puts a part's result in the place of an older one.
func (p *page) put(r result) {
	p.Results = slices.DeleteFunc(p.Results, func(old result) bool { return old.Part == r.Part })
	p.Results = append(p.Results, r)
	order := partNames()
	slices.SortStableFunc(p.Results, func(a, b result) int {
		return slices.Index(order, a.Part) - slices.Index(order, b.Part)
	})
}

// putPage puts a part's result on the page at out, where another run may have put
// one of another part meanwhile.
func putPage(out string, r result) (page, error) {
	p, err := readPage(out)
	if err != nil {
		return p, err
	}
	p.put(r)
	return p, p.write(out)
}

// write writes the page at out, its rows and its charts.
func (p page) write(out string) error {
	text, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	charts := strings.TrimSuffix(out, filepath.Ext(out))
	if err := os.MkdirAll(charts, 0o755); err != nil {
		return err
	}
	for _, c := range p.charts() {
		if err := os.WriteFile(filepath.Join(charts, c.File+".svg"), []byte(c.svg()), 0o644); err != nil {
			return err
		}
	}
	err = os.WriteFile(out, []byte(p.markdown(func(c chart) string {
		return fmt.Sprintf("![%s](%s/%s.svg)\n", c.Title, filepath.Base(charts), c.File)
	})), 0o644)
	return errors.Join(err, os.WriteFile(rowsPath(out), append(text, '\n'), 0o644))
}

// terminal is the page for who looks at it as text.
func (p page) terminal() string {
	return p.markdown(func(c chart) string { return c.Title + "\n\n" + c.text() })
}

// charts are the overview and those of the parts.
func (p page) charts() []chart {
	overview := chart{File: "bars", Title: "What is used of each bar; the line is all of it", Limit: 1}
	var all []chart
	for _, r := range p.Results {
		for _, row := range r.Rows {
			if row.Most != 0 {
				overview.Lines = append(overview.Lines, line{row.Name, []float64{row.used()}})
			}
		}
		all = append(all, r.Charts...)
	}
	return append([]chart{overview}, all...)
}

func (p page) markdown(draw func(chart) string) string {
	var s strings.Builder
	s.WriteString(`# Benchmarks

Written by ` + "`make bench`" + `: kami and the bare tools, turn by turn in one run on one
machine, and the median of the rounds. The ratios matter; the seconds are this
machine's. *At most* is what kami is to keep to: a multiple of what the bare tool
takes, so much more than that, or a number. ` + "`make bench ONLY=PART`" + ` measures one part
anew; [benchmarks.json](benchmarks.json) has the numbers.

| part | what | kami | by hand | ratio | at most | kept |
| --- | --- | --- | --- | --- | --- | --- |
`)
	for _, r := range p.Results {
		for _, row := range r.Rows {
			hand := "-"
			if row.Hand != 0 {
				hand = row.Unit.text(row.Hand)
			}
			fmt.Fprintf(&s, "| %s | %s | %s | %s | %s | %s | %s |\n",
				r.Part, row.What, row.Unit.text(row.Kami), hand, row.ratio(), row.bar(), row.met())
		}
	}
	s.WriteString("\n## Charts\n")
	for _, c := range p.charts() {
		s.WriteString("\n" + draw(c))
	}
	s.WriteString("\n## Where and when\n\n*Most memory* is of one process of kami, or of a program that it ran.\n\n")
	s.WriteString("| part | rounds | took | most memory | date |\n| --- | --- | --- | --- | --- |\n")
	var all float64
	for _, r := range p.Results {
		fmt.Fprintf(&s, "| %s | %d | %.0f s | %s | %s |\n", r.Part, r.Rounds, r.Seconds, inBytes.text(float64(r.Peak)), r.Date)
		all += r.Seconds
	}
	fmt.Fprintf(&s, "\nAll of it took %.0f minutes.\n", all/60)
	p.hosts(&s)
	return s.String()
}

// hosts writes on which machine and with which tools the parts were measured.
func (p page) hosts(s *strings.Builder) {
	type host struct{ machine, versions string }
	var hosts []host
	on := map[host][]string{}
	for _, r := range p.Results {
		h := host{r.Machine, strings.Join(r.Versions, "\n- ")}
		if on[h] == nil {
			hosts = append(hosts, h)
		}
		on[h] = append(on[h], r.Part)
	}
	for _, h := range hosts {
		what := strings.Join(on[h], ", ")
		if len(hosts) == 1 {
			what = "All"
		}
		fmt.Fprintf(s, "\n%s: %s, with\n\n- %s\n", what, h.machine, h.versions)
	}
}
