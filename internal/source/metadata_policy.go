package source

import (
	"strings"

	"github.com/kilnvm/kiln"
)

// egressTable reads [egress]. Each entry is checked where it stands, and how they go
// together at the table.
func (p *metadataParser) egressTable(v value) error {
	e := &p.out.Egress
	const ranges = "a list of IPv4 ranges"
	err := p.members(v, map[string]func(value) error{
		"mode": func(m value) error {
			var mode string
			if err := m.text(&mode); err != nil {
				return err
			}
			e.Mode = kiln.EgressMode(mode)
			return m.check(kiln.EgressPolicy{Mode: e.Mode}.Validate())
		},
		"allow_cidrs": func(m value) error {
			if err := m.decode(&e.AllowCIDRs, ranges); err != nil {
				return err
			}
			return m.check(kiln.EgressPolicy{AllowCIDRs: e.AllowCIDRs}.Validate())
		},
		"deny_cidrs": func(m value) error {
			if err := m.decode(&e.DenyCIDRs, ranges); err != nil {
				return err
			}
			return m.check(kiln.EgressPolicy{DenyCIDRs: e.DenyCIDRs}.Validate())
		},
		"allow_ports": func(m value) error {
			if err := m.decode(&e.AllowPorts, "a list of TCP ports"); err != nil {
				return err
			}
			return m.check(kiln.EgressPolicy{AllowCIDRs: []string{"0.0.0.0/0"}, AllowPorts: e.AllowPorts}.Validate())
		},
		"allow_domains": func(m value) error {
			if err := m.decode(&e.AllowDomains, "a list of host names"); err != nil {
				return err
			}
			return m.check(kiln.EgressPolicy{AllowDomains: e.AllowDomains}.Validate())
		},
	})
	if err != nil {
		return err
	}
	return v.check(p.out.Egress.Validate())
}

// limitsTable reads [limits], the bounds of a sandbox's disk traffic.
func (p *metadataParser) limitsTable(v value) error {
	l := &p.out.Limits
	number := func(dst *int) func(value) error {
		return func(m value) error {
			if err := m.decode(dst, "a whole number"); err != nil {
				return err
			}
			return m.check(kiln.CheckDiskLimit(*dst))
		}
	}
	err := p.members(v, map[string]func(value) error{
		"bandwidth_mbps": number(&l.BandwidthMBps), "ops_per_sec": number(&l.OpsPerSec),
		"burst_mbps": number(&l.BurstMBps), "burst_ops": number(&l.BurstOps),
	})
	if err != nil {
		return err
	}
	return v.check(p.out.Limits.Validate())
}

// check says where in the file the value stands that err is about.
func (v value) check(err error) error {
	if err == nil {
		return nil
	}
	return v.errorf("%s", strings.TrimPrefix(err.Error(), "egress "))
}
