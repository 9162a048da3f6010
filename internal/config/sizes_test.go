package config

import (
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

func TestSizesOfTheFile(t *testing.T) {
	c := Default()
	c.Sizes = map[string]Size{"shared-cpu-2x": {MemoryMB: 768, CPUPercent: 150}}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	table := c.SizeTable()
	got, err := table.ByName("shared-cpu-2x")
	if want := (kiln.Size{Name: "shared-cpu-2x", VCPUs: 2, MemoryMiB: 768, CPUWeight: 100, CPUPercent: 150}); err != nil || got != want {
		t.Errorf("got %+v, error %v; want %+v", got, err, want)
	}
	if first := kiln.Sizes()[0]; table[0] != first {
		t.Errorf("an unnamed size became %+v, want %+v", table[0], first)
	}
	if len(table) != len(kiln.Sizes()) {
		t.Errorf("%d sizes, want %d", len(table), len(kiln.Sizes()))
	}
}

func TestSizesOutOfBounds(t *testing.T) {
	for _, tt := range []struct {
		name string
		size Size
		want string
	}{
		{"huge-9x", Size{VCPUs: 1}, "huge-9x"},
		{"shared-cpu-1x", Size{VCPUs: -1}, "sizes.shared-cpu-1x.vcpus"},
		{"shared-cpu-1x", Size{VCPUs: 65}, "sizes.shared-cpu-1x.vcpus"},
		{"performance-1x", Size{MemoryMB: 64}, "sizes.performance-1x.memory_mb"},
		{"performance-1x", Size{CPUWeight: 10001}, "sizes.performance-1x.cpu_weight"},
		{"performance-1x", Size{CPUPercent: -5}, "sizes.performance-1x.cpu_percent"},
	} {
		c := Default()
		c.Sizes = map[string]Size{tt.name: tt.size}
		err := c.Validate()
		if kiln.CodeOf(err) != kiln.CodeInvalid || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %+v: error %v does not name %s", tt.name, tt.size, err, tt.want)
		}
	}
}
