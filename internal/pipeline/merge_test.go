package pipeline

import (
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

// Limits of a request complete those of the file, and are checked together.
func TestLimitsOverTheFile(t *testing.T) {
	file := kiln.Metadata{Limits: kiln.DiskLimits{BandwidthMBps: 200}}
	for _, c := range []struct {
		over, want kiln.DiskLimits
		code       kiln.ErrorCode
	}{
		{over: kiln.DiskLimits{OpsPerSec: 5000}, want: kiln.DiskLimits{BandwidthMBps: 200, OpsPerSec: 5000}},
		{over: kiln.DiskLimits{BurstMBps: 400}, want: kiln.DiskLimits{BandwidthMBps: 200, BurstMBps: 400}},
		{over: kiln.DiskLimits{BurstMBps: 100}, code: kiln.CodeInvalid},
		{over: kiln.DiskLimits{BurstOps: 100}, code: kiln.CodeInvalid},
	} {
		m, err := mergeMetadata(file, kiln.Metadata{Limits: c.over})
		if kiln.CodeOf(err) != c.code || m.Limits != c.want {
			t.Errorf("%+v: %+v, %v", c.over, m.Limits, err)
		}
	}
}

// A new build context takes the place of the old one under the flags of the old request.
func TestKeep(t *testing.T) {
	r := newRig(t, dataDir(t), func(o *Options, s *stages) {
		o.OpenRoot = func(*os.File) (kiln.EntrySource, error) { return &root{s, "captured"}, nil }
	})
	first, err := r.Create(t.Context(), org, NewTemplate{
		Name: "a", Context: archive(t, files{"kiln-template.toml": "description = \"file\"\nauthor = \"file\"\n[limits]\nbandwidth_mbps = 10\n"}),
		Options:  kiln.BuildOptions{Args: map[string]string{"A": "1", "B": "1"}, Target: "run"},
		Metadata: kiln.Metadata{Author: "flag", Env: map[string]string{"E": "1"}, Limits: kiln.DiskLimits{BurstMBps: 20}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.ready(t, first)
	old, err := r.Rebuild(t.Context(), org, Rebuild{Template: "a"})
	if err != nil || !old.Unchanged || len(old.Warnings) != 1 || !strings.Contains(old.Warnings[0], "kiln templates rebuild a DIR") {
		t.Errorf("rebuild of the old context: %+v, %v", old, err)
	}
	keep := func(req NewTemplate) (*Result, error) {
		req.Keep = true
		return r.Create(t.Context(), org, req)
	}
	res, err := keep(NewTemplate{
		Name: first.Template.ID, Context: archive(t, files{"x": "1", "kiln-template.toml": "description = \"new\"\nauthor = \"new\"\n[limits]\nbandwidth_mbps = 10\n"}),
		Options: kiln.BuildOptions{Args: map[string]string{"B": "2"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	v := r.ready(t, res)
	if v.Number != 2 || v.Options.Target != "run" || !maps.Equal(v.Options.Args, map[string]string{"A": "1", "B": "2"}) ||
		v.Metadata.Description != "new" || v.Metadata.Author != "flag" || v.Metadata.Env["E"] != "1" || v.Metadata.Limits.BurstMBps != 20 {
		t.Errorf("options %+v, metadata %+v", v.Options, v.Metadata)
	}
	_, err = r.Create(t.Context(), org, NewTemplate{
		Name: "c", Context: strings.NewReader("root"), Capture: &kiln.CaptureSource{Sandbox: "iabc"},
	})
	if err != nil {
		t.Fatal(err)
	}
	recipe, err := files{}.tar()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.RegisterBuiltIns(t.Context(), []BuiltIn{{Name: "built-in", Context: recipe}}, nil); err != nil {
		t.Fatal(err)
	}
	for name, code := range map[string]kiln.ErrorCode{
		"none": kiln.CodeNotFound, "": kiln.CodeInvalid, "a@1": kiln.CodeInvalid, "c": kiln.CodeConflict, "built-in": kiln.CodeForbidden,
	} {
		if _, err := keep(NewTemplate{Name: name, Context: archive(t, nil)}); kiln.CodeOf(err) != code {
			t.Errorf("%q: %v, want code %s", name, err, code)
		}
	}
}
