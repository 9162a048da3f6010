package network

import (
	"strings"
	"testing"

	"github.com/google/nftables"
)

// The commands for firewalls that the tests' host does not have.
func TestLettingThrough(t *testing.T) {
	chain := func(family nftables.TableFamily, table, name string, hook *nftables.ChainHook) *nftables.Chain {
		return &nftables.Chain{Table: &nftables.Table{Family: family, Name: table}, Name: name, Hooknum: hook, Type: nftables.ChainTypeFilter}
	}
	forward := chain(nftables.TableFamilyIPv4, "filter", "FORWARD", nftables.ChainHookForward)
	docker := chain(nftables.TableFamilyIPv4, "filter", "DOCKER-USER", nil)
	firewalld := chain(nftables.TableFamilyINet, "firewalld", "filter_FORWARD", nftables.ChainHookForward)
	own := chain(nftables.TableFamilyIPv4, "kiln-0", "forward", nftables.ChainHookForward)
	for _, c := range []struct {
		chains   []*nftables.Chain
		iptables bool
		want     string
	}{
		{[]*nftables.Chain{own, forward, docker}, true, "iptables -I DOCKER-USER -i kiln+ -j ACCEPT; iptables -I DOCKER-USER -o kiln+ -j ACCEPT"},
		{[]*nftables.Chain{own, forward, docker}, false, `nft insert rule ip filter DOCKER-USER iifname '"kiln*"' accept`},
		{[]*nftables.Chain{firewalld}, true, "firewall-cmd --permanent --zone=trusted --add-source=10.208.0.0/12; firewall-cmd --reload"},
		{[]*nftables.Chain{own, forward}, true, `nft insert rule ip filter FORWARD iifname '"kiln*"' accept`},
		{[]*nftables.Chain{own}, true, "iptables -I FORWARD -i kiln+ -j ACCEPT"}, // the older kind is not seen
		{[]*nftables.Chain{own}, false, "have the firewall"},
	} {
		if got := letThrough(c.chains, DefaultSubnet, c.iptables, "have the firewall"); !strings.HasPrefix(got, c.want) {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
