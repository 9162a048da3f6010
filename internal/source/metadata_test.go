package source

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

func TestParseMetadata(t *testing.T) {
	const documented = `name = "my-ml"
description = "Machine learning environment"
author = "your-org"
icon = "brain"
tags = ["python", "ml", "data-science"]
default_size = "performance-2x"
min_size = "shared-cpu-4x"
start_cmd = "jupyter kernel"
ready_cmd = "true"
post_restore = "reseed"
init = "systemd"
disk_mb = 2048

[env]
PYTHONUNBUFFERED = "1"
OMP_NUM_THREADS = "2"

[egress]
mode = "deny_all"
allow_cidrs = ["0.0.0.0/0"]
deny_cidrs = ["10.0.0.0/8"]
allow_ports = [443]
allow_domains = ["*.example.com"]

[limits]
bandwidth_mbps = 100
burst_mbps = 200
ops_per_sec = 1000

[build]
base = ["python:3.12-slim", "debian:bookworm-slim"]
target = "final"
args = { A = "1" }
`
	want := kiln.Metadata{
		Name: "my-ml", Description: "Machine learning environment", Author: "your-org", Icon: "brain",
		Tags: []string{"python", "ml", "data-science"}, DefaultSize: "performance-2x", MinSize: "shared-cpu-4x",
		Env:      map[string]string{"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2"},
		StartCmd: "jupyter kernel", ReadyCmd: "true", PostRestore: "reseed", Init: kiln.InitSystemd, DiskMB: 2048,
		Egress: kiln.EgressPolicy{
			Mode: kiln.EgressDenyAll, AllowCIDRs: []string{"0.0.0.0/0"}, DenyCIDRs: []string{"10.0.0.0/8"}, AllowPorts: []int{443},
			AllowDomains: []string{"*.example.com"},
		},
		Limits: kiln.DiskLimits{BandwidthMBps: 100, BurstMBps: 200, OpsPerSec: 1000},
		Build:  kiln.MetadataBuild{Base: []string{"python:3.12-slim", "debian:bookworm-slim"}, Target: "final", Args: map[string]string{"A": "1"}},
	}
	nested := "[template]\n" + strings.NewReplacer("[env]", "[template.env]", "[egress]", "[template.egress]", "[limits]", "[template.limits]", "[build]", "[template.build]").Replace(documented)
	mixed := strings.Replace(documented, "[env]", "[template]\nauthor = \"your-org\"\n[env]", 1)
	mixed = strings.Replace(mixed, "author = \"your-org\"\nicon", "icon", 1)
	for name, text := range map[string]string{"top level": documented, "under [template]": nested, "both": mixed} {
		t.Run(name, func(t *testing.T) {
			got, warnings, err := parseMetadata("kiln-template.toml", text)
			if err != nil {
				t.Fatal(err)
			}
			if len(warnings) != 0 {
				t.Errorf("warnings %q", warnings)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// A table need not have a line of its own.
func TestParseMetadataInnerTablesAlone(t *testing.T) {
	got, warnings, err := parseMetadata("kiln-template.toml", "[template.env]\nA = \"1\"\n[template.build.args]\nB = \"2\"\n[other.x]\nc = 1\n")
	want := kiln.Metadata{Env: map[string]string{"A": "1"}, Build: kiln.MetadataBuild{Args: map[string]string{"B": "2"}}}
	if err != nil || !reflect.DeepEqual(got, want) || len(warnings) != 1 {
		t.Errorf("got %+v, %q, %v, want %+v", got, warnings, err, want)
	}
}

func TestParseMetadataWarnsOfUnknownKeys(t *testing.T) {
	text := "name = \"x\"\ncolour = \"red\"\n[template]\nshape = 1\n[build]\ncache = true\n[other]\nx = 1\n"
	_, warnings, err := parseMetadata("zwrm-template.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`zwrm-template.toml:2: unknown key "colour" is ignored`,
		`zwrm-template.toml:4: unknown key "template.shape" is ignored`,
		`zwrm-template.toml:6: unknown key "build.cache" is ignored`,
		`zwrm-template.toml:7: unknown key "other" is ignored`,
	}
	if !reflect.DeepEqual(warnings, want) {
		t.Errorf("got  %q\nwant %q", warnings, want)
	}
}

func TestParseMetadataErrors(t *testing.T) {
	for _, tc := range []struct {
		text, message string
		line          int
	}{
		{"name = \"x\"\nname = \"y\"", "name", 2},
		{"\nname = 3", "name: want a string, found an integer", 2},
		{"name = \"Has Space\"", "name: template name", 1},
		{"\n\ntags = \"python\"", "tags: want a list of strings", 3},
		{"tags = [1]", "tags: want a list of strings", 1},
		{"icon = \"x\"\ndefault_size = \"huge\"", `default_size: unknown size "huge"`, 2},
		{"min_size = \"shared-cpu-9x\"", `min_size: unknown size`, 1},
		{"min_size = \"shared-cpu-4x\"\ndefault_size = \"shared-cpu-1x\"", `default_size: "shared-cpu-1x" is smaller`, 2},
		{"disk_mb = 0", "disk_mb: 0 is not between", 1},
		{"disk_mb = -5", "disk_mb: -5 is not between", 1},
		{"disk_mb = 1.5", "disk_mb: want a whole number", 1},
		{"disk_mb = 99999999", "disk_mb: 99999999 is not between", 1},
		{"env = 1", "env: want a table of strings", 1},
		{"[env]\nB = \"b\"\nA = 1", "env.A: want a string", 3},
		{"x = 1\n[env]\n\"A B\" = \"1\"", `"A B" is no name`, 3},
		{"name = \"a\"\n[template]\nname = \"b\"", "template.name: is given twice, also as name", 3},
		{"[build]\ntarget = 1", "build.target: want a string", 2},
		{"[build]\nargs = [1]", "build.args: want a table of strings", 2},
		{"[build.args]\nA = \"1\"\nB = 1.5", "build.args.B: want a string", 3},
		{"[build]\nbase = 1", "build.base: want a list of image names", 2},
		{"[build]\nbase = [\"a b\"]", `build.base: "a b" is no name of an image`, 2},
		{"init = \"runit\"", `init: "runit" is not "systemd"`, 1},
		{"[egress]\nmode = \"some\"", "egress.mode: mode \"some\" is neither", 2},
		{"[egress]\n\nallow_cidrs = [\"10.0.0.0/40\"]", "egress.allow_cidrs: allow-cidr:", 3},
		{"[egress]\ndeny_cidrs = \"10.0.0.0/8\"", "egress.deny_cidrs: want a list of IPv4 ranges", 2},
		{"[egress]\nallow_cidrs = [\"10.0.0.0/8\"]\nallow_ports = [70000]", "egress.allow_ports: allow-port 70000 is not between", 3},
		{"name = \"x\"\n[egress]\nallow_ports = [80]", "egress: allow-port 80 without allow-cidr", 2},
		{"[egress]\nmode = \"allow_all\"\nallow_cidrs = [\"10.0.0.0/8\"]", "egress: mode allow_all contradicts", 1},
		{"[egress]\nallow_domains = [\"*\"]", "egress.allow_domains:", 2},
		{"[limits]\nbandwidth_mbps = \"fast\"", "limits.bandwidth_mbps: want a whole number", 2},
		{"[limits]\n\nops_per_sec = -1", "limits.ops_per_sec: -1 is not between", 3},
		{"tags = [\"a\", 5]", "tags: want a list of strings, found a list with something else in it", 1},
		{"[limits]\nburst_ops = 5", "limits: disk limit burst_ops without", 1},
		{"build = 1", "build: want a table", 1},
		{"template = 1", "template: want a table", 1},
		{"start_cmd = [\"a\"]", "start_cmd: want a string", 1},
		{"name = ", "", 1},
		{"a = 1\n= 2", "", 2},
	} {
		_, _, err := parseMetadata("kiln-template.toml", tc.text)
		var b *kiln.BuildError
		if !errors.As(err, &b) {
			t.Errorf("%q: error %v, want a BuildError", tc.text, err)
			continue
		}
		if b.Line != tc.line || !strings.Contains(b.Message, tc.message) {
			t.Errorf("%q: got line %d %q, want line %d %q", tc.text, b.Line, b.Message, tc.line, tc.message)
		}
	}
}
