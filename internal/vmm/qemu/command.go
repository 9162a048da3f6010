package qemu

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kilnvm/kiln/internal/vmm"
)

const (
	consoleName = "console.log"
	guestSocket = "guest.sock"
	// portName is the virtio-serial port on which the daemon listens.
	portName = "kiln.0"
)

// cmdline is the guest's kernel command line on any accelerator. A panic ends the VM at once, and no time
// is spent on calibrating timers that an emulated clock makes exact.
const cmdline = "console=ttyS0 quiet reboot=t panic=-1 tsc=reliable no_timer_check"

// memory says where guest memory lives.
type memory struct {
	path   string // "" means anonymous
	shared bool   // changes go to the file
}

func (m memory) object(mib int) string {
	if m.path == "" {
		return fmt.Sprintf("memory-backend-ram,id=m0,size=%dM", mib)
	}
	share := "off"
	if m.shared {
		share = "on"
	}
	return fmt.Sprintf("memory-backend-file,id=m0,size=%dM,mem-path=%s,share=%s", mib, escape(m.path), share)
}

// command builds the VMM's command line. For a restore it must describe the same machine
// as for the boot that was captured.
func (d *Driver) command(cfg vmm.Config, mem memory, incoming bool) *exec.Cmd {
	accel, cpu := "tcg,thread=multi", "max"
	if d.accel == KVM {
		accel, cpu = "kvm", "host"
	}
	args := []string{
		"-name", "kiln-" + escape(cfg.ID) + ",debug-threads=on",
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		"-accel", accel, "-cpu", cpu,
		"-smp", fmt.Sprint(cfg.Size.VCPUs), "-m", fmt.Sprintf("%dM", cfg.Size.MemoryMiB),
		"-object", mem.object(cfg.Size.MemoryMiB),
		"-machine", "microvm,memory-backend=m0,isa-serial=on,rtc=on",
		"-kernel", cfg.Boot.KernelPath, "-initrd", cfg.Boot.InitrdPath, "-append", d.cmdline,
		"-drive", drive("rootfs", cfg.Rootfs) + ",readonly=on",
		"-device", "virtio-blk-device,drive=rootfs",
		"-drive", drive("scratch", cfg.Scratch) + ",discard=unmap,detect-zeroes=unmap",
		"-device", "virtio-blk-device,drive=scratch",
		"-device", "virtio-rng-device",
		"-chardev", "socket,id=guest,server=on,wait=off,path=" + escape(filepath.Join(cfg.Dir, guestSocket)),
		"-device", "virtio-serial-device",
		"-device", "virtserialport,chardev=guest,name=" + portName,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
	if incoming {
		args = append(args, "-incoming", "defer")
	}
	cmd := exec.Command(d.binary, args...) //nolint:noctx // it outlives the request; Kill ends it
	cmd.Dir = cfg.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = killDelay
	return cmd
}

// drive describes a raw disk. Locks are off because many clones read one base; no two
// machines ever get one scratch disk.
func drive(id, path string) string {
	return "if=none,format=raw,file.driver=file,file.locking=off,cache.no-flush=off,id=" + id + ",file.filename=" + escape(path)
}

// escape doubles commas, as QEMU's option syntax wants it.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
