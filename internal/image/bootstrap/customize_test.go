package bootstrap

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestCustomizeKeepsAptConfig runs the hook on a folder that looks like a new system. The
// configuration that ties apt to that system must survive it: without it mmdebstrap's next
// command would remove the package lists of the host.
func TestCustomizeKeepsAptConfig(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"etc/apt/sources.list.d", "etc/apt/apt.conf.d", "usr/sbin", "var/log/apt", "var/tmp", "tmp/dir"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(root, "tmp/mmdebstrap.apt.conf.x")
	rubbish := []string{filepath.Join(root, "tmp/dir/file"), filepath.Join(root, "tmp/dir"), filepath.Join(root, "var/tmp/file")}
	for _, file := range []string{config, rubbish[0], rubbish[2]} {
		if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "customize.sh", root)
	cmd.Env = append(os.Environ(), "KILN_SOURCES=none\n", "KILN_SOURCES_NAME=debian.sources", "MMDEBSTRAP_APT_CONFIG="+config)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := os.Stat(config); err != nil {
		t.Errorf("apt's configuration is gone: %v", err)
	}
	for _, path := range rubbish {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}
