// Package testkit is what the tests of all packages share: gates that fail where the machine
// lacks something, a cache for what is slow to make, the parts of a VM, and a check that
// nothing is left behind.
//
// Nothing here skips a test. A machine that cannot run a test is set up wrongly, and the
// message says what to do.
package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kilnvm/kiln/internal/hostcmd"
)

// RequireRoot fails the test unless it runs as root.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: run `sudo make test`")
	}
}

// RequireCommands fails the test unless every program is installed.
func RequireCommands(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("this test needs the program %s: `make setup` installs it", name)
		}
	}
}

// RequireVM fails the test unless VMs can run here.
func RequireVM(t testing.TB) {
	t.Helper()
	RequireRoot(t)
	RequireCommands(t, "qemu-system-x86_64", "mke2fs")
}

// CacheDir returns the folder for what tests make once and keep between runs. Everything in
// it is named by its content, so that it may be removed at any time but during a test, and so
// that test processes may share it. It is $KILN_TEST_CACHE or .cache/test in the repository.
func CacheDir() string {
	dir := os.Getenv("KILN_TEST_CACHE")
	if dir == "" {
		dir = filepath.Join(moduleRoot(), ".cache", "test")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		panic(fmt.Sprintf("test cache: %v", err))
	}
	return dir
}

// moduleRoot returns the folder of go.mod: tests run in their package's folder below it.
func moduleRoot() string {
	dir, err := os.Getwd()
	for err == nil {
		if _, statErr := os.Stat(filepath.Join(dir, "go.mod")); statErr == nil {
			return dir
		}
		if filepath.Dir(dir) == dir {
			err = errors.New("no go.mod in any parent folder")
		}
		dir = filepath.Dir(dir)
	}
	panic(fmt.Sprintf("find the repository: %v", err))
}

// ShortTempDir is like t.TempDir with a path that leaves room for Unix sockets, whose
// addresses have 108 bytes: the path does not hold the test's name.
func ShortTempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// run runs a host command for a test's preparation and returns what it printed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := hostcmd.Output(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
