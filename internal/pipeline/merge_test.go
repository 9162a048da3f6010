package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
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
	const newFile = "description = \"new\"\nauthor = \"new\"\n[limits]\nbandwidth_mbps = 10\n"
	res, err := keep(NewTemplate{
		Name: first.Template.ID, Context: archive(t, files{"x": "1", "kiln-template.toml": newFile}),
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
	// What failed in between is forgotten when its forerunner is asked for again.
	r.hook = func(context.Context, kiln.Stage) error {
		return &kiln.BuildError{Stage: kiln.StageImage, Message: "RUN failed"}
	}
	failed, err := keep(NewTemplate{Name: "a", Context: archive(t, files{"x": "2", "kiln-template.toml": newFile}), Options: kiln.BuildOptions{Target: "failed"}})
	if err != nil {
		t.Fatal(err)
	}
	r.wait(t, failed)
	r.hook = nil
	again, err := r.Create(t.Context(), org, NewTemplate{Name: "a", Context: archive(t, files{"x": "1", "kiln-template.toml": newFile}), Options: v.Options, Metadata: v.Options.Origin.Metadata, Replace: true})
	if err != nil || !again.Unchanged {
		t.Fatalf("%+v, %v", again, err)
	}
	res, err = keep(NewTemplate{Name: "a", Context: archive(t, files{"x": "3", "kiln-template.toml": newFile})})
	if err != nil {
		t.Fatal(err)
	}
	if v := r.ready(t, res); v.Options.Target != "run" {
		t.Errorf("options %+v", v.Options)
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

// Texts are bounded, and refused in the same words wherever they are written down.
func TestBadTextsAtEveryDoor(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	long := func(n int) string { return strings.Repeat("x", n) }
	many := map[string]string{}
	for i := range 257 {
		many[fmt.Sprintf("N%d", i)] = ""
	}
	for name, c := range map[string]struct {
		metadata map[string]any
		key      string
		want     string // "" if it is good
	}{
		"description":            {map[string]any{"description": long(2049)}, "description", "has 2049 bytes; 2048 is the limit"},
		"longest description":    {map[string]any{"description": long(2047) + "\n"}, "", ""},
		"NUL in a description":   {map[string]any{"description": "a\x00"}, "description", "contains a NUL character"},
		"ESC in a description":   {map[string]any{"description": "a\x1b[31m"}, "description", "control character U+001B"},
		"author":                 {map[string]any{"author": long(257)}, "author", "256 is the limit"},
		"two lines of an author": {map[string]any{"author": "a\nb"}, "author", "control character U+000A"},
		"icon":                   {map[string]any{"icon": long(257)}, "icon", "256 is the limit"},
		"NUL in an icon":         {map[string]any{"icon": "\x00"}, "icon", "contains a NUL character"},
		"tags":                   {map[string]any{"tags": slices.Repeat([]string{"a"}, 33)}, "tags", "has 33 entries; 32 is the limit"},
		"empty tag":              {map[string]any{"tags": []string{"a", ""}}, "tags", "holds an empty one"},
		"tag twice":              {map[string]any{"tags": []string{"a", "a"}}, "tags", `"a" is given twice`},
		"long tag":               {map[string]any{"tags": []string{long(65)}}, "tags", "64 is the limit"},
		"NUL in a tag":           {map[string]any{"tags": []string{"a\x00"}}, "tags", "contains a NUL character"},
		"start command":          {map[string]any{"start_cmd": long(32<<10 + 1)}, "start_cmd", "32768 is the limit"},
		"ready command":          {map[string]any{"ready_cmd": long(32<<10 + 1)}, "ready_cmd", "32768 is the limit"},
		"post-restore command":   {map[string]any{"post_restore": "\x00"}, "post_restore", "contains a NUL character"},
		"smoke command":          {map[string]any{"smoke": "a\x00b"}, "smoke", "contains a NUL character"},
		"script":                 {map[string]any{"smoke": "a\n\tb \x1b"}, "", ""},
		"many variables":         {map[string]any{"env": many}, "env", "has 257 entries; 256 is the limit"},
		"large variable":         {map[string]any{"env": map[string]string{"A": long(128 << 10)}}, "env", "131070 is the limit"},
		"large environment":      {map[string]any{"env": map[string]string{"A": long(64 << 10), "B": long(64 << 10)}}, "env", "131070 is the limit"},
		"largest variable":       {map[string]any{"env": map[string]string{"A": long(128<<10 - 3)}}, "", ""},
		"NUL in a variable":      {map[string]any{"env": map[string]string{"A": "\x00"}}, "env", `"A" holds a NUL byte`},
		"target":                 {map[string]any{"build": map[string]any{"target": "a\nb"}}, "build.target", "control character"},
		"bases":                  {map[string]any{"build": map[string]any{"base": slices.Repeat([]string{"a"}, 17)}}, "build.base", "16 is the limit"},
		"argument":               {map[string]any{"build": map[string]any{"args": map[string]string{"A": "\x00"}}}, "build.args", `"A" holds a NUL byte`},
	} {
		t.Run(name, func(t *testing.T) {
			var over kiln.Metadata
			text, err := json.Marshal(c.metadata)
			if err == nil {
				err = json.Unmarshal(text, &over)
			}
			if err != nil {
				t.Fatal(err)
			}
			for door, req := range map[string]NewTemplate{
				"request": {Name: "a", Context: archive(t, nil), Metadata: over, Replace: true},
				"file":    {Name: "a", Context: archive(t, files{"kiln-template.toml": tomlOf("", c.metadata)}), Replace: true},
			} {
				_, err := r.Create(t.Context(), org, req)
				if c.want == "" {
					if err != nil {
						t.Errorf("%s: %v", door, err)
					}
					continue
				}
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.key) || len(err.Error()) > 300 {
					t.Errorf("%s: %.400v, want %s: %s", door, err, c.key, c.want)
				}
				var build *kiln.BuildError
				if door == "file" && (!errors.As(err, &build) || build.Line == 0) {
					t.Errorf("the line is not named: %v", err)
				}
			}
		})
	}
	if _, err := r.Create(t.Context(), org, NewTemplate{Name: "a", Context: archive(t, nil), Options: kiln.BuildOptions{Args: many}}); kiln.CodeOf(err) != kiln.CodeInvalid {
		t.Errorf("257 build arguments: %v", err)
	}
}

// tomlOf writes a table: JSON's strings and lists are TOML's, too.
func tomlOf(header string, table map[string]any) string {
	var text, tables strings.Builder
	for _, key := range slices.Sorted(maps.Keys(table)) {
		switch v := table[key].(type) {
		case map[string]any:
			tables.WriteString("[" + header + key + "]\n" + tomlOf(header+key+".", v))
		case map[string]string:
			all := map[string]any{}
			for k, s := range v {
				all[k] = s
			}
			tables.WriteString("[" + header + key + "]\n" + tomlOf(header+key+".", all))
		default:
			value, _ := json.Marshal(v)
			fmt.Fprintf(&text, "%s = %s\n", key, value)
		}
	}
	return text.String() + tables.String()
}

// A field that is new has to be merged, too.
func TestEveryFieldIsMerged(t *testing.T) {
	var over kiln.Metadata
	fill(reflect.ValueOf(&over).Elem(), "over", 2)
	if got := overMetadata(kiln.Metadata{}, over); !reflect.DeepEqual(got, over) {
		t.Errorf("over nothing:\ngot  %+v\nwant %+v", got, over)
	}
	var file kiln.Metadata
	fill(reflect.ValueOf(&file).Elem(), "file", 1)
	if got := overMetadata(file, kiln.Metadata{}); !reflect.DeepEqual(got, file) {
		t.Errorf("nothing over the file:\ngot  %+v\nwant %+v", got, file)
	}
	got := overMetadata(file, over)
	want := over
	want.Env = map[string]string{"file": "file", "over": "over"}
	want.Build.Args = want.Env
	got.Egress, want.Egress = kiln.EgressPolicy{}, kiln.EgressPolicy{} // has a rule and a test of its own
	if !reflect.DeepEqual(got, want) {
		t.Errorf("over the file:\ngot  %+v\nwant %+v", got, want)
	}
}

// fill sets every field of a struct, whatever it means.
func fill(v reflect.Value, text string, number int) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), text, number)
		}
	case reflect.String:
		v.SetString(text)
	case reflect.Int:
		v.SetInt(int64(number))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), text, number)
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{text: text}))
	default:
		panic(v.Type())
	}
}

// The [build] table of a request counts for the build, over that of the file.
func TestBuildTableOfARequest(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	res, err := r.Create(t.Context(), org, NewTemplate{
		Context:  archive(t, files{"kiln-template.toml": "name = \"file\"\n[build]\ntarget = \"file\"\nargs = { A = \"file\", B = \"file\", C = \"file\" }\n"}),
		Options:  kiln.BuildOptions{Args: map[string]string{"C": "option"}},
		Metadata: kiln.Metadata{Name: "request", Build: kiln.MetadataBuild{Target: "request", Args: map[string]string{"B": "request", "C": "request"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	o := r.ready(t, res).Options
	if res.Template.Name != "request" || o.Target != "request" || !maps.Equal(o.Args, map[string]string{"A": "file", "B": "request", "C": "option"}) {
		t.Errorf("%s: target %s, args %v", res.Template.Name, o.Target, o.Args)
	}
}
