package server

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/kilnvm/kiln/internal/config"
	"github.com/kilnvm/kiln/internal/doctor"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/vmm"
	"github.com/kilnvm/kiln/internal/vmm/probe"
	"github.com/kilnvm/kiln/internal/vmm/qemu"
)

// newDriver returns the driver of the virtual machines that run on this host. restarted is
// told of every guest that had to be started again.
func newDriver(ctx context.Context, cfg config.Config, restarted func(), log *slog.Logger) (vmm.Driver, error) {
	accel, reason, err := accelerator(ctx, cfg)
	if err != nil {
		return nil, err
	}
	d, err := qemu.New(ctx, qemu.Options{Binary: cfg.VM.QEMU, Accel: accel, Channel: channelOption(cfg), Restarted: restarted, Log: log})
	if err != nil {
		return nil, err
	}
	log.InfoContext(ctx, "virtual machines", "driver", d.Info().Name, "version", d.Info().Version, "reason", reason)
	return d, nil
}

// DoctorOptions says what doctor has to look at for a server of this configuration.
func DoctorOptions(cfg config.Config) doctor.Options {
	o := doctor.Options{
		DataDir: cfg.DataDir, QEMU: cfg.VM.QEMU, Kernel: cfg.VM.Kernel, Builder: cfg.Build.Address,
		Accelerator: func(ctx context.Context) (accel, reason string, err error) { return accelerator(ctx, cfg) },
		Channel:     func() (channel, reason string, err error) { return qemu.ChooseChannel(channelOption(cfg)) },
	}
	if cfg.Network.Enabled {
		o.Network = func() []network.Finding { return network.Examine(cfg.Network.Settings(), nil) }
	}
	return o
}

// channelOption is the configured channel in the driver's words.
func channelOption(cfg config.Config) string {
	if cfg.VM.Channel == "auto" {
		return ""
	}
	return cfg.VM.Channel
}

// accelerator decides what VMs run on, and says why. It may boot a tiny guest to find out;
// what it found is remembered in the data directory, if there is one.
func accelerator(ctx context.Context, cfg config.Config) (accel, reason string, err error) {
	if cfg.VM.Accel != "auto" {
		return cfg.VM.Accel, "vm.accel in the configuration", nil
	}
	o := probe.Options{Binary: cfg.VM.QEMU}
	if info, err := os.Stat(cfg.DataDir); err == nil && info.IsDir() {
		o.CacheFile = filepath.Join(cfg.DataDir, "probe.json")
	}
	found, err := probe.Accelerator(ctx, o)
	if found.Accel != "" {
		err = nil // found, but not remembered
	}
	return found.Accel, found.Reason, err
}
