package pid1

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/sandboxd/imagefile"
)

// systemdWord stands on the kernel's command line of a VM whose template asks for the init
// system of its image.
const systemdWord = "kiln.init=systemd"

// wantsSystemd tells whether this VM is to boot the image's systemd.
func wantsSystemd() bool { return onCommandLine(systemdWord) }

// onCommandLine tells whether word stands on the kernel's command line.
func onCommandLine(word string) bool {
	text, err := os.ReadFile("/proc/cmdline")
	return err == nil && slices.Contains(strings.Fields(string(text)), word)
}

// What the daemon leaves for its life as a service. All of it is in memory: the image's disk
// has nothing of it.
const (
	runDir      = "/run"
	serviceFile = "/run/kiln/kiln-sandboxd"
	unitDir     = "/run/systemd/system"
	unitName    = "kiln-sandboxd.service"
)

// unit makes the daemon a service that starts first and ends last. It runs once: whenever it
// ends, the VM ends, as it does where the daemon is process 1, because another daemon would not
// know whom to obey. Commands that it leaves behind delay that as little as one of them that
// runs out of memory brings it about.
const unit = `[Unit]
Description=Kiln sandbox daemon
DefaultDependencies=no
IgnoreOnIsolate=yes
RefuseManualStop=yes
FailureAction=reboot-immediate
SuccessAction=reboot-immediate

[Service]
ExecStart=` + serviceFile + ` -listen host
Restart=no
KillMode=process
OOMPolicy=continue
TasksMax=infinity
LimitNOFILE=65536:1048576
IgnoreSIGPIPE=no
StandardError=journal+console
`

// maskedUnits are what a distribution's systemd starts and what is done already, belongs to the
// host, or has no device in such a VM. A unit of that name in the image's own
// /etc/systemd/system wins over the mask.
func maskedUnits() []string {
	return []string{
		// the disks: checked by the host's writer, joined before systemd starts
		"systemd-remount-fs.service", "systemd-fsck-root.service", "systemd-growfs-root.service",
		// consoles: the serial one is the host's log, and there is no other
		"getty@tty1.service", "serial-getty@ttyS0.service", "console-getty.service", "getty-static.service",
		// the network: address, route and resolver are set and never change
		"systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service",
		"NetworkManager.service", "NetworkManager-wait-online.service", "networking.service", "systemd-resolved.service",
		// time and identity: the host gives them
		"systemd-timesyncd.service", "systemd-time-wait-sync.service", "systemd-firstboot.service",
		"systemd-machine-id-commit.service", "systemd-random-seed.service",
		// housekeeping that would be due in each clone at once
		"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
		"fstrim.timer", "man-db.timer", "motd-news.timer",
	}
}

// systemdProgram returns where the image has systemd, or "".
func systemdProgram() string {
	for _, path := range []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd"} {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// becomeSystemd makes process 1 the image's systemd, with the daemon among its services. It
// returns only if that fails, or nil if the image has no systemd: then process 1 stays the
// daemon, so that the host can say what is missing.
func becomeSystemd(log *slog.Logger) error {
	program := systemdProgram()
	if program == "" {
		log.Warn("the template asks for systemd, and its image has none")
		return nil
	}
	run := mount{"tmpfs", runDir, "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"}
	if err := run.do(); err != nil {
		return err
	}
	if err := installService(); err != nil {
		return fmt.Errorf("service of the daemon: %w", err)
	}
	if err := ensureMachineID(); err != nil {
		return fmt.Errorf("machine ID: %w", err)
	}
	log.Info("process 1 becomes systemd", "program", program)
	signal.Reset()
	err := unix.Exec(program, []string{program}, []string{"PATH=" + os.Getenv("PATH"), "TERM=linux"})
	return fmt.Errorf("execute %s: %w", program, err)
}

// installService puts the daemon, its unit and the masks below /run.
func installService() error {
	if err := copySelf(serviceFile); err != nil {
		return err
	}
	wants := filepath.Join(unitDir, "sysinit.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(unitDir, unitName), []byte(unit), 0o644); err != nil {
		return err
	}
	if err := os.Symlink(filepath.Join("..", unitName), filepath.Join(wants, unitName)); err != nil {
		return err
	}
	for _, name := range maskedUnits() {
		if err := os.Symlink("/dev/null", filepath.Join(unitDir, name)); err != nil {
			return err
		}
	}
	return nil
}

// copySelf copies the running program, which no path leads to any more.
func copySelf(to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	src, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// ensureMachineID gives systemd a machine ID to boot with, so that no boot is a first boot
// with its questions. Every clone gets another one.
func ensureMachineID() error {
	const path = "/etc/machine-id"
	old, err := imagefile.Read(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := strings.TrimSpace(string(old))
	id, err := hex.DecodeString(text)
	if err == nil && len(id) == 16 && strings.Trim(text, "0") != "" {
		return nil
	}
	random, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	return imagefile.Write(path, []byte(strings.ReplaceAll(string(random), "-", "")), 0o444)
}

// Listen accepts the host's connections for a daemon that is a service of another process 1.
// It does so once: a daemon asks for no token until the host has given it one, so that a
// second one, in a sandbox that has its identity, would let everybody in.
func Listen(ctx context.Context) (net.Listener, error) {
	if err := os.Remove(serviceFile); err != nil {
		return nil, fmt.Errorf("this is not the first daemon of the VM: %w", err)
	}
	events, err := newUevents()
	if err != nil {
		return nil, err
	}
	defer events.close()
	return listen(ctx, events)
}

// Signals to systemd as process 1, from systemd(1): SIGRTMIN+4 starts poweroff.target,
// SIGRTMIN+5 reboot.target. The first real-time signal of programs is 34.
const (
	systemdPowerOff = unix.Signal(34 + 4)
	systemdReboot   = unix.Signal(34 + 5)
)

// AskToPowerOff has systemd stop all services and end the VM.
func AskToPowerOff() error {
	how := systemdPowerOff
	if onCommandLine(restartWord) {
		how = systemdReboot
	}
	return unix.Kill(1, how)
}
