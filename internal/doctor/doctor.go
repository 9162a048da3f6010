// Package doctor finds out what works on this host and what is missing, by using it: a
// program is run, an overlay is mounted, a VM is booted. The mere presence of a file or a
// device proves nothing.
package doctor

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/network"
)

// Status is the outcome of a check.
type Status string

const (
	OK   Status = "ok"
	Warn Status = "warn" // works, but slower or with less than it could
	Fail Status = "fail" // Kiln cannot do its job
)

// Check is one thing that was tried.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`        // what was found
	Fix    string `json:"fix,omitempty"` // the exact command that mends it
}

// Options says what to look at.
type Options struct {
	DataDir string
	QEMU    string // program; "" means qemu-system-x86_64
	Kernel  string // configured guest kernel; "" means the distribution's package
	// Builder is the address of an existing BuildKit or Docker Engine; with one, no
	// build program is needed on this host.
	Builder string
	// Network looks at what sandboxes need to have a network; nil means that they are to
	// have none.
	Network func() []network.Finding
	// Accelerator boots a tiny guest and returns what it proved ("kvm" or "tcg") with
	// the reason. It must respect its context.
	Accelerator func(context.Context) (accel, reason string, err error)
	// Channel returns how guests will be reached ("vsock" or "serial") with the reason.
	Channel func() (channel, reason string, err error)
}

// checkTimeout bounds one check; the boot probe brings a deadline of its own.
const checkTimeout = 45 * time.Second

// Run makes all checks at once and returns them in a fixed order.
func Run(ctx context.Context, o Options) []Check {
	if o.QEMU == "" {
		o.QEMU = "qemu-system-x86_64"
	}
	probes := []func(context.Context, Options) Check{
		checkRoot, checkQEMU, checkAcceleration, checkChannel, checkKernel, checkBuilder, checkOverlay,
		checkBootstrap, checkScratch, checkDataDir, checkSpace,
	}
	checks := make([]Check, len(probes))
	var connected []Check
	var wg sync.WaitGroup
	wg.Go(func() { connected = checkNetwork(o) })
	for i, probe := range probes {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, checkTimeout)
			defer cancel()
			checks[i] = probe(ctx, o)
		})
	}
	wg.Wait()
	return append(checks, connected...)
}

// Failed reports whether any check found that Kiln cannot do its job.
func Failed(checks []Check) bool {
	for _, c := range checks {
		if c.Status == Fail {
			return true
		}
	}
	return false
}

// failure is a failed check whose detail and remedy come from err.
func failure(name string, status Status, err error, fix string) Check {
	c := Check{Name: name, Status: status, Detail: err.Error(), Fix: fix}
	var e *kiln.Error
	if errors.As(err, &e) {
		c.Detail = e.Message
	}
	return c
}
