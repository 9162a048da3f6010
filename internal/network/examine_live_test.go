package network_test

import (
	"testing"

	"github.com/kilnvm/kiln/internal/hostcmd"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/network/networktest"
	"github.com/kilnvm/kiln/internal/testkit"
)

// Each fault is found, and the command that is named for it mends it.
func TestExamine(t *testing.T) {
	testkit.RequireCommands(t, "nft", "sh", "sysctl")
	w := networktest.New(t)
	links := func() (n int) {
		w.In(t, w.Host, func() error {
			list, err := network.Links()
			n = len(list)
			return err
		})
		return n
	}
	before := links()
	examine := func(s network.Settings) map[string]network.Finding {
		t.Helper()
		found := map[string]network.Finding{}
		for _, f := range network.Examine(s, &w.Host) {
			found[f.Name] = f
		}
		if n := links(); n != before {
			t.Errorf("%d links are left", n-before)
		}
		return found
	}
	in := func(command string) {
		t.Helper()
		w.In(t, w.Host, func() error { return hostcmd.Run(t.Context(), "sh", "-c", command) })
	}
	wantWell := func(what string, found map[string]network.Finding) {
		t.Helper()
		if len(found) != 5 {
			t.Errorf("%s: %d things were looked at", what, len(found))
		}
		for _, f := range found {
			if f.Err != nil || f.Detail == "" {
				t.Errorf("%s: %+v", what, f)
			}
		}
	}
	wantWell("a plain host", examine(network.Settings{}))
	w.Pool(t, network.Settings{Prepared: 1})
	before = links()
	wantWell("beside a server", examine(network.Settings{}))

	for name, fault := range map[string]string{
		"Docker's":        "nft 'add table ip filter; add chain ip filter DOCKER-USER; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }; add rule ip filter FORWARD jump DOCKER-USER'",
		"one of its own":  "nft 'add table inet guard; add chain inet guard through { type filter hook forward priority 5; policy drop; }'",
		"one for answers": "nft 'add table inet guard; add chain inet guard through { type filter hook forward priority 5; policy accept; }; add rule inet guard through oifname \"kiln*\" drop'",
	} {
		in(fault)
		broken := examine(network.Settings{})["firewall"]
		if broken.Err == nil || broken.Fix == "" || broken.Minor {
			t.Errorf("%s firewall: %+v", name, broken)
		}
		in(broken.Fix)
		wantWell("after "+broken.Fix, examine(network.Settings{}))
		in("nft delete table ip filter 2>/dev/null; nft delete table inet guard 2>/dev/null; true")
	}

	in("ip link add other type veth peer name further; ip addr add 10.209.0.1/24 dev other; ip link set other up")
	before = links()
	if f := examine(network.Settings{})["network subnet"]; f.Err == nil || !f.Minor || f.Fix == "" {
		t.Errorf("a route in the subnet: %+v", f)
	}
	wantWell("another subnet", examine(network.Settings{Subnet: "100.72.0.0/14"}))
	if f := examine(network.Settings{Subnet: "10.0.0.0/30"})["network settings"]; f.Err == nil || f.Fix == "" {
		t.Errorf("wrong settings: %+v", f)
	}
}
