package qemu

import (
	"encoding/json"
	"fmt"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/vmm"
)

// cmdline is the guest's kernel command line on any accelerator. A panic ends the VM at
// once: it resets, and QEMU is told not to start again. Pressure stall information is
// accounted at every switch between tasks, in every clone. Of the security modules that
// Debian enables, AppArmor and TOMOYO do nothing without profiles, at every system call.
const cmdline = "console=ttyS0 quiet reboot=t panic=-1 psi=0 lsm=landlock,lockdown,yama,integrity,bpf"

// emulated is the processor of guests on TCG. A guest that is told that string instructions
// on bytes are fast (ERMS, FSRM) copies and clears with them, and they are emulated byte by
// byte.
const emulated = "max,-erms,-fsrm"

// sandbox is QEMU's own seccomp filter: no new privileges, no new processes.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// Descriptors that QEMU inherits, in the order of exec.Cmd.ExtraFiles.
const (
	qmpFD     = 3
	channelFD = 4
	tapFD     = 5 // when the machine has a network
)

// memory says where guest memory lives.
type memory struct {
	path   string // "" means anonymous
	shared bool   // changes go to the file
}

// arguments returns QEMU's command line. For a restore it describes the same machine as
// for the boot that was captured, but for the kernel: that is in memory already, and a
// machine that resets ends.
func (d *Driver) arguments(cfg vmm.Config, mem memory, ch channel, incoming bool) []string {
	accel, cpu := "tcg,thread=multi", emulated
	if d.accel == KVM {
		accel, cpu = "kvm", "host"
	}
	args := []string{
		"-name", "kiln-" + cfg.ID + ",debug-threads=on",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", accel, "-cpu", cpu,
		"-smp", fmt.Sprint(cfg.Size.VCPUs), "-m", fmt.Sprintf("%dM", cfg.Size.MemoryMiB),
		"-object", mem.object(cfg.Size.MemoryMiB),
		// The second interrupt controller is for more devices than eight, and costs a tenth of the start.
		"-machine", "microvm,memory-backend=m0,x-option-roms=off,ioapic2=off",
	}
	if incoming {
		args = append(args, "-incoming", "defer", "-S") // paused, whatever the state says
	} else {
		// It starts paused, to be confined before it runs.
		args = append(args, "-S", "-action", "shutdown="+d.atSwitchOff(), "-kernel", cfg.Boot.KernelPath, "-initrd", cfg.Boot.InitrdPath, "-append", d.cmdline+initWords(cfg.Init))
	}
	if d.sandbox {
		args = append(args, "-sandbox", sandbox)
	}
	if cfg.Network != nil {
		// The guest is not asked to announce itself after a restore: its network is its own.
		args = append(args, "-netdev", fmt.Sprintf("tap,id=net0,fd=%d,vhost=off", tapFD),
			"-device", "virtio-net-device,netdev=net0,guest_announce=off,mac="+cfg.Network.MAC)
	}
	args = append(args,
		"-object", throttle(cfg.Disk),
		"-blockdev", disk("rootfs", cfg.Rootfs, true), "-device", "virtio-blk-device,drive=rootfs",
		"-blockdev", disk(scratchNode, cfg.Scratch, false), "-device", "virtio-blk-device,drive="+scratchNode,
	)
	args = append(args, ch.arguments(channelFD)...)
	return append(args,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", qmpFD), "-mon", "chardev=qmp,mode=control",
	)
}

// initWords tells the daemon, as the kernel's first program, what to hand over to. The network
// device keeps the name under which it was set up before that.
func initWords(init string) string {
	if init == "" {
		return ""
	}
	return " kiln.init=" + init + " net.ifnames=0"
}

// object is the memory back end "m0".
func (m memory) object(mib int) string {
	o := map[string]any{"qom-type": "memory-backend-ram", "id": "m0", "size": int64(mib) << 20}
	if m.path != "" {
		o["qom-type"], o["mem-path"], o["share"] = "memory-backend-file", m.path, m.shared
	}
	return text(o)
}

// scratchNode is QEMU's name of the scratch disk.
const scratchNode = "scratch"

// disk is a raw disk. There are no locks, because many clones read one base and no two
// machines are ever given the same scratch disk; and no flushes, because a scratch disk
// does not outlive its machine, and those that are kept are synced by whoever keeps them.
// Nor is the host's page cache dropped when a state is loaded, as for a machine that comes
// from another host: all clones read the base from there.
func disk(id, path string, readOnly bool) string {
	d := map[string]any{
		"driver": "raw", "read-only": readOnly,
		"file":  map[string]any{"driver": "file", "filename": path, "locking": "off", "drop-cache": false},
		"cache": map[string]any{"no-flush": true},
	}
	if !readOnly {
		d["discard"], d["detect-zeroes"] = "unmap", "unmap"
	}
	return text(map[string]any{
		"driver": "throttle", "node-name": id, "throttle-group": throttles, "read-only": readOnly, "file": d,
		"cache": map[string]any{"no-flush": true},
	})
}

// throttles is the group of throttled disks: they share its limits.
const throttles = "disks"

// throttle is the group. Without limits it lets everything pass.
func throttle(l kiln.DiskLimits) string {
	limits := map[string]any{}
	rate := func(name string, rate, burst, unit int) {
		if rate > 0 {
			limits[name] = rate * unit
			if burst > rate {
				limits[name+"-max"] = burst * unit
			}
		}
	}
	rate("bps-total", l.BandwidthMBps, l.BurstMBps, 1<<20)
	rate("iops-total", l.OpsPerSec, l.BurstOps, 1)
	return text(map[string]any{"qom-type": "throttle-group", "id": throttles, "limits": limits})
}

// text is an option in JSON, which needs no escapes of QEMU's own.
func text(option map[string]any) string {
	b, err := json.Marshal(option)
	if err != nil {
		panic(err) // strings, numbers and booleans are always encodable
	}
	return string(b)
}
