package builder

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
)

// ChildArg is the first argument of the re-executed program.
const ChildArg = "builder-child"

// DefaultCacheBytes is how much build cache is kept when Config.CacheBytes is 0: 20 GiB.
const DefaultCacheBytes = 20 << 30

// Config is what a child needs to know. It travels as its second argument.
type Config struct {
	// StateDir holds BuildKit's state, absolute. One child at a time uses it.
	StateDir string `json:"state_dir"`
	// CABundle is a PEM file that RUN steps trust in addition to nothing else; "" leaves
	// them with what the image has.
	CABundle string `json:"ca_bundle,omitempty"`
	// CacheBytes bounds the build cache; 0 means DefaultCacheBytes.
	CacheBytes int64 `json:"cache_bytes,omitempty"`
}

func (c Config) encode() (string, error) {
	b, err := json.Marshal(c)
	return string(b), err
}

func decodeConfig(s string) (Config, error) {
	var c Config
	if err := json.Unmarshal([]byte(s), &c); err != nil {
		return c, fmt.Errorf("builder configuration: %w", err)
	}
	return c, nil
}

// cgroup is the parent of the control groups of RUN steps, relative to the root of each
// hierarchy. It is the same for every child of one state folder, so that a child can
// sweep what a killed one left.
func (c Config) cgroup() string {
	sum := sha256.Sum256([]byte(c.StateDir))
	return "kiln-build-" + hex.EncodeToString(sum[:6])
}

func (c Config) cacheBytes() int64 {
	if c.CacheBytes > 0 {
		return c.CacheBytes
	}
	return DefaultCacheBytes
}

func (c Config) tmpDir() string { return filepath.Join(c.StateDir, "tmp") }
func (c Config) caDir() string  { return filepath.Join(c.StateDir, "ca") }
