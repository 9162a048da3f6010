package vmmtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/kilnvm/kiln/internal/guestnet"
	"github.com/kilnvm/kiln/internal/vmm"
)

// wire is a tap in a namespace of its own, with the gateway at the host's end.
type wire struct {
	ns  netns.NsHandle
	tap string
}

func (s *suite) wire(t *testing.T, tap string) *wire {
	t.Helper()
	w := &wire{tap: tap}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread is in another namespace
		var err error
		if w.ns, err = netns.New(); err == nil {
			err = w.makeTap()
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.ns.Close() })
	return w
}

func (w *wire) makeTap() error {
	tap := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: w.tap}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
	}
	if err := netlink.LinkAdd(tap); err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(tap, guestnet.GatewayMAC()); err != nil {
		return err
	}
	ip := &net.IPNet{IP: guestnet.Gateway().AsSlice(), Mask: net.CIDRMask(guestnet.Prefix().Bits(), 32)}
	if err := netlink.AddrAdd(tap, &netlink.Addr{IPNet: ip}); err != nil {
		return err
	}
	return netlink.LinkSetUp(tap)
}

func (w *wire) config() *vmm.Network {
	return &vmm.Network{Namespace: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), w.ns), Tap: w.tap, MAC: guestnet.GuestMAC().String()}
}

// arrived returns how many frames a guest has put on the wire.
func (w *wire) arrived(t *testing.T) uint64 {
	t.Helper()
	h, err := netlink.NewHandleAt(w.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByName(w.tap)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Statistics.RxPackets
}

// network attaches a machine to a tap, and clones of it to others: what the guest sends
// arrives on the machine's own tap and is answered there.
func (s *suite) network(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cfg := s.config(t, "wired")
	cfg.Memory = filepath.Join(cfg.Dir, "memory")
	first := s.wire(t, "tap0")
	cfg.Network = first.config()
	golden, err := s.driver.Boot(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer golden.Kill()
	client := waitReady(t, ctx, golden)
	ping := []string{"ping", "-c", "1", "-W", "10", guestnet.Gateway().String()}
	output(t, ctx, client, ping...)
	if first.arrived(t) == 0 {
		t.Error("nothing arrives on the tap")
	}
	must(t, client.Quiesce(ctx))
	client.Close()
	state := s.save(t, ctx, clone{golden, cfg.Scratch})
	before := first.arrived(t)

	for _, name := range []string{"tap0", "tap7"} { // in another namespace, whatever its name
		own := s.wire(t, name)
		m := s.cloneOn(t, ctx, state, name, own.config())
		output(t, ctx, waitReady(t, ctx, m), ping...)
		if own.arrived(t) == 0 {
			t.Errorf("nothing of a clone arrives on its %s", name)
		}
	}
	if n := first.arrived(t); n != before {
		t.Errorf("%d frames of clones arrived on the first machine's tap", n-before)
	}

	nowhere, other := first.config(), s.config(t, "apart")
	nowhere.Namespace = filepath.Join(cfg.Dir, "missing")
	unknown := first.config()
	unknown.Tap = "tap9"
	for what, n := range map[string]*vmm.Network{"no such namespace": nowhere, "no such tap": unknown} {
		other.Network = n
		if m, err := s.driver.Boot(ctx, other); err == nil {
			t.Errorf("%s: a machine started all the same", what)
			must(t, m.Kill())
		}
	}
	other.Network = nil
	if m, err := s.driver.Restore(ctx, other, state.State); err == nil {
		t.Error("a machine was restored without the device that it was captured with")
		must(t, m.Kill())
	}
}
