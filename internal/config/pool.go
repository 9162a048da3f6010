package config

import (
	"maps"
	"slices"
	"strings"

	"github.com/kilnvm/kiln"
)

// Pool configures the warm slots: paused clones that wait to be claimed.
type Pool struct {
	// MaxDemand is how many slots of one version and size recent requests may call for; 0
	// keeps only those that are set.
	MaxDemand int `toml:"max_demand"`
	// MaxMemoryMB bounds the memory of all slots in MiB; 0 means a quarter of what the host
	// may promise.
	MaxMemoryMB int `toml:"max_memory_mb"`
	// SpawnAhead is how many VMMs are started ahead of each version and size that was asked
	// for lately or has slots.
	SpawnAhead int `toml:"spawn_ahead"`
	// Targets are slots that are always kept, by template, with "/size" behind it for
	// another size than the template's default.
	Targets map[string]int `toml:"targets"`
}

func (c *Config) checkPool() error {
	if c.Pool.MaxDemand < 0 {
		return invalid("pool.max_demand", "must not be negative")
	}
	if c.Pool.MaxMemoryMB < 0 {
		return invalid("pool.max_memory_mb", "must not be negative")
	}
	if c.Pool.SpawnAhead < 0 {
		return invalid("pool.spawn_ahead", "must not be negative")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Pool.Targets)) {
		key := "pool.targets." + name
		if c.Pool.Targets[name] < 0 {
			return invalid(key, "must not be negative")
		}
		template, size, sized := strings.Cut(name, "/")
		if ref, err := kiln.ParseTemplateRef(template); err != nil || ref.Pin() != "" {
			return invalid(key, "does not name a template: slots are of its promoted version")
		}
		if sized {
			if _, err := kiln.SizeByName(size); err != nil {
				return kiln.Errorf(kiln.CodeInvalid, "configuration: %s: %w", key, err)
			}
		}
	}
	return nil
}
