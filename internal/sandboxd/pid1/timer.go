package pid1

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// timerWord stands on the kernel's command line of an emulated VM, before the true rate in kHz
// of the timers of its CPUs.
const timerWord = "kiln.timer_khz="

// The kernel's idea of that rate, as a multiple of the true one: timers are late by as much as
// it is above 1. Below 1 the kernel finds that it was woken early and sleeps again.
const (
	lowestRate  = 0.8
	highestRate = 1.1
)

// insistOnTimers switches the VM off if its kernel measured the timers wrongly: nothing can
// correct that but another start, which is up to the VMM. It must come before anything waits:
// a kernel that found no timer usable never wakes up.
func insistOnTimers() error {
	rate, err := trueRate()
	if err != nil || rate == 0 {
		return err
	}
	list, err := os.ReadFile("/proc/timer_list")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if bad := checkTimers(string(list), rate); bad != nil {
		fmt.Fprintln(os.Stderr, "kiln-sandboxd: switching off, to be started again:", bad)
		return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	return nil
}

// trueRate returns what the VMM says about the timers in kHz; 0 if nothing.
func trueRate() (float64, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return 0, err
	}
	for word := range strings.FieldsSeq(string(text)) {
		if value, ok := strings.CutPrefix(word, timerWord); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, nil
}

// checkTimers reads /proc/timer_list (kernel/time/timer_list.c in Linux): a device's ticks per
// nanosecond are mult / 2^shift.
func checkTimers(list string, rate float64) error {
	const device = "lapic"
	var name string
	var mult float64
	found := false
	for line := range strings.Lines(list) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch {
		case key == "Clock Event Device":
			name = value
		case name != device:
		case key == "mult":
			mult, _ = strconv.ParseFloat(value, 64) // 0 is refused below
		case key == "shift":
			shift, err := strconv.Atoi(value)
			if err != nil || shift < 0 || shift > 63 {
				return fmt.Errorf("timer of a CPU: shift %q", value)
			}
			found = true
			measured := mult / float64(uint64(1)<<shift) * 1e6
			if factor := measured / rate; factor < lowestRate || factor > highestRate {
				return fmt.Errorf("the kernel takes the timer of a CPU for %.3f times as fast as it is", factor)
			}
		}
	}
	if !found {
		return errors.New("the kernel found no usable timer")
	}
	return nil
}
