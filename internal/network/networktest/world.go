// Package networktest makes a world for tests of what sandboxes reach: a namespace that
// stands for the host, one that stands for everything outside it, and guests without a VM.
// Nothing of it touches the network of the machine that the tests run on. Only tests
// import it.
package networktest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/kilnvm/kiln/internal/hostcmd"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/store"
)

// Addresses of a world. Those outside are from the ranges for documentation (RFC 5737) and
// from ranges that sandboxes must not reach; all of them answer in the namespace outside.
const (
	HostAddr     = "192.0.2.1" // of the host, towards outside
	OutsideAddr  = "192.0.2.2" // the router and resolver
	PublicAddr   = "198.51.100.10"
	PublicAddr2  = "203.0.113.20"
	PrivateAddr  = "10.99.0.5"
	MetadataAddr = "169.254.169.254"
)

// World is a host and its surroundings.
type World struct {
	Host, Outside netns.NsHandle
	dir           string
}

// New makes a world that lives as long as the test.
func New(t testing.TB) *World {
	t.Helper()
	w := &World{Host: namespace(t), Outside: namespace(t), dir: t.TempDir()}
	w.In(t, w.Host, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wan0"}, PeerName: "net0", PeerNamespace: netlink.NsFd(w.Outside)}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		if err := up("lo"); err != nil {
			return err
		}
		if err := address("wan0", HostAddr+"/24"); err != nil {
			return err
		}
		if err := up("wan0"); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: veth.Index, Gw: net.ParseIP(OutsideAddr)})
	})
	w.In(t, w.Outside, func() error {
		for _, a := range []string{PublicAddr, PublicAddr2, PrivateAddr, MetadataAddr} {
			if err := address("lo", a+"/32"); err != nil {
				return err
			}
		}
		for _, name := range []string{"lo", "net0"} {
			if err := up(name); err != nil {
				return err
			}
		}
		return address("net0", OutsideAddr+"/24")
	})
	return w
}

// Pool makes a pool of slots on the world's host.
func (w *World) Pool(t testing.TB, settings network.Settings) *network.Pool {
	t.Helper()
	pool, err := network.New(t.Context(), w.Options(t, settings))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Errorf("close the pool: %v", err)
		}
	})
	return pool
}

// Options are those of a pool on the world's host, with a store of its own.
func (w *World) Options(t testing.TB, settings network.Settings) network.Options {
	t.Helper()
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "kiln.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if settings.Resolvers == nil {
		settings.Resolvers = []string{OutsideAddr}
	}
	return network.Options{Store: s, DataDir: w.dir, Settings: settings, Host: &w.Host}
}

// In runs f in a namespace and fails the test when f does.
func (w *World) In(t testing.TB, ns netns.NsHandle, f func() error) {
	t.Helper()
	if err := Inside(ns, f); err != nil {
		t.Fatal(err)
	}
}

// Inside runs f on a thread in the namespace; the thread is not used again.
func Inside(ns netns.NsHandle, f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// namespace makes one without a name: it is gone with its last user.
func namespace(t testing.TB) netns.NsHandle {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: run `sudo make test`")
	}
	made := make(chan netns.NsHandle)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.New()
		if err != nil {
			failed <- err
		}
		made <- ns
	}()
	ns := <-made
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return netlink.LinkSetUp(link)
}

func address(name, cidr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return err
	}
	ip := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
	return netlink.AddrAdd(link, &netlink.Addr{IPNet: ip})
}

// HostRules returns the host's whole ruleset without handles and counts, as nft prints it.
func (w *World) HostRules(t testing.TB) string {
	t.Helper()
	return w.Rules(t, w.Host)
}

// Rules returns the ruleset of a namespace.
func (w *World) Rules(t testing.TB, ns netns.NsHandle) string {
	t.Helper()
	var out []byte
	w.In(t, ns, func() (err error) {
		out, err = hostcmd.Output(t.Context(), "nft", "--stateless", "list", "ruleset")
		return err
	})
	return string(out)
}
