package guest

import (
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/guestapi/process"
)

// Exit is how a command ended.
type Exit struct {
	// Code is the exit status, or 128 plus the number of the signal that ended the
	// command, as a shell reports it.
	Code int
	// Signal names that signal, such as "SIGKILL"; "" when the command exited.
	Signal string
}

// exitOf reads the daemon's account of an end. The protocol names a signal by its text only.
func exitOf(end *process.ProcessEvent_EndEvent) Exit {
	text, signalled := strings.CutPrefix(end.GetStatus(), "signal: ")
	if end.GetExited() || !signalled {
		return Exit{Code: int(end.GetExitCode())}
	}
	text = strings.TrimSuffix(text, " (core dumped)")
	for number := syscall.Signal(1); number <= 64; number++ {
		if number.String() == text {
			return Exit{Code: 128 + int(number), Signal: unix.SignalName(number)}
		}
	}
	return Exit{Code: 128, Signal: text}
}
