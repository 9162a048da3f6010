// Package probe finds out whether QEMU can run guests on KVM by running one.
//
// That /dev/kvm opens proves little: with some nested hypervisors QEMU aborts, or the guest
// spins in the kernel for ever. So a guest of 200 bytes is booted, through the same firmware
// and into the same CPU modes as a Linux kernel, in a process that is killed at a deadline.
package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/kilnvm/kiln"
)

// Accelerators that a probe may find.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// Options says what to probe with.
type Options struct {
	Binary string // QEMU; "" means qemu-system-x86_64
	// CacheFile keeps a conclusive result until the host boots again, QEMU changes or
	// /dev/kvm is made anew. "" means no cache.
	CacheFile string
	Timeout   time.Duration // of one guest; 0 means 10 s, which is long for milliseconds of work
	Device    string        // "" means /dev/kvm
}

// Result is what a probe found.
type Result struct {
	Accel  string `json:"accel"`  // KVM or TCG
	Reason string `json:"reason"` // for people
}

// Accelerator returns the best accelerator on which a guest runs. The error, a
// [*kiln.Error], says that guests do not even run on software emulation. It returns soon
// after ctx ends, whatever the kernel does with the guest.
func Accelerator(ctx context.Context, o Options) (Result, error) {
	o = o.withDefaults()
	cache := cacheFile{path: o.CacheFile}
	if o.CacheFile != "" {
		cache.key = cacheKey(ctx, o)
	}
	if r, ok := cache.load(); ok {
		return r, nil
	}
	why, conclusive := o.tryKVM(ctx)
	if why == nil {
		r := Result{KVM, "a guest booted on KVM"}
		return r, cache.save(r)
	}
	if ctx.Err() != nil {
		return Result{}, ctx.Err()
	}
	if err := o.boot(ctx, TCG); err != nil {
		if ctx.Err() != nil {
			return Result{}, ctx.Err()
		}
		return Result{}, kiln.Errorf(kiln.CodeUnavailable, "%s cannot run a virtual machine: %w", o.Binary, err).
			WithHint("apt-get install qemu-system-x86 seabios")
	}
	r := Result{TCG, why.Error()}
	if !conclusive {
		return r, nil
	}
	return r, cache.save(r)
}

func (o Options) withDefaults() Options {
	if o.Binary == "" {
		o.Binary = "qemu-system-x86_64"
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Device == "" {
		o.Device = "/dev/kvm"
	}
	return o
}

// tryKVM returns why a guest does not run on KVM, and whether that will stay so.
func (o Options) tryKVM(ctx context.Context) (why error, conclusive bool) {
	f, err := os.OpenFile(o.Device, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("no %s: the CPU's virtualisation is off, or this host is itself a virtual machine without it", o.Device), false
	case err != nil:
		return fmt.Errorf("KVM cannot be used: %w", err), false
	}
	_ = f.Close()
	err = o.boot(ctx, KVM)
	return err, !errors.Is(err, errTimeout)
}

var errTimeout = errors.New("did not end in time")

// boot runs the guest once.
func (o Options) boot(ctx context.Context, accel string) error {
	dir, err := os.MkdirTemp("", "kiln-probe-")
	if err != nil {
		return err
	}
	kernel := filepath.Join(dir, "guest.elf")
	if err := os.WriteFile(kernel, image(), 0o600); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	cpu := "max"
	if accel == KVM {
		cpu = "host"
	}
	var said, printed bytes.Buffer
	cmd := exec.Command(o.Binary, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", //nolint:noctx // killed below
		"-accel", accel, "-cpu", cpu, "-m", "64M", "-machine", "microvm,x-option-roms=off", "-kernel", kernel, "-serial", "stdio")
	cmd.Stdout, cmd.Stderr = &printed, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	started, ended := make(chan error), make(chan error, 1)
	go func() { // a process that the kernel does not let go is left to this goroutine
		// The parent-death signal comes when the thread that forked ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			err = cmd.Wait()
		}
		_ = os.RemoveAll(dir)
		ended <- err
	}()
	if err := <-started; err != nil {
		<-ended
		return fmt.Errorf("start %s: %w", o.Binary, err)
	}
	timer := time.NewTimer(o.Timeout)
	defer timer.Stop()
	select {
	case err := <-ended:
		return verdict(accel, printed.String(), said.String(), err)
	case <-timer.C:
	case <-ctx.Done():
	}
	_ = cmd.Process.Kill()
	grace := time.NewTimer(time.Second)
	defer grace.Stop()
	select {
	case <-ended:
	case <-grace.C:
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("a guest on %s was started but %w (%v)", accel, errTimeout, o.Timeout)
}

// verdict judges a guest that has ended. It counts that the greeting was printed.
func verdict(accel, printed, said string, err error) error {
	if strings.Contains(printed, strings.TrimSpace(greeting)) {
		return nil
	}
	first, _, _ := strings.Cut(strings.TrimSpace(said), "\n")
	if first == "" && err != nil {
		first = err.Error()
	}
	return fmt.Errorf("a guest does not run on %s: %s", accel, first)
}
