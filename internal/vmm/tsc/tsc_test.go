package tsc

import (
	"testing"
	"time"
)

// Two measurements agree with each other and with one over a longer time, far within the 1 % at
// which Linux distrusts a clock.
func TestKHz(t *testing.T) {
	first, second := KHz(), KHz()
	start, tick := time.Now(), now()
	time.Sleep(200 * time.Millisecond)
	long := (now() - tick) * 1_000_000 / uint64(time.Since(start))
	for _, khz := range []uint64{first, second} {
		if diff := int64(khz) - int64(long); max(diff, -diff) > int64(long)/1000 {
			t.Errorf("measured %d kHz, over a longer time %d kHz", khz, long)
		}
	}
}
