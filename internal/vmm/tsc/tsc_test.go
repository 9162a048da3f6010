package tsc

import (
	"testing"
	"time"
)

// Two measurements agree with each other and with one over a longer time, far within the 1 % at
// which Linux distrusts a clock.
func TestKHz(t *testing.T) {
	first, second := KHz(), KHz()
	start, startTick := read()
	time.Sleep(200 * time.Millisecond)
	end, endTick := read()
	long := (endTick - startTick) * 1_000_000 / uint64(end.Sub(start))
	for _, khz := range []uint64{first, second} {
		if diff := int64(khz) - int64(long); max(diff, -diff) > int64(long)/1000 {
			t.Errorf("measured %d kHz, over a longer time %d kHz", khz, long)
		}
	}
}
