package ami

// Progress is told of long work. The doors draw it; the rooms below only tell.
// Implementations are safe for use by several goroutines.
type Progress interface {
	// Step begins one piece of work with a name for a person ("importing
	// disk.raw"). total is how much there is, in bytes, 0 when unknown.
	Step(name string, total int64) Step
	// Note is one line worth knowing, such as a fallback that was taken.
	Note(format string, args ...any)
}

// Step is one piece of work under way.
type Step interface {
	// Add says that n more bytes are done.
	Add(n int64)
	// Done ends the step; a nil err is success. Further calls do nothing.
	Done(err error)
}

// NoProgress draws nothing.
var NoProgress Progress = noProgress{}

type (
	noProgress struct{}
	noStep     struct{}
)

func (noProgress) Step(string, int64) Step { return noStep{} }
func (noProgress) Note(string, ...any)     {}
func (noStep) Add(int64)                   {}
func (noStep) Done(error)                  {}
