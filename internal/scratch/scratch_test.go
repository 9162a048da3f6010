package scratch

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kilnvm/kiln"
)

func TestMakeIsSparseAndClean(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := Make(t.Context(), path, 1024); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != 1<<30 {
		t.Errorf("size %d, want 1 GiB", info.Size())
	}
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > 2<<20 {
		t.Errorf("%d bytes allocated, want at most 2 MiB: every clone copies them", used)
	}
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

func TestMakeLeavesNothingOnFailure(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		size int
		code kiln.ErrorCode
	}{
		{"no size", t.Context(), 0, kiln.CodeInvalid},
		{"too large", t.Context(), MaxMB + 1, kiln.CodeInvalid},
		{"canceled", canceled, 16, kiln.CodeInternal},
	} {
		path := filepath.Join(t.TempDir(), "disk")
		err := Make(c.ctx, path, c.size)
		if kiln.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want code %s", c.name, err, c.code)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a file is left", c.name)
		}
	}
}
