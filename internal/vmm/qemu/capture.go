package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/vmm"
	"github.com/kilnvm/kiln/internal/vmm/idle"
)

// Capture implements [vmm.Machine].
func (m *machine) Capture(ctx context.Context, s vmm.State) error {
	capture := m.capture
	switch {
	case m.loaded != nil:
		capture = m.captureClone
	case !m.memory.shared:
		return kiln.Errorf(kiln.CodeInvalid, "machine %s was not booted to be captured", m.cfg.ID)
	}
	if err := capture(ctx, s); err != nil {
		return fmt.Errorf("capture %s: %w", m.cfg.ID, m.gone(err))
	}
	return nil
}

// capture saves a machine that was booted with its memory in a file.
func (m *machine) capture(ctx context.Context, s vmm.State) error {
	if err := m.calm(ctx); err != nil {
		return err
	}
	if err := m.drain(ctx); err != nil {
		return err
	}
	if err := m.save(ctx, s.State); err != nil {
		_ = os.Remove(s.State)
		return err
	}
	if s.Memory == m.memory.path {
		return nil
	}
	return os.Rename(m.memory.path, s.Memory)
}

// calm ends all connections and lets the guest run on until it has nothing more to do:
// what it has left to do at the capture every clone would do again, before anything else.
// The machine is paused afterwards.
func (m *machine) calm(ctx context.Context) error {
	if err := m.qmp.run(ctx, "cont", nil); err != nil {
		return err
	}
	if err := m.channel.hangUp(ctx); err != nil {
		return err
	}
	if err := idle.Await(ctx, m.PID()); err != nil {
		return err
	}
	for stops := 1; ; stops++ {
		m.channel.attend(ctx)
		if err := m.qmp.run(ctx, "stop", nil); err != nil {
			return err
		}
		if m.driver.accel != TCG || stops == calmStops || !m.interrupted(ctx) {
			return nil
		}
		if err := m.qmp.run(ctx, "cont", nil); err != nil {
			return err
		}
	}
}

// calmStops bounds how often a machine is stopped until no interrupt waits for its CPUs.
const calmStops = 10

// interrupted reports whether a CPU of a stopped machine is at work on an interrupt, or has
// yet to see one, which every clone would have to do first. In a QEMU that shows its interrupt
// controllers in another form none is.
func (m *machine) interrupted(ctx context.Context) bool {
	for cpu := range m.cfg.Size.VCPUs {
		text, err := m.qmp.ask(ctx, fmt.Sprintf("info lapic %d", cpu))
		if err != nil {
			return false
		}
		for line := range strings.Lines(text) {
			name, vectors, _ := strings.Cut(line, "\t") // requested, and in service
			if (name == "IRR" || name == "ISR") && strings.TrimSpace(vectors) != "(none)" {
				return true
			}
		}
	}
	return false
}

// captureClone saves a restored machine as it is: somebody may be working in it, and goes
// on when it is restored.
func (m *machine) captureClone(ctx context.Context, s vmm.State) (err error) {
	if err := m.channel.hangUp(ctx); err != nil {
		return err
	}
	if err := m.drain(ctx); err != nil {
		return err
	}
	devices, err := m.saveDevices(ctx)
	if err != nil {
		return err
	}
	stream, err := withDevices(m.loaded, devices)
	if err != nil {
		return err
	}
	if err := copyMemory(ctx, m.PID(), m.memory.path, s.Memory); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	if err := writeFile(s.State, encodeState(stream)); err != nil {
		return errors.Join(err, os.Remove(s.Memory))
	}
	return nil
}

const devicesName = "devices.tmp"

// saveDevices returns what QEMU saves of devices and CPUs without memory. A migration
// would read and send all of a clone's memory. The command is named after its first user;
// nothing in it is about Xen.
func (m *machine) saveDevices(ctx context.Context) ([]byte, error) {
	path := filepath.Join(m.cfg.Dir, devicesName)
	defer os.Remove(path) //nolint:errcheck // it goes with its folder, too
	err := m.qmp.run(ctx, "xen-save-devices-state", map[string]any{"filename": path, "live": false})
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}
