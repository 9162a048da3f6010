package kiln

import (
	"slices"
	"strings"
)

// Size is a VM preset.
type Size struct {
	Name      string `json:"name"`
	VCPUs     int    `json:"vcpus"`
	MemoryMiB int    `json:"memory_mib"`
	// CPUWeight is the share under contention (cgroup v2 cpu.weight, 1 to 10000).
	CPUWeight int `json:"cpu_weight"`
	// CPUPercent bounds the CPU time of the VM, in percent of one core; 0 means that only
	// the number of its vCPUs does.
	CPUPercent int `json:"cpu_percent,omitempty"`
}

// DefaultSizeName is the size of a sandbox when neither request nor template names one.
const DefaultSizeName = "shared-cpu-1x"

// Sizes returns the presets, smallest first.
func Sizes() []Size {
	return []Size{
		{Name: "shared-cpu-1x", VCPUs: 1, MemoryMiB: 512, CPUWeight: 50},
		{Name: "shared-cpu-2x", VCPUs: 2, MemoryMiB: 1024, CPUWeight: 100},
		{Name: "shared-cpu-4x", VCPUs: 4, MemoryMiB: 2048, CPUWeight: 200},
		{Name: "performance-1x", VCPUs: 1, MemoryMiB: 2048, CPUWeight: 400},
		{Name: "performance-2x", VCPUs: 2, MemoryMiB: 4096, CPUWeight: 800},
		{Name: "performance-4x", VCPUs: 4, MemoryMiB: 8192, CPUWeight: 1600},
		{Name: "performance-8x", VCPUs: 8, MemoryMiB: 16384, CPUWeight: 3200},
	}
}

// SizeByName returns the preset of that name, or an error that lists all of them.
func SizeByName(name string) (Size, error) {
	var names []string
	for _, s := range Sizes() {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Size{}, Errorf(CodeInvalid, "unknown size %q", name).WithHint("sizes are %s", strings.Join(names, ", "))
}

// Holds reports whether s is min or a preset that [Sizes] lists after it. The order of
// the presets decides, not every single resource: a template may ask for at least
// shared-cpu-4x and run by default on performance-2x, which has fewer but stronger CPUs.
func (s Size) Holds(min Size) bool {
	rank := func(name string) int {
		return slices.IndexFunc(Sizes(), func(p Size) bool { return p.Name == name })
	}
	return rank(s.Name) >= rank(min.Name)
}

// SizeTable says what the presets are on one server: those of [Sizes], in the same order,
// with numbers that its administrator chose. nil means [Sizes] as they are. Names and order
// are the same everywhere, so that a template means the same on every server.
type SizeTable []Size

// Bounds of what a size may be.
const (
	MaxVCPUs     = 64
	MinMemoryMiB = 128
	MaxMemoryMiB = 1 << 20
	MaxCPUWeight = 10_000
)

// All returns the presets, smallest first.
func (t SizeTable) All() []Size {
	if t == nil {
		return Sizes()
	}
	return slices.Clone(t)
}

// ByName returns the preset of that name, or the error of [SizeByName].
func (t SizeTable) ByName(name string) (Size, error) {
	size, err := SizeByName(name)
	if err != nil {
		return Size{}, err
	}
	for _, s := range t {
		if s.Name == name {
			return s, nil
		}
	}
	return size, nil
}
