package output

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

// Time in these tests is synctest's: it stands still but for Sleep.

func TestProgressInAPipe(t *testing.T) {
	tests := []struct {
		name string
		do   func(p *Progress)
		want []string
	}{
		{"a note", func(p *Progress) { p.Note("%d of %s", 1, "us") }, []string{"kami: 1 of us"}},
		{
			"a note cannot move the cursor",
			func(p *Progress) { p.Note("%s", "a\x1b[2J\nb") },
			[]string{"kami: a [2J b"},
		},
		{"a quick step says nothing", func(p *Progress) {
			s := p.Step("copying", 10)
			s.Add(10)
			time.Sleep(quick / 2)
			s.Done(nil)
			time.Sleep(time.Minute)
		}, nil},
		{"a step that takes its time", func(p *Progress) {
			s := p.Step("copying", 200)
			s.Add(50)
			time.Sleep(1500 * time.Millisecond) // a line after 1 s
			s.Add(50)
			time.Sleep(3 * time.Second) // and one after 4 s
			s.Add(500)
			time.Sleep(7 * time.Second) // and one after 11 s
			s.Done(nil)
		}, []string{"kami: copying: 25 %", "kami: copying: 50 %", "kami: copying: 100 %", "kami: copying: done in 11.5s"}},
		{"a step of unknown length", func(p *Progress) {
			s := p.Step("building", 0)
			s.Add(50)
			time.Sleep(1500 * time.Millisecond)
			s.Done(nil)
		}, []string{"kami: building …", "kami: building: done in 1.5s"}},
		{"lines that only the time tells apart are far apart", func(p *Progress) {
			s := p.Step("waiting", 0)
			time.Sleep(33 * time.Second)
			s.Done(errors.New("no"))
		}, []string{"kami: waiting …", "kami: waiting … 11s so far", "kami: waiting … 31s so far", "kami: waiting: failed after 33s"}},
		{"a quick step that fails is told of", func(p *Progress) {
			p.Step("copying", 10).Done(errors.New("no"))
		}, []string{"kami: copying: failed"}},
		{"a step ends once", func(p *Progress) {
			s := p.Step("copying", 10)
			s.Done(nil)
			s.Done(errors.New("no"))
			s.Add(1)
			time.Sleep(time.Minute)
			s.Done(nil)
		}, nil},
		{"a step's name cannot move the cursor", func(p *Progress) {
			p.Step("a\x1b[2J\nb", 0).Done(errors.New("no"))
		}, []string{"kami: a [2J b: failed"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b bytes.Buffer
				p := NewProgress(&b)
				tt.do(p)
				p.Close()
				synctest.Wait()
				want := ""
				for _, line := range tt.want {
					want += line + "\n"
				}
				if d := cmp.Diff(want, b.String()); d != "" {
					t.Errorf("output (-want +got):\n%s", d)
				}
			})
		})
	}
}

// A long step is told of less and less often, but never less than every 20 s.
func TestProgressOfALongStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines := &stamps{last: time.Now()}
		s := NewProgress(lines).Step("building", 0)
		time.Sleep(10 * time.Minute)
		s.Done(nil)
		synctest.Wait()
		for i, gap := range lines.gaps {
			if gap > 20*time.Second {
				t.Errorf("line %d comes after %s, want at most 20s", i, gap)
			}
		}
		if got := len(lines.gaps); got < 29 || got > 35 {
			t.Errorf("got %d lines in ten minutes, want about 31", got)
		}
	})
}

// stamps notes the time between the lines written to it.
type stamps struct {
	last time.Time
	gaps []time.Duration
}

func (s *stamps) Write(b []byte) (int, error) {
	now := time.Now()
	s.gaps = append(s.gaps, now.Sub(s.last))
	s.last = now
	return len(b), nil
}

func TestProgressByMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := NewProgress(&b)
		s := p.Step("copying", 800)
		for range 8 {
			go func() {
				for range 50 {
					s.Add(1)
				}
				p.Note("a line")
			}()
		}
		time.Sleep(1500 * time.Millisecond)
		s.Done(nil)
		synctest.Wait()
		want := strings.Repeat("kami: a line\n", 8) + "kami: copying: 50 %\nkami: copying: done in 1.5s\n"
		if d := cmp.Diff(want, b.String()); d != "" {
			t.Errorf("output (-want +got):\n%s", d)
		}
	})
}

func TestProgressOnATerminal(t *testing.T) {
	tty, screen := terminal(t)
	p := NewProgress(tty)
	for _, total := range []int64{0, 100} {
		s := p.Step("copying", total)
		s.Add(50)
		p.Note("half way")
		s.Done(errors.New("no"))
		s.Done(nil)
	}
	p.Close()
	got := screen()
	for want, n := range map[string]int{"kami: half way\n": 2, "kami: copying: failed\n": 2, "done in": 0} {
		if c := strings.Count(got, want); c != n {
			t.Errorf("got %q %d times, want %d, in %q", want, c, n, got)
		}
	}
}

var _ ami.Progress = (*Progress)(nil)
