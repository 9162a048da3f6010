package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnvm/kiln/internal/hostcmd"
)

// cacheFile keeps one result for as long as its key stays the same.
type cacheFile struct {
	path, key string
}

type cached struct {
	Key    string `json:"key"`
	Result Result `json:"result"`
}

// versionTimeout bounds `qemu --version`, which takes milliseconds.
const versionTimeout = 5 * time.Second

// cacheKey names everything that a result depends on; "" means that it cannot be told.
func cacheKey(ctx context.Context, o Options) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	version, err := hostcmd.Output(ctx, o.Binary, "--version")
	if err != nil {
		return ""
	}
	line, _, _ := bytes.Cut(version, []byte("\n"))
	device := "none"
	if info, err := os.Stat(o.Device); err == nil {
		device = info.ModTime().UTC().String()
	}
	return fmt.Sprintf("boot %s, %s, %s of %s", bytes.TrimSpace(boot), line, o.Device, device)
}

func (c cacheFile) load() (Result, bool) {
	if c.key == "" {
		return Result{}, false
	}
	b, err := os.ReadFile(c.path)
	var got cached
	if err != nil || json.Unmarshal(b, &got) != nil || got.Key != c.key {
		return Result{}, false
	}
	return got.Result, got.Result.Accel == KVM || got.Result.Accel == TCG
}

func (c cacheFile) save(r Result) error {
	if c.key == "" {
		return nil
	}
	b, err := json.Marshal(cached{c.key, r})
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(c.path), ".probe-")
	if err != nil {
		return fmt.Errorf("keep the probe's result: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), c.path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("keep the probe's result: %w", err)
	}
	return nil
}
