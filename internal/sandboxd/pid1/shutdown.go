package pid1

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// termGrace is how long processes have between SIGTERM and SIGKILL when the VM stops.
const termGrace = 3 * time.Second

// seal ends all processes and leaves the scratch disk clean: flushed and read-only, so
// that a check of its file system finds nothing to mend.
func (r *root) seal(log *slog.Logger) {
	endProcesses(log)
	unix.Sync()
	for _, path := range []string{"/", fmt.Sprintf("/proc/self/fd/%d", r.scratch.Fd())} {
		if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			log.Warn("remount read-only", "path", path, "error", err)
		}
	}
}

// endProcesses ends every process but this one and waits for them: each becomes a child of
// process 1 when its parent ends.
func endProcesses(log *slog.Logger) {
	const everyone = -1
	gone := make(chan struct{})
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.Kill(everyone, sig); errors.Is(err, unix.ESRCH) {
			return
		}
		if sig == unix.SIGTERM {
			go func() {
				waitForChildren()
				close(gone)
			}()
		}
		select {
		case <-gone:
			return
		case <-time.After(termGrace):
			log.Warn("processes outlive a signal", "signal", unix.SignalName(sig))
		}
	}
}

// waitForChildren returns when there is no child left. Others may reap beside it: every
// end of a child wakes it, and it looks again.
func waitForChildren() {
	for {
		_, err := unix.Wait4(-1, nil, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
