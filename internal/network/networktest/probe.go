package networktest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnvm/kiln/internal/hostcmd"
)

// Prober builds the program that tries to get something out of a sandbox, and returns it.
func Prober(t testing.TB) []byte {
	t.Helper()
	return program(t, "prober")
}

// Pump builds the program that moves bytes from inside a sandbox, and returns it.
func Pump(t testing.TB) []byte {
	t.Helper()
	return program(t, "pump")
}

func program(t testing.TB, name string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	build := hostcmd.Command{
		Name: "go", Args: []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path, "github.com/kilnvm/kiln/internal/network/networktest/" + name},
		Env: []string{"CGO_ENABLED=0"},
	}
	if err := build.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	built, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return built
}
