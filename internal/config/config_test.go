package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
)

// The annotated sample must parse, and must show the defaults it claims to show.
func TestSampleFileShowsDefaults(t *testing.T) {
	got, err := Load("../../docs/kiln.toml")
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Validate(); err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Build.Mirrors = map[string][]string{}
	want.Build.Keyrings = map[string]string{}
	want.Build.Layouts, want.Build.GitHosts, want.Build.SnapshotSizes = []string{}, []string{}, []string{}
	want.Sizes = map[string]Size{}
	want.Pool.Targets = map[string]int{}
	want.Sandbox.OrgLimits = map[string]int{}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("docs/kiln.toml differs from the defaults:\n got %+v\nwant %+v", got, want)
	}
}

// Every key of the configuration must be in the sample.
func TestSampleFileNamesEveryKey(t *testing.T) {
	data, err := os.ReadFile("../../docs/kiln.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys(reflect.TypeFor[Config]()) {
		if !strings.Contains(string(data), "\n"+key+" = ") && !strings.Contains(string(data), key+"]") {
			t.Errorf("docs/kiln.toml does not mention %q", key)
		}
	}
}

func keys(t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Type.Kind() == reflect.Struct {
			out = append(out, keys(f.Type)...)
			continue
		}
		out = append(out, f.Tag.Get("toml"))
	}
	return out
}

func TestLoad(t *testing.T) {
	write := func(t *testing.T, text string) string {
		path := filepath.Join(t.TempDir(), "kiln.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Run("over defaults", func(t *testing.T) {
		c, err := Load(write(t, "listen = \"0.0.0.0:80\"\n[build]\ntimeout = \"90s\"\n"))
		if err != nil {
			t.Fatal(err)
		}
		if c.Listen != "0.0.0.0:80" || time.Duration(c.Build.Timeout) != 90*time.Second || c.DataDir != DefaultDataDir {
			t.Errorf("got %+v", c)
		}
	})
	for name, tc := range map[string]struct{ text, want string }{
		"type by line": {"\n[gc]\nkeep = \"x\"\n", "line 3: gc.keep must be of type integer, not string"},
		"large number": {"[gc]\nkeep = 99999999999999999999\n", "line 2: gc.keep 99999999999999999999 is too large a number"},
		"no duration":  {"[api]\nrequest_timeout = \"9999999h\"\n", "line 2: api.request_timeout is not a duration such as"},
		"unknown key":  {"listn = \"x\"\n", `unknown key "listn"`},
		"not TOML":     {"listen = \n", "kiln.toml"},
		"wrong type":   {"listen = 7\n", "kiln.toml"},
		"bad duration": {"[build]\ntimeout = \"soon\"\n", "duration"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(write(t, tc.text))
			if kiln.CodeOf(err) != kiln.CodeInvalid || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an invalid error with %q", err, tc.want)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		if _, err := Load("/nonexistent/kiln.toml"); kiln.CodeOf(err) != kiln.CodeInvalid {
			t.Errorf("got %v", err)
		}
	})
}

func TestValidateNamesTheKey(t *testing.T) {
	for key, change := range map[string]func(*Config){
		"build.images_dir": func(c *Config) { c.Build.ImagesDir = "images" },
		"vm.bundle_dir":    func(c *Config) { c.VM.BundleDir = "bundle" },
		"data_dir":         func(c *Config) { c.DataDir = "relative" },
		"listen":           func(c *Config) { c.Listen = "7070" },
		"log.level":        func(c *Config) { c.Log.Level = "loud" },
		`protocol "json" is not one of http/protobuf, grpc`: func(c *Config) { c.Telemetry.Protocol = "json" },
		"log.format":           func(c *Config) { c.Log.Format = "xml" },
		"build.timeout":        func(c *Config) { c.Build.Timeout = 0 },
		"build.ready_timeout":  func(c *Config) { c.Build.ReadyTimeout = 0 },
		"build.parallel":       func(c *Config) { c.Build.Parallel = 0 },
		"build.snapshot_sizes": func(c *Config) { c.Build.SnapshotSizes = []string{"huge"} },
		"build.max_context_mb": func(c *Config) { c.Build.MaxContextMB = 0 },
		"vm.accel":             func(c *Config) { c.VM.Accel = "xen" },
		"vm.channel":           func(c *Config) { c.VM.Channel = "pigeon" },
		"vm.qemu":              func(c *Config) { c.VM.QEMU = "" },
		"build.cache_mb":       func(c *Config) { c.Build.CacheMB = -1 },
		"sandbox.max_running":  func(c *Config) { c.Sandbox.MaxRunning = -1 },
		"sandbox.default_ttl":  func(c *Config) { c.Sandbox.DefaultTTL = Duration(48 * time.Hour) },
		"api.request_timeout":  func(c *Config) { c.API.RequestTimeout = 0 },
		"api.shutdown_timeout": func(c *Config) { c.API.ShutdownTimeout = -1 },
	} {
		c := Default()
		change(&c)
		err := c.Validate()
		if kiln.CodeOf(err) != kiln.CodeInvalid || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: got %v", key, err)
		}
	}
	c := Default()
	c.DataDir = "/" + strings.Repeat("x", 60)
	if err := c.Validate(); err == nil {
		t.Error("a data directory too long for sockets was accepted")
	}
}
