package sandbox

import "time"

// The demand for warm slots of one shelf is the number of sandboxes that were asked for in
// the busiest demandSpan of the last demandMemory. It is forgotten when nobody asks.
const (
	demandSpan   = 10 * time.Second
	demandMemory = 5 * time.Minute
	// maxAsked bounds what is remembered; more slots than that are set, not guessed.
	maxAsked = 256
)

// demand remembers when sandboxes were asked for, oldest first.
type demand struct{ asked []time.Time }

func (d *demand) note(now time.Time) {
	d.forget(now)
	if len(d.asked) == maxAsked {
		d.asked = d.asked[1:]
	}
	d.asked = append(d.asked, now)
}

func (d *demand) forget(now time.Time) {
	for len(d.asked) > 0 && now.Sub(d.asked[0]) > demandMemory {
		d.asked = d.asked[1:]
	}
}

// peak returns the most that were asked for within one span.
func (d *demand) peak(now time.Time) int {
	d.forget(now)
	most, first := 0, 0
	for i, at := range d.asked {
		for at.Sub(d.asked[first]) > demandSpan {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}
