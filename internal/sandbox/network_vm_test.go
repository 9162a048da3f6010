package sandbox

import (
	"bytes"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/network/networktest"
)

// says runs a shell command in a sandbox and returns what it printed.
func (h *vmHost) says(t *testing.T, id, command string) string {
	t.Helper()
	g, err := h.Guest(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := g.Run(t.Context(), guest.Command{Args: []string{"/bin/sh", "-c", command}, Stdout: &out, Stderr: &out}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// A clone uses the network at once, with the address that its snapshot has.
func TestClonesReachTheNetwork(t *testing.T) {
	w := networktest.New(t)
	w.TCP(t, networktest.PublicAddr+":80")
	w.DNS(t, 60).Set("service.example", networktest.PublicAddr)
	h := newNetworkHost(t, w.Pool(t, network.Settings{Prepared: 2}), nil)
	for _, mode := range []kiln.BootMode{kiln.BootSnapshot, kiln.BootCold} {
		s, err := h.Create(t.Context(), CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", BootMode: mode})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %v", mode, s.BootTime)
		if got := h.says(t, s.ID, "echo ping | nc -w 5 service.example 80"); got != networktest.Greeting+"ping\n" {
			t.Errorf("%s: got %q; %s", mode, got, h.says(t, s.ID, "ip addr; ip route; cat /etc/resolv.conf; ls -l /sys/class/net/*/device/driver; dmesg | tail"))
		}
	}
}
