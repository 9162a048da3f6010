package server

import (
	"context"
	"log/slog"

	"github.com/kilnvm/kiln/internal/config"
	"github.com/kilnvm/kiln/internal/doctor"
	"github.com/kilnvm/kiln/internal/vmm"
	"github.com/kilnvm/kiln/internal/vmm/qemu"
)

// newDriver returns the driver of the virtual machines that run on this host.
func newDriver(ctx context.Context, vm config.VM, log *slog.Logger) (vmm.Driver, error) {
	accel, reason, err := accelerator(ctx, vm)
	if err != nil {
		return nil, err
	}
	d, err := qemu.New(ctx, qemu.Options{Binary: vm.QEMU, Accel: accel})
	if err != nil {
		return nil, err
	}
	log.InfoContext(ctx, "virtual machines", "driver", d.Info().Name, "version", d.Info().Version, "reason", reason)
	return d, nil
}

// DoctorOptions says what doctor has to look at for a server of this configuration.
func DoctorOptions(cfg config.Config) doctor.Options {
	return doctor.Options{
		DataDir: cfg.DataDir, QEMU: cfg.VM.QEMU, Kernel: cfg.VM.Kernel, Builder: cfg.Build.Address,
		Accelerator: func(ctx context.Context) (accel, reason string, err error) { return accelerator(ctx, cfg.VM) },
	}
}

// accelerator decides what VMs run on, and says why.
func accelerator(_ context.Context, vm config.VM) (accel, reason string, err error) {
	if vm.Accel != "auto" {
		return vm.Accel, "vm.accel in the configuration", nil
	}
	return qemu.TCG, "software emulation", nil
}
