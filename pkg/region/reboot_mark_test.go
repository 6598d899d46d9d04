package region

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/kamivm/kami/pkg/ami"
)

// TestSweepFinishesReboots plays commands that died while a guest was to be
// rebooted for an image.
func TestSweepFinishesReboots(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		off      bool
		age      time.Duration
		behavior ami.ShutdownBehavior
		starts   bool
		forgets  bool
	}{
		{name: "after it was off", off: true, starts: true, forgets: true},
		{name: "after it was off, and it would be terminated", off: true, behavior: ami.ShutdownTerminate, starts: true, forgets: true},
		{name: "while it was shutting down", forgets: false},
		{name: "before it was asked to shut down", age: time.Hour, forgets: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := &listener{}
			h := newHouse(t)
			with := func(o *Options) { o.Progress = l }
			r := h.open(t, with)
			image(t, r, "base")
			inst := launched(t, r, RunInstancesInput{Image: "base", ShutdownBehavior: tt.behavior})
			path := r.rebootingPath(inst.InstanceID)
			must(t, os.WriteFile(path, nil, 0o600))
			then := time.Now().Add(-tt.age)
			must(t, os.Chtimes(path, then, then))
			if tt.off {
				h.driver.PowerOff(inst.InstanceID)
			}
			r = h.open(t, with)
			now, err := r.instance(t.Context(), inst.InstanceID)
			if err != nil || now.State.Name != ami.InstanceRunning {
				t.Errorf("the instance is %s (%v), want it running", now.State.Name, err)
			}
			if got := l.noted("has been started again"); got != tt.starts {
				t.Errorf("said to be started: %v, want %v: %q", got, tt.starts, l.notes)
			}
			if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) != tt.forgets {
				t.Errorf("the mark: %v, want it gone: %v", err, tt.forgets)
			}
		})
	}
}
