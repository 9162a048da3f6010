// Package tsc measures the frequency of the host's time stamp counter, which emulated CPUs
// hand on to their guests.
//
// A guest of QEMU's microvm has nothing to measure that counter against but an emulated
// timer chip. On a busy host Linux then gives up ("tsc: Unable to calibrate against PIT"),
// is left without any clock, and hangs for ever early in its boot. Told the frequency with
// the parameter tsc_early_khz=, it has nothing to measure.
package tsc

import "time"

const (
	// interval between the two readings that are compared, and how often each is taken.
	interval = 20 * time.Millisecond
	attempts = 16
)

// now reads the counter.
func now() uint64

// KHz measures the frequency in kHz. It takes about 20 ms and is off by some millionths.
func KHz() uint64 {
	start, startTick := read()
	time.Sleep(interval)
	end, endTick := read()
	return (endTick - startTick) * uint64(time.Second/1000) / uint64(end.Sub(start))
}

// read returns a moment and the counter at it. Being interrupted between the two would spoil
// the pair, so the closest of several is taken.
func read() (time.Time, uint64) {
	var best time.Time
	var tick uint64
	closest := time.Duration(1<<63 - 1)
	for range attempts {
		before := time.Now()
		n := now()
		if d := time.Since(before); d < closest {
			best, tick, closest = before.Add(d/2), n, d
		}
	}
	return best, tick
}
