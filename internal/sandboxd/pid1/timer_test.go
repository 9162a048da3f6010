package pid1

import (
	"fmt"
	"strings"
	"testing"
)

// timerList is the part of /proc/timer_list that tells of the devices, as Linux 6.1 prints it.
func timerList(mults ...int) string {
	var b strings.Builder
	b.WriteString("Tick Device: mode:     1\nBroadcast device\nClock Event Device: <NULL>\ntick_broadcast_mask: 0\n\n")
	for i, mult := range mults {
		fmt.Fprintf(&b, "Tick Device: mode:     1\nPer CPU device: %d\nClock Event Device: lapic\n"+
			" max_delta_ns:   34359738337\n min_delta_ns:   1000\n mult:           %d\n shift:          32\n mode:           3\n\n", i, mult)
	}
	return b.String()
}

func TestCheckTimers(t *testing.T) {
	const rate, right = 62500, 268435456 // QEMU's: 1 GHz divided by 16
	const elsewhere = "Clock Event Device: hpet\n mult: 1\n shift: 32\n"
	for name, c := range map[string]struct {
		list string
		want string // in the error; "" is none
	}{
		"right":            {timerList(right), ""},
		"two CPUs":         {timerList(right, right), ""},
		"a little late":    {timerList(right / 100 * 109), ""},
		"rather early":     {timerList(right / 100 * 81), ""},
		"other devices":    {elsewhere + timerList(right), ""},
		"late":             {timerList(right / 100 * 112), "1.120 times"},
		"very late":        {timerList(right * 3), "3.000 times"},
		"early":            {timerList(right / 100 * 78), "0.780 times"},
		"very early":       {timerList(right / 100), "0.010 times"},
		"the second CPU's": {timerList(right, right*2), "2.000 times"},
		"none":             {timerList(), "no usable timer"},
		"another only":     {elsewhere, "no usable timer"},
		"no number":        {strings.Replace(timerList(right), "268435456", "many", 1), "0.000 times"},
		"no shift":         {strings.Replace(timerList(right), "shift:          32", "shift: -1", 1), "shift"},
	} {
		err := checkTimers(c.list, rate)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
