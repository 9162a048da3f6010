package network

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
)

// netnsDir is where iproute2 keeps named namespaces.
const netnsDir = "/run/netns"

// inside runs f on a thread in the namespace. What f opens, sockets above all, belongs to
// the namespace for ever.
func inside(ns netns.NsHandle, f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread that may change its namespace: if it cannot be brought back,
// it is not used again.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			result <- err
			return
		}
		err = f()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		_ = home.Close()
		result <- err
	}()
	return <-result
}

// makeNamespace makes a named namespace, runs f in it and returns a handle.
func makeNamespace(name string, f func(netns.NsHandle) error) (netns.NsHandle, error) {
	handle := netns.None()
	err := onThread(func() error {
		var err error
		if handle, err = netns.NewNamed(name); err != nil {
			return fmt.Errorf("make network namespace %s: %w", name, err)
		}
		return f(handle)
	})
	if err != nil && handle.IsOpen() {
		_ = handle.Close()
	}
	return handle, err
}

// setSysctl writes a setting below /proc/sys/net of the calling thread's namespace. A
// setting that the kernel does not have needs no change.
func setSysctl(name, value string) error {
	path := filepath.Join("/proc/sys/net", name)
	if now, err := os.ReadFile(path); os.IsNotExist(err) || err == nil && string(now) == value+"\n" {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0)
}
