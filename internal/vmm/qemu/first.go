package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/vmm/idle"
)

// Linux measures the timers of an emulated CPU against its time stamp counter, for 0.1 s,
// early in its boot. A host that does something else meanwhile spoils that: timers are then
// several times too late, or unusable, and the guest sleeps for ever. So the guest compares
// what it measured with what it is told here, and switches itself off if that is wrong. A
// machine whose guest has not come up only stops then, and is started again, unless the guest
// has used its disk: then it was the template's own init system that switched it off.
const (
	timerWord = "kiln.timer_khz="
	// timerKHz is the rate of QEMU's emulated timer, 1 GHz (hw/intc/apic.c), behind the
	// divider by 16 that Linux sets.
	timerKHz = 1_000_000 / 16
)

// atSwitchOff is what QEMU does when the guest switches itself off during a boot.
func (d *Driver) atSwitchOff() string {
	if d.accel == TCG {
		return "pause"
	}
	return "poweroff"
}

// maxRestarts bounds how often a guest is started again. On a host with several times as
// many busy threads as CPUs every third start failed.
const maxRestarts = 12

// restartTimeout bounds a reset, in which QEMU loads the kernel again.
const restartTimeout = 20 * time.Second

const (
	// stillSpan is how long a guest may do nothing before it has come up, and stillShare
	// the part of it for which QEMU runs or waits for a CPU nevertheless.
	stillSpan  = 6 * time.Second
	stillShare = 0.02
	// busyLimit is how much CPU time a guest may use before it has come up, several times what
	// it needs: one with several CPUs spins when it has no timer. It doubles with every
	// restart, for the sake of hosts that are slow.
	busyLimit = 20 * time.Second
)

// firstStart is what a machine keeps until its guest has come up.
type firstStart struct {
	log      *slog.Logger
	restarts int
	writes   int // of the guest to its scratch disk, up to the last restart
}

// errSwitchedOff says that a guest switched itself off because it wanted to.
var errSwitchedOff = errors.New("the guest switched itself off")

// dial opens a connection. Until the first one the guest is started again when it cannot
// come up, and others wait for that one.
func (m *machine) dial(ctx context.Context) (net.Conn, error) {
	select {
	case m.starting <- struct{}{}:
	case <-m.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if m.first == nil {
		<-m.starting
		return m.channel.dial(ctx)
	}
	defer func() { <-m.starting }()
	return m.dialFirst(ctx)
}

func (m *machine) dialFirst(ctx context.Context) (net.Conn, error) {
	dialing, stop := context.WithCancel(ctx)
	defer stop()
	watched := make(chan error, 1)
	go func() {
		err := m.watchStart(dialing)
		if err != nil {
			stop()
		}
		watched <- err
	}()
	conn, err := m.channel.dial(dialing)
	stop()
	switch werr := <-watched; {
	case errors.Is(werr, errSwitchedOff):
		_ = m.cmd.Process.Kill() // QEMU has only paused; fails if it has ended
		<-m.qmp.ended
		return nil, werr
	case werr != nil:
		if !errors.Is(werr, errMonitor) { // it is ending, and knows better why
			m.fail(werr)
		}
		err = errors.Join(werr, err)
	}
	if err == nil {
		err = m.qmp.run(ctx, "set-action", map[string]any{"shutdown": "poweroff", "reboot": "shutdown"})
	}
	if err != nil {
		if conn != nil {
			_ = conn.Close()
		}
		return nil, err
	}
	m.first = nil
	if m.qmp.shutdownReason() == switchedOff { // in between: QEMU has only paused
		_ = m.cmd.Process.Kill() // fails if it has ended
	}
	return conn, nil
}

// watchStart starts the guest again when it has switched itself off or does nothing, until
// ctx ends. Its error says that the guest will never come up.
func (m *machine) watchStart(ctx context.Context) error {
	for ctx.Err() == nil { // until it answered, or the caller gave up
		why, err := m.awaitFailure(ctx)
		if err == nil {
			if m.first.restarts == maxRestarts {
				return kiln.Errorf(kiln.CodeUnavailable, "the guest was started %d times: %s", maxRestarts+1, why).
					WithHint("other programs kept its emulated CPUs from running: give this host less to do, or more CPUs")
			}
			m.first.restarts++
			m.driver.counted()
			m.first.log.Warn("guest is started again", "reason", why, "restarts", m.first.restarts)
			err = m.restart(ctx)
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("start the guest again: %w", err)
		}
	}
	return nil
}

// awaitFailure returns why the guest cannot come up.
func (m *machine) awaitFailure(ctx context.Context) (why string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	limit := busyLimit << m.first.restarts
	hung := make(chan error, 1)
	go func() { hung <- awaitHang(ctx, m.PID(), limit) }()
	off := make(chan error, 1)
	go func() { off <- m.qmp.await(ctx, func() bool { return m.qmp.shutdown == switchedOff }) }()
	select {
	case err = <-hung:
		return "it does nothing or spins, like one whose timers do not work", err
	case err = <-off:
		if err == nil {
			err = m.wasMeant(ctx)
		}
		return "it switched itself off, like one whose timers are wrong", err
	}
}

// wasMeant returns errSwitchedOff if the guest has used its scratch disk since it was started
// last: the daemon looks at the timers before that.
func (m *machine) wasMeant(ctx context.Context) error {
	writes, err := m.qmp.writes(ctx, scratchNode)
	if err == nil && writes > m.first.writes {
		err = errSwitchedOff
	}
	return err
}

// awaitHang returns when the process of a VM neither runs nor wants to, or has run for limit.
func awaitHang(ctx context.Context, pid int, limit time.Duration) error {
	begun, waited, err := idle.Used(pid)
	if err != nil {
		return err
	}
	tick := time.NewTicker(stillSpan)
	defer tick.Stop()
	for last := begun + waited; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		cpu, waited, err := idle.Used(pid)
		if err != nil {
			return err
		}
		if cpu-begun > limit || cpu+waited-last < time.Duration(stillShare*float64(stillSpan)) {
			return nil
		}
		last = cpu + waited
	}
}

// restart resets the machine and lets it run, which a caller who gives up does not cut short.
// QEMU, told to end when the guest resets it, would end now, too, so it is told otherwise for
// that moment.
func (m *machine) restart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restartTimeout)
	defer cancel()
	writes, err := m.qmp.writes(ctx, scratchNode)
	if err != nil {
		return err
	}
	m.first.writes = writes
	before := m.qmp.beginReset()
	for _, step := range []func() error{
		func() error { return m.qmp.run(ctx, "set-action", map[string]any{"reboot": "reset"}) },
		func() error { return m.qmp.run(ctx, "system_reset", nil) },
		func() error { return m.qmp.await(ctx, func() bool { return m.qmp.resets > before }) },
		func() error { return m.qmp.run(ctx, "set-action", map[string]any{"reboot": "shutdown"}) },
		func() error { return m.Resume(ctx) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// endAfterReset ends a machine whose guest has reset it, as a panic does: told to pause when
// the guest switches itself off, QEMU only pauses then, too.
func (m *machine) endAfterReset() {
	reset := func() bool { return m.qmp.shutdown != "" && m.qmp.shutdown != switchedOff }
	if m.qmp.await(context.Background(), reset) == nil {
		_ = m.cmd.Process.Kill() // fails if it has ended
	}
}

// fail ends the machine because of err.
func (m *machine) fail(err error) {
	m.mu.Lock()
	if m.err == nil && !m.killed {
		m.err = err
	}
	m.mu.Unlock()
	_ = m.cmd.Process.Kill() // fails if it has ended
}
