package config

import (
	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/network"
)

// Network configures what sandboxes can reach; see docs/network.md.
type Network struct {
	Enabled   bool     `toml:"enabled"`
	Subnet    string   `toml:"subnet"`
	Reserved  []string `toml:"reserved"`
	Open      []string `toml:"open"`
	Resolvers []string `toml:"resolvers"`
	Prepared  int      `toml:"prepared"`
	Egress    Egress   `toml:"egress"`
}

// Egress is a kiln.EgressPolicy in the file.
type Egress struct {
	Mode         kiln.EgressMode `toml:"mode"`
	AllowCIDRs   []string        `toml:"allow_cidrs"`
	AllowPorts   []int           `toml:"allow_ports"`
	AllowDomains []string        `toml:"allow_domains"`
	DenyCIDRs    []string        `toml:"deny_cidrs"`
}

func defaultNetwork() Network {
	return Network{
		Enabled: true, Subnet: network.DefaultSubnet, Reserved: network.DefaultReserved(), Prepared: 8,
		Open: []string{}, Resolvers: []string{},
		Egress: Egress{
			AllowCIDRs: []string{}, AllowPorts: []int{}, AllowDomains: []string{}, DenyCIDRs: []string{},
		},
	}
}

// Settings are the network's own.
func (n Network) Settings() network.Settings {
	e := n.Egress
	return network.Settings{
		Subnet: n.Subnet, Reserved: n.Reserved, Open: n.Open, Resolvers: n.Resolvers, Prepared: n.Prepared,
		Default: kiln.EgressPolicy{
			Mode: e.Mode, AllowCIDRs: e.AllowCIDRs, AllowPorts: e.AllowPorts, AllowDomains: e.AllowDomains, DenyCIDRs: e.DenyCIDRs,
		},
	}
}

func (c *Config) checkNetwork() error {
	if !c.Network.Enabled {
		return nil
	}
	if err := c.Network.Settings().Validate(); err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "configuration: %w", err)
	}
	return nil
}
