// Package config holds the settings of `kiln serve`: defaults, a TOML file over them,
// command-line flags over both. It reads no environment variables; cmd/kiln does.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/catalog"
)

// Defaults that the CLI needs too, to find a server without configuration.
const (
	DefaultDataDir = "/var/lib/kiln"
	DefaultListen  = "127.0.0.1:7070"
)

// Config is the whole configuration. The zero value is not usable; start from [Default].
type Config struct {
	DataDir string `toml:"data_dir"`
	Listen  string `toml:"listen"`
	// Domain is the parent of sandbox host names, "<port>-<id>.<domain>". Empty means
	// "localhost".
	Domain string `toml:"domain"`

	Log     Log     `toml:"log"`
	Catalog Catalog `toml:"catalog"`
	Store   Store   `toml:"store"`
	Build   Build   `toml:"build"`
	VM      VM      `toml:"vm"`
	Sandbox Sandbox `toml:"sandbox"`
	Network Network `toml:"network"`
	Pool    Pool    `toml:"pool"`
	API     API     `toml:"api"`
	GC      GC      `toml:"gc"`

	Metrics   Metrics   `toml:"metrics"`
	Telemetry Telemetry `toml:"telemetry"`

	// Sizes changes the numbers of VM sizes, by name.
	Sizes map[string]Size `toml:"sizes"`
}

// Log says what is logged, on standard error.
type Log struct {
	Level  string `toml:"level"`  // debug, info, warn or error
	Format string `toml:"format"` // text or json
}

// Store says where templates, builds and sandboxes are remembered.
type Store struct {
	// URL of a PostgreSQL database, with a password if it needs one. Empty means SQLite
	// in the data directory.
	URL string `toml:"url"`
}

// Catalog configures the built-in templates.
type Catalog struct {
	// Build names those that are built when the server starts. The others are built on
	// their first use.
	Build []string `toml:"build"`
}

// Build configures the source, image and rootfs stages.
type Build struct {
	// Address is an existing BuildKit daemon or Docker Engine, "unix:///path" or
	// "tcp://host:port". Empty means a BuildKit of our own.
	Address string `toml:"address"`
	// Mirrors maps a registry's host to the hosts that are asked first.
	Mirrors map[string][]string `toml:"mirrors"`
	// ImagesDir keeps base images: what was bootstrapped, and OCI layouts put there by
	// hand. Empty means <data_dir>/images.
	ImagesDir string `toml:"images_dir"`
	// Layouts are folders of more OCI image layouts, looked at before anything else.
	Layouts []string `toml:"layouts"`
	// Keyrings maps "debian" or "ubuntu" to a file with the keys of its package archive,
	// where that is not in the usual place.
	Keyrings map[string]string `toml:"keyrings"`
	// CABundle is a PEM file that the RUN steps of a build trust beside their own: a path,
	// "auto" (the host's, if its administrator added authorities) or empty for none.
	CABundle string `toml:"ca_bundle"`
	// CacheMB bounds the build cache in MiB; 0 means the builder's default.
	CacheMB int `toml:"cache_mb"`
	// Timeout bounds the instructions of the Dockerfile.
	Timeout Duration `toml:"timeout"`
	// SourceTimeout bounds fetching a git repository and reading a source.
	SourceTimeout Duration `toml:"source_timeout"`
	// RootfsTimeout bounds writing the root filesystem.
	RootfsTimeout Duration `toml:"rootfs_timeout"`
	// SnapshotTimeout bounds booting a template until its snapshot is saved.
	SnapshotTimeout Duration `toml:"snapshot_timeout"`
	// SnapshotSizes are sizes that are baked in the background when a version was promoted,
	// beside the template's default size, which is baked before.
	SnapshotSizes []string `toml:"snapshot_sizes"`
	// GitHosts are the hosts that git repositories may be fetched from; empty means any.
	GitHosts []string `toml:"git_hosts"`
	// ReadyTimeout is how long a template's ready command may keep failing.
	ReadyTimeout Duration `toml:"ready_timeout"`
	// Parallel is how many builds run at once.
	Parallel int `toml:"parallel"`
	// MaxContextMB bounds an uploaded build context, in MiB.
	MaxContextMB int `toml:"max_context_mb"`
}

// VM configures what sandboxes run on.
type VM struct {
	// QEMU is the program; a bare name is looked up in PATH.
	QEMU string `toml:"qemu"`
	// Accel is auto (KVM where a boot probe proves it, else software emulation), kvm or tcg.
	Accel string `toml:"accel"`
	// Channel to the guests is auto (vsock where the host has vhost-vsock, else serial), vsock
	// or serial.
	Channel string `toml:"channel"`
	// Kernel is a guest kernel with its drivers built in. Empty means the
	// distribution's cloud kernel package.
	Kernel string `toml:"kernel"`
	// KernelModules is the folder of the modules that Kernel needs; empty means none.
	KernelModules string `toml:"kernel_modules"`
	// BundleDir caches the kernel and the initramfs made from it; empty means
	// <data_dir>/bundle.
	BundleDir string `toml:"bundle_dir"`
	// Sandboxd is the guest daemon; empty means kiln-sandboxd beside the kiln program.
	Sandboxd string `toml:"sandboxd"`
}

// Sandbox bounds what runs.
type Sandbox struct {
	// MaxRunning bounds how many sandboxes live at once; 0 means no bound.
	MaxRunning int `toml:"max_running"`
	// MaxPerOrg bounds how many of them one organisation has; 0 means no bound.
	MaxPerOrg int `toml:"max_per_org"`
	// OrgLimits are other values of MaxPerOrg, by organisation.
	OrgLimits map[string]int `toml:"org_limits"`
	// Overcommit is how many times over the host's memory may be promised.
	Overcommit float64 `toml:"overcommit"`
	// ReserveMB of the host's memory, in MiB, are never given to sandboxes.
	ReserveMB int `toml:"reserve_mb"`
	// Cgroups says whether control groups bound the VMs: require, auto (where the host can)
	// or off.
	Cgroups string `toml:"cgroups"`
	// DefaultTTL is the life of a sandbox whose request names none.
	DefaultTTL Duration `toml:"default_ttl"`
}

// API configures the HTTP server.
type API struct {
	// RequestTimeout bounds a request that neither streams nor runs a command.
	RequestTimeout Duration `toml:"request_timeout"`
	// ShutdownTimeout bounds a graceful stop, including the end of all sandboxes.
	ShutdownTimeout Duration `toml:"shutdown_timeout"`
}

// Duration is a time.Duration written like "1m30s" in the file.
type Duration time.Duration

var errDuration = errors.New(`is not a duration such as "90s", "5m" or "1h30m"`)

// UnmarshalText parses the notation of time.ParseDuration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return errDuration
	}
	*d = Duration(v)
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Default returns the configuration of a server that was told nothing.
func Default() Config {
	return Config{
		DataDir: DefaultDataDir,
		Listen:  DefaultListen,
		Log:     Log{Level: "info", Format: "text"},
		Catalog: Catalog{Build: []string{"python", "node", "go", "blank"}},
		Build: Build{CABundle: "auto", Timeout: Duration(30 * time.Minute), SourceTimeout: Duration(10 * time.Minute), RootfsTimeout: Duration(10 * time.Minute),
			SnapshotTimeout: Duration(10 * time.Minute), ReadyTimeout: Duration(5 * time.Minute), Parallel: 2, MaxContextMB: 2048},
		VM:      VM{QEMU: "qemu-system-x86_64", Accel: "auto", Channel: "auto"},
		Network: defaultNetwork(),
		Sandbox: Sandbox{Overcommit: 2, ReserveMB: 512, Cgroups: "auto", DefaultTTL: Duration(kiln.DefaultTTL)},
		GC:      defaultGC(),
		Pool:    Pool{MaxDemand: 2, SpawnAhead: 1},
		API:     API{RequestTimeout: Duration(30 * time.Second), ShutdownTimeout: Duration(20 * time.Second)},
	}
}

// Load reads the TOML file at path over the defaults. A key that no setting has is an
// error, so that a misspelt one is noticed.
func Load(path string) (Config, error) {
	c := Default()
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return c, kiln.Errorf(kiln.CodeInvalid, "configuration file %s does not exist", path).
			WithHint("docs/kiln.toml is an annotated sample")
	}
	if err != nil {
		return c, kiln.Errorf(kiln.CodeInvalid, "configuration: %w", err)
	}
	md, err := toml.NewDecoder(bytes.NewReader(data)).Decode(&c)
	if err != nil {
		return c, kiln.Errorf(kiln.CodeInvalid, "configuration file %s: %s", path, inFile(err))
	}
	if unknown := md.Undecoded(); len(unknown) > 0 {
		return c, kiln.Errorf(kiln.CodeInvalid, "configuration file %s: unknown key %q", path, unknown[0].String()).
			WithHint("docs/kiln.toml lists every key")
	}
	return c, nil
}

// wrongValue matches how the TOML library says where a value is wrong, and wrongType how it
// refuses one of another type.
var (
	wrongValue = regexp.MustCompile(`^toml: line (\d+) \(last key "([^"]*)"\): (.*)$`)
	wrongType  = regexp.MustCompile(`^incompatible types: TOML value has type (\S+); destination has type (\S+)$`)
)

// inFile says which key of the file is wrong, and what it takes.
func inFile(err error) string {
	m := wrongValue.FindStringSubmatch(err.Error())
	if m == nil {
		return err.Error()
	}
	line, key, message := m[1], m[2], m[3]
	if m := wrongType.FindStringSubmatch(message); m != nil {
		message = fmt.Sprintf("must be of type %s, not %s", m[2], m[1])
	} else if value, ok := strings.CutSuffix(message, " is out of range for int64"); ok {
		message = value + " is too large a number"
	}
	return fmt.Sprintf("line %s: %s %s", line, key, message)
}

// Validate checks every setting and returns the first fault as a *kiln.Error that names
// the key.
func (c *Config) Validate() error {
	for _, check := range []func() error{
		c.checkPaths, c.checkListen, c.checkLog, c.checkStore, c.checkGC, c.checkCatalog, c.checkBuild, c.checkVM, c.checkSizes, c.checkPool, c.checkLimits, c.checkNetwork, c.checkTelemetry,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) checkPaths() error {
	if c.DataDir == "" {
		return invalid("data_dir", "is empty")
	}
	if !filepath.IsAbs(c.DataDir) {
		return invalid("data_dir", "%q is not an absolute path", c.DataDir)
	}
	for key, path := range map[string]string{"build.images_dir": c.Build.ImagesDir, "vm.bundle_dir": c.VM.BundleDir} {
		if path != "" && !filepath.IsAbs(path) {
			return invalid(key, "%q is not an absolute path", path)
		}
	}
	// Unix socket addresses hold 107 bytes, and a sandbox's sockets lie below it.
	if len(c.DataDir) > maxDataDir {
		return invalid("data_dir", "is longer than %d bytes, too long for the sockets below it", maxDataDir)
	}
	return nil
}

const maxDataDir = 48

func (c *Config) checkListen() error { return checkAddress("listen", c.Listen) }

func checkAddress(key, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return invalid(key, "%q is not HOST:PORT", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return invalid(key, "%q has no valid port", address)
	}
	if strings.ContainsAny(host, "/ ") {
		return invalid(key, "%q has no valid host", address)
	}
	return nil
}

func (c *Config) checkLog() error {
	if err := oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error"); err != nil {
		return err
	}
	return oneOf("log.format", c.Log.Format, "text", "json")
}

func (c *Config) checkStore() error {
	if c.Store.URL == "" {
		return nil
	}
	// The value is not repeated: it may hold a password.
	if u, err := url.Parse(c.Store.URL); err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return invalid("store.url", "is not a URL like postgres://user@host/database")
	}
	return nil
}

func (c *Config) checkCatalog() error {
	for _, name := range c.Catalog.Build {
		if err := oneOf("catalog.build", name, catalog.Names()...); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) checkBuild() error {
	if c.Build.Parallel < 1 {
		return invalid("build.parallel", "must be at least 1")
	}
	if c.Build.CacheMB < 0 {
		return invalid("build.cache_mb", "must not be negative")
	}
	if c.Build.MaxContextMB < 1 {
		return invalid("build.max_context_mb", "must be at least 1")
	}
	for key, d := range map[string]Duration{
		"build.ready_timeout": c.Build.ReadyTimeout, "build.source_timeout": c.Build.SourceTimeout,
		"build.rootfs_timeout": c.Build.RootfsTimeout, "build.snapshot_timeout": c.Build.SnapshotTimeout,
	} {
		if err := positive(key, d); err != nil {
			return err
		}
	}
	for _, name := range c.Build.SnapshotSizes {
		if _, err := kiln.SizeByName(name); err != nil {
			return kiln.Errorf(kiln.CodeInvalid, "configuration: build.snapshot_sizes: %w", err)
		}
	}
	return positive("build.timeout", c.Build.Timeout)
}

func (c *Config) checkVM() error {
	if c.VM.QEMU == "" {
		return invalid("vm.qemu", "is empty")
	}
	if err := oneOf("vm.accel", c.VM.Accel, "auto", "kvm", "tcg"); err != nil {
		return err
	}
	return oneOf("vm.channel", c.VM.Channel, "auto", "vsock", "serial")
}

func (c *Config) checkLimits() error {
	if c.Sandbox.MaxRunning < 0 {
		return invalid("sandbox.max_running", "must not be negative")
	}
	if err := c.checkAdmission(); err != nil {
		return err
	}
	if d := time.Duration(c.Sandbox.DefaultTTL); d <= 0 || d > kiln.MaxTTL {
		return invalid("sandbox.default_ttl", "must lie between 0s and %v", kiln.MaxTTL)
	}
	if err := positive("api.request_timeout", c.API.RequestTimeout); err != nil {
		return err
	}
	return positive("api.shutdown_timeout", c.API.ShutdownTimeout)
}

func positive(key string, d Duration) error {
	if d <= 0 {
		return invalid(key, "must be more than 0s")
	}
	return nil
}

func oneOf(key, value string, allowed ...string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return invalid(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
}

func invalid(key, format string, args ...any) error {
	return kiln.Errorf(kiln.CodeInvalid, "configuration: %s %s", key, fmt.Sprintf(format, args...))
}
