// Command kiln-sandboxd is what runs inside every VM: init and daemon in one program.
//
// As process 1 it brings the VM up and serves the channel to the host. Started in any other
// way it serves an address:
//
//	kiln-sandboxd -listen tcp:127.0.0.1:49983
//	kiln-sandboxd -listen unix:/run/kiln.sock
//	kiln-sandboxd -listen host     # the channel to the host, as a service of systemd
//
// The number of processors never changes while it runs, so it need not look for changes.
//
//go:debug updatemaxprocs=0
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/link"
	"github.com/kilnvm/kiln/internal/sandboxd"
	"github.com/kilnvm/kiln/internal/sandboxd/pid1"
	"github.com/kilnvm/kiln/internal/sandboxd/reap"
)

// The daemon shares a small VM with its user's programs: it collects garbage early, and above
// this size, in bytes, as hard as it takes to stay below.
const (
	garbagePercent = 50
	memoryLimit    = 48 << 20
)

func main() {
	debug.SetGCPercent(garbagePercent)
	debug.SetMemoryLimit(memoryLimit)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if os.Getpid() == 1 {
		children := &reap.Registry{}
		pid1.Run(pid1.Options{Children: children, Log: log, Serve: func(ctx context.Context, l net.Listener) error {
			return serve(ctx, l, children, log)
		}})
	}
	listen := flag.String("listen", "", "address to serve: tcp:HOST:PORT, unix:PATH, or host for the channel to the host")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := serveListen(ctx, *listen, log); err != nil {
		fmt.Fprintln(os.Stderr, "kiln-sandboxd:", err)
		os.Exit(1)
	}
}

// serve runs the daemon until ctx ends or the host asks for a shutdown.
func serve(ctx context.Context, l net.Listener, children *reap.Registry, log *slog.Logger) error {
	ctx, shutdown := context.WithCancel(ctx)
	defer shutdown()
	return serveUntil(ctx, l, children, shutdown, log)
}

// serveUntil runs the daemon until ctx ends. powerOff is what a request for a shutdown leads to.
func serveUntil(ctx context.Context, l net.Listener, children *reap.Registry, powerOff func(), log *slog.Logger) error {
	daemon := sandboxd.New(sandboxd.Options{
		System: &sandboxd.Linux{}, Children: children, PowerOff: powerOff, Log: log,
	})
	if port, ok := l.(*link.Listener); ok {
		port.HandleCalls(daemon.Identify)
	}
	return daemon.Serve(ctx, l)
}

// serveListen runs the daemon under another init, on what -listen says.
func serveListen(ctx context.Context, where string, log *slog.Logger) error {
	if where == "host" {
		return serveHost(ctx, log)
	}
	return serveAddress(ctx, where, log)
}

// serveHost runs the daemon as a service of the VM's systemd, which ends it last of all.
func serveHost(ctx context.Context, log *slog.Logger) error {
	l, err := pid1.Listen(ctx)
	if err != nil {
		return err
	}
	log.Info("kiln-sandboxd is up", "channel", l.Addr())
	return serveUntil(ctx, l, &reap.Registry{}, func() {
		if err := pid1.AskToPowerOff(); err != nil {
			log.Error("ask systemd to power off", "error", err)
		}
	}, log)
}

// serveAddress runs the daemon on an address.
func serveAddress(ctx context.Context, address string, log *slog.Logger) error {
	network, addr, _ := strings.Cut(address, ":")
	if (network != "tcp" && network != "unix") || addr == "" {
		return fmt.Errorf("-listen %q: want tcp:HOST:PORT, unix:PATH or host", address)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, network, addr)
	if err != nil {
		return err
	}
	log.Info("kiln-sandboxd is up", "address", l.Addr())
	return serve(ctx, l, &reap.Registry{}, log)
}
