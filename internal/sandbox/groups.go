package sandbox

import (
	"context"
	"errors"

	"github.com/kilnvm/kiln/internal/cgroup"
	"github.com/kilnvm/kiln/internal/vmm"
)

// confine returns what puts the VMM of a sandbox into its control group before its guest
// runs. The group bears the sandbox's ID, which its row or folder has recorded. A sandbox
// that was paused finds its group again, or gets a new one.
func (m *Manager) confine(id string, limits cgroup.Limits) vmm.Confine {
	if m.opts.Groups == nil {
		return nil
	}
	return m.opts.Groups.Confine(id, limits)
}

// dropGroup removes a sandbox's control group and whatever may still run in it.
func (m *Manager) dropGroup(ctx context.Context, id string) error {
	if m.opts.Groups == nil {
		return nil
	}
	return m.opts.Groups.Remove(ctx, id)
}

// sweepGroups removes the control groups that are nobody's.
func (m *Manager) sweepGroups(ctx context.Context) error {
	if m.opts.Groups == nil {
		return nil
	}
	names, err := m.opts.Groups.List()
	for _, name := range names {
		if m.box(name) == nil {
			err = errors.Join(err, m.opts.Groups.Remove(ctx, name))
		}
	}
	return err
}
