package pid1

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
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
	defer stop(opts.Log)
	defer func() {
		if p := recover(); p != nil {
			opts.Log.Error("panic in process 1", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	if err := run(opts); err != nil {
		opts.Log.Error("init failed, stopping the VM", "error", err)
	}
}

func run(opts Options) error {
	ctx := context.Background()
	log := opts.Log
	start := time.Now()

	if err := mountInitial(); err != nil {
		return err
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
	if err := root.enter(); err != nil {
		return err
	}
	setUpSystem(log)
	seedHomes(log)

	listener, err := listen(ctx, events)
	if err != nil {
		return err
	}
	events.close()
	log.Info("kiln-sandboxd is up", "root", disks.base, "scratch", disks.scratch,
		"channel", listener.Addr(), "ms", time.Since(start).Milliseconds())

	go opts.Children.ReapOrphans(ctx)
	err = opts.Serve(ctx, listener)
	log.Info("shutting down", "reason", err)
	listener.Close()
	root.seal(log)
	return nil
}

// prepareProcess gives this process, and through it every command, the surroundings that
// a service manager would.
func prepareProcess(log *slog.Logger) {
	unix.Umask(0o022)
	os.Clearenv() // words of the kernel's command line that it did not know arrive as variables
	os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
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

// stop ends the VM by asking for a restart, which every VMM that runs Kiln's guests turns
// into an end: Firecracker knows no power-off, and QEMU is started with -no-reboot.
func stop(log *slog.Logger) {
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	log.Error("restart", "error", err)
	panic(fmt.Sprintf("restart: %v", err)) // the end of process 1 stops the VM as well
}
