package qemu

import "time"

// An emulated guest of the microvm machine has no clock but the processor's time
// stamp counter, which is the host's. It finds out how fast that goes by a timer,
// and on a busy host often in vain; then it never boots. So it is told, on its
// kernel's command line.

// tscTime is how long the counter is measured.
const tscTime = 20 * time.Millisecond

// measureTSC returns how fast the host's counter goes, in kHz, right to some
// millionths; 0 where the processor has none.
func measureTSC() int64 {
	c0, t0 := timeStamp()
	if c0 == 0 {
		return 0
	}
	time.Sleep(tscTime)
	c1, t1 := timeStamp()
	return int64(float64(c1-c0) / float64(t1.Sub(t0)) * 1e6)
}

// timeStamp reads the counter and the time at one instant: the reading of several
// that was interrupted least.
func timeStamp() (count uint64, at time.Time) {
	best := time.Duration(1<<63 - 1)
	for range 16 {
		before := time.Now()
		c := readTSC()
		if took := time.Since(before); took < best {
			best, count, at = took, c, before.Add(took/2)
		}
	}
	return count, at
}
