package config

import (
	"maps"
	"slices"

	"github.com/kilnvm/kiln"
)

// Size is what the file says about one VM size. Zero fields leave it as it is.
type Size struct {
	VCPUs      int `toml:"vcpus"`
	MemoryMB   int `toml:"memory_mb"`
	CPUWeight  int `toml:"cpu_weight"`
	CPUPercent int `toml:"cpu_percent"`
}

// SizeTable returns the VM sizes of this server. The configuration must be valid.
func (c *Config) SizeTable() kiln.SizeTable {
	table := kiln.Sizes()
	for i := range table {
		over := c.Sizes[table[i].Name]
		replace(&table[i].VCPUs, over.VCPUs)
		replace(&table[i].MemoryMiB, over.MemoryMB)
		replace(&table[i].CPUWeight, over.CPUWeight)
		replace(&table[i].CPUPercent, over.CPUPercent)
	}
	return table
}

func replace(n *int, over int) {
	if over != 0 {
		*n = over
	}
}

func (c *Config) checkSizes() error {
	for _, name := range slices.Sorted(maps.Keys(c.Sizes)) {
		if _, err := kiln.SizeByName(name); err != nil {
			return kiln.Errorf(kiln.CodeInvalid, "configuration: sizes: %w", err)
		}
	}
	for _, s := range c.SizeTable() {
		for _, f := range []struct {
			key             string
			value, min, max int
		}{
			{"vcpus", s.VCPUs, 1, kiln.MaxVCPUs},
			{"memory_mb", s.MemoryMiB, kiln.MinMemoryMiB, kiln.MaxMemoryMiB},
			{"cpu_weight", s.CPUWeight, 1, kiln.MaxCPUWeight},
			{"cpu_percent", s.CPUPercent, 0, kiln.MaxVCPUs * 100},
		} {
			if f.value < f.min || f.value > f.max {
				return invalid("sizes."+s.Name+"."+f.key, "%d is not between %d and %d", f.value, f.min, f.max)
			}
		}
	}
	return nil
}

func (c *Config) checkAdmission() error {
	s := c.Sandbox
	if s.MaxPerOrg < 0 {
		return invalid("sandbox.max_per_org", "must not be negative")
	}
	for _, org := range slices.Sorted(maps.Keys(s.OrgLimits)) {
		if s.OrgLimits[org] < 0 {
			return invalid("sandbox.org_limits."+org, "must not be negative")
		}
	}
	if s.Overcommit < 0.1 || s.Overcommit > 100 {
		return invalid("sandbox.overcommit", "%g is not between 0.1 and 100", s.Overcommit)
	}
	if s.ReserveMB < 1 {
		return invalid("sandbox.reserve_mb", "must be at least 1")
	}
	return oneOf("sandbox.cgroups", s.Cgroups, "require", "auto", "off")
}
