package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnvm/kiln/internal/rootfs"
)

// build compiles the program as it is sent into a guest.
func build(t testing.TB) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "guestview")
	cmd := exec.Command("go", "build", "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

func TestListingFindsEveryDifference(t *testing.T) {
	bin := build(t)
	tree := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(tree, "d"), 0o755))
	must(os.WriteFile(filepath.Join(tree, "d/f\xff"), []byte("content"), 0o600))
	must(os.Symlink("d", filepath.Join(tree, "l")))
	must(os.Link(filepath.Join(tree, "d/f\xff"), filepath.Join(tree, "h")))
	listing, err := exec.Command(bin, tree).Output()
	must(err)
	compare := func() []rootfs.Difference {
		t.Helper()
		dir, err := os.Open(tree)
		must(err)
		src, err := rootfs.FromDir(dir)
		must(err)
		defer src.Close()
		diff, err := rootfs.CompareListing(context.Background(), src, bytes.NewReader(listing))
		must(err)
		return diff
	}
	if diff := compare(); len(diff) != 0 {
		t.Fatalf("differences in an unchanged tree: %v", diff)
	}
	must(os.Chmod(filepath.Join(tree, "d"), 0o700))
	must(os.WriteFile(filepath.Join(tree, "d/f\xff"), []byte("changed"), 0o600))
	var fields []string
	for _, d := range compare() {
		fields = append(fields, d.Field)
	}
	if got := strings.Join(fields, " "); !strings.Contains(got, "mode") || !strings.Contains(got, "content") {
		t.Errorf("differences found: %s", got)
	}
}
