package orphan

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
)

// start runs a child that holds path open until it is killed.
func start(t *testing.T, shellRedirect string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "exec "+shellRedirect+"; echo; exec sleep 600")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestEndKillsOnlyTheSameProcess(t *testing.T) {
	cmd := start(t, "3</dev/null")
	p, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	reused := kiln.Process{PID: p.PID, StartTime: p.StartTime - 1}
	if err := End(ctx, reused); err != nil {
		t.Fatalf("process that is gone: %v", err)
	}
	if _, err := Identify(p.PID); err != nil {
		t.Fatalf("the new owner of a reused PID was killed: %v", err)
	}
	if err := End(ctx, p); err != nil {
		t.Fatal(err)
	}
	if state, _ := cmd.Process.Wait(); state == nil || state.Success() {
		t.Errorf("process state %v, want killed", state)
	}
	if err := End(ctx, p); err != nil {
		t.Errorf("second End: %v", err)
	}
}

func TestHoldersFindsWritersOnly(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "box", "scratch")
	if err := os.MkdirAll(filepath.Dir(disk), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, "3<"+disk) // a reader: somebody looking at the file
	writer := start(t, "3<>"+disk)

	for _, path := range []string{disk, dir} {
		got, err := Holders(path, filepath.Join(dir, "missing"))
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0].PID != writer.Process.Pid {
			t.Errorf("holders of %s: %v, want only %d", path, got, writer.Process.Pid)
		}
	}
	n, err := EndHolders(t.Context(), dir)
	if err != nil || n != 1 {
		t.Fatalf("ended %d holders, error %v", n, err)
	}
	_ = writer.Wait()
	if got, _ := Holders(dir); len(got) != 0 {
		t.Errorf("still held by %v", got)
	}
}
