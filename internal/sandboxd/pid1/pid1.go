package pid1

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/sandboxd/reap"
)

// deviceTimeout bounds the wait for a disk or for the channel. They come with the VM, so
// that only a mistake in its configuration lets it pass.
const deviceTimeout = 60 * time.Second

// Options is what the program adds to the life of process 1.
type Options struct {
	// Serve runs the daemon on the connections from the host until it is told to shut
	// down. It runs in the template's root filesystem. When it returns, the VM stops.
	Serve func(ctx context.Context, l net.Listener) error
	// Children are the commands of the daemon; all other children are orphans, which
	// process 1 inherits and collects.
	Children *reap.Registry
	Log      *slog.Logger
}

// Run boots the VM, serves, and stops the VM. It never returns: process 1 must not end.
func Run(opts Options) {
	failed := true
	defer func() { stop(failed, opts.Log) }()
	defer func() {
		if p := recover(); p != nil {
			opts.Log.Error("panic in process 1", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	if err := run(opts); err != nil {
		opts.Log.Error("init failed, stopping the VM", "error", err)
		return
	}
	failed = false
}

func run(opts Options) error {
	ctx, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	log := opts.Log
	start := time.Now()

	if err := mountInitial(); err != nil {
		return err
	}
	if err := insistOnTimers(); err != nil {
		log.Warn("timers of the CPUs", "error", err)
	}
	prepareProcess(log)
	loadModules(moduleDir, log)
	events, err := newUevents()
	if err != nil {
		return err
	}
	disks, err := awaitDisks(ctx, events)
	if err != nil {
		return err
	}
	root, err := mountRoot(disks, log)
	if err != nil {
		return err
	}
	systemd := wantsSystemd()
	if systemd {
		os.Remove("/init") // its memory: a copy of the program will run
	}
	if err := root.enter(); err != nil {
		return err
	}
	setUpSystem(log)
	seedHomes(log)
	if systemd {
		if err := becomeSystemd(log); err != nil {
			return err
		}
	}

	listener, err := listen(ctx, events)
	if err != nil {
		return err
	}
	events.close()
	log.Info("kiln-sandboxd is up", "root", disks.base, "scratch", disks.scratch,
		"channel", listener.Addr(), "ms", time.Since(start).Milliseconds())

	go opts.Children.ReapOrphans(ctx)
	go haltOnSignal(stopServing, log)
	err = opts.Serve(ctx, listener)
	log.Info("shutting down", "reason", err)
	listener.Close()
	root.seal(log)
	return nil
}

// haltSignals are what programs of the reboot and poweroff kind send to process 1, busybox's for
// one. Each ends the VM in order.
var haltSignals = []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGUSR2}

// haltOnSignal waits for a halt signal, lets all processes end, and stops the daemon, which
// would kill them.
func haltOnSignal(stopServing func(), log *slog.Logger) {
	halt := make(chan os.Signal, 1)
	signal.Notify(halt, haltSignals...)
	log.Info("asked to halt", "signal", <-halt)
	endProcesses(log)
	stopServing()
}

// prepareProcess gives this process, and through it every command, the surroundings that
// a service manager would.
func prepareProcess(log *slog.Logger) {
	signal.Ignore(unix.SIGHUP, unix.SIGQUIT)
	unix.Umask(0o022)
	os.Clearenv() // words of the kernel's command line that it did not know arrive as variables
	const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if err := os.Setenv("PATH", path); err != nil {
		log.Warn("PATH", "error", err)
	}
	limit := unix.Rlimit{Cur: 65536, Max: 1048576}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		log.Warn("limit of open files", "error", err)
	}
	// A kernel panic ends the VM at once instead of leaving it to hang. The end of process
	// 1 is a kernel panic too: that is how a crash of the daemon ends.
	if err := os.WriteFile("/proc/sys/kernel/panic", []byte("-1"), 0); err != nil {
		log.Warn("panic setting", "error", err)
	}
}

// restartWord stands on the kernel's command line where a restart is how a VM ends.
const restartWord = "reboot=k"

// stop ends the VM: by switching it off, or, after a failure, by a restart, which tells the VMM
// that something is wrong. A VMM without a power switch, Firecracker, has its guests
// restart in either case and says so with [restartWord] on the kernel's command line.
func stop(failed bool, log *slog.Logger) {
	unix.Sync()
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	if failed || onCommandLine(restartWord) {
		how = unix.LINUX_REBOOT_CMD_RESTART
	}
	err := unix.Reboot(how)
	log.Error("stop the VM", "error", err)
	panic(fmt.Sprintf("stop the VM: %v", err)) // the end of process 1 does it as well
}
