package output

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/kamivm/kami/pkg/ami"
)

const (
	// quick is how long a step may take without a line of its own.
	quick = time.Second
	// often and seldom bound the time between a step's lines, but for the first.
	// Lines that are told apart by nothing but the time are never oftener.
	often, seldom = 10 * time.Second, 20 * time.Second
)

// NewProgress draws bars where w is a terminal, and plain lines elsewhere.
// Close it before the program writes its result.
func NewProgress(w io.Writer) *Progress {
	p := &Progress{w: w}
	if IsTerminal(w) {
		p.bars = mpb.New(mpb.WithOutput(w), mpb.WithWidth(40), mpb.WithRefreshRate(100*time.Millisecond))
	}
	return p
}

// Progress draws what is under way.
type Progress struct {
	w    io.Writer
	mu   sync.Mutex
	bars *mpb.Progress
}

// Close waits until everything is drawn.
func (p *Progress) Close() {
	if p.bars != nil {
		p.bars.Shutdown()
	}
}

// Note writes a line.
func (p *Progress) Note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := "kami: " + clean(fmt.Sprintf(format, args...)) + "\n"
	if p.bars != nil {
		if _, err := io.WriteString(p.bars, text); err == nil {
			return
		}
	}
	fmt.Fprint(p.w, text)
}

// Step begins a piece of work.
func (p *Progress) Step(name string, total int64) ami.Step {
	s := &step{p: p, name: clean(name), total: total, start: time.Now(), stop: make(chan struct{})}
	if p.bars != nil {
		s.bar = p.bar(s)
		return s
	}
	go s.tell()
	return s
}

func (p *Progress) bar(s *step) *mpb.Bar {
	if s.total <= 0 {
		return p.bars.New(0, mpb.SpinnerStyle(), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(s.name+" ")), mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_GO)))
	}
	return p.bars.New(s.total, mpb.BarStyle(), mpb.BarRemoveOnComplete(), mpb.PrependDecorators(decor.Name(s.name+" ")),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f "), decor.Percentage()))
}

type step struct {
	p     *Progress
	name  string
	total int64
	start time.Time
	bar   *mpb.Bar
	done  atomic.Int64
	once  sync.Once
	stop  chan struct{}
}

func (s *step) Add(n int64) {
	s.done.Add(n)
	if s.bar != nil {
		s.bar.IncrInt64(n)
	}
}

// Done ends the step. One that took its time is told of.
func (s *step) Done(err error) {
	s.once.Do(func() {
		close(s.stop)
		if s.bar != nil {
			s.bar.Abort(true)
		}
		took := time.Since(s.start)
		switch {
		case err != nil && took > quick:
			s.p.Note("%s: failed after %s", s.name, took.Round(100*time.Millisecond))
		case err != nil:
			s.p.Note("%s: failed", s.name)
		case took > quick:
			s.p.Note("%s: done in %s", s.name, took.Round(100*time.Millisecond))
		}
	})
}

// tell writes a line now and then while the step goes on.
func (s *step) tell() {
	wait := quick
	for {
		select {
		case <-s.stop:
			return
		case <-time.After(wait):
		}
		took := time.Since(s.start)
		switch done := s.done.Load(); {
		case s.total > 0:
			s.p.Note("%s: %d %%", s.name, min(100, done*100/s.total))
		case took < often:
			s.p.Note("%s …", s.name)
		default:
			s.p.Note("%s … %s so far", s.name, took.Round(time.Second))
		}
		if wait = min(2*wait+quick, seldom); s.total <= 0 {
			wait = max(wait, often)
		}
	}
}
