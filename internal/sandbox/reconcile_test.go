package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/orphan"
	"github.com/kilnvm/kiln/internal/testkit"
)

// childDir makes the test binary act as a server that is about to be killed.
const childDir = "KILN_SANDBOX_TEST_CHILD"

// childReport is what the child says on standard output before it waits for its end.
type childReport struct {
	Sandboxes []kiln.Sandbox
	Processes []kiln.Process
}

// TestReconcileAfterKill kills a manager's process with SIGKILL, one sandbox running and
// one in the middle of its start, and lets a new manager clean up.
func TestReconcileAfterKill(t *testing.T) {
	h := newHost(t)
	if dir := os.Getenv(childDir); dir != "" {
		actAsDoomedServer(t, h, dir)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestReconcileAfterKill$")
	cmd.Env = append(os.Environ(), childDir+"="+h.opts.Dir, "TMPDIR="+testkit.ShortTempDir(t))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var report childReport
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if json.Unmarshal(lines.Bytes(), &report) == nil && len(report.Sandboxes) > 0 {
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if len(report.Sandboxes) != 2 || len(report.Processes) != 2 {
		t.Fatalf("the child reported %+v", report)
	}
	for i, p := range report.Processes {
		if gone(p) == nil {
			t.Fatalf("VM %d ended with its server: the test tests nothing", i)
		}
	}
	for _, s := range report.Sandboxes {
		if s.Status == kiln.SandboxRunning {
			s.Process = report.Processes[0] // as the row has it; JSON hides it
		}
		if err := h.store.CreateSandbox(t.Context(), &s); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(h.opts.Dir, "nobodys"), 0o700); err != nil {
		t.Fatal(err)
	}

	for range 2 { // the second time there is nothing to do
		if err := h.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range report.Processes {
		if err := gone(p); err != nil {
			t.Error(err)
		}
	}
	for _, s := range h.store.all() {
		if s.Status != kiln.SandboxFailed || !strings.HasPrefix(s.Reason, "server restarted: lost while ") || s.Process.PID != 0 {
			t.Errorf("row after restart: %+v", s)
		}
	}
	h.checkEmpty(t)
}

// actAsDoomedServer runs one sandbox, gets stuck in the start of another, reports both
// and waits to be killed.
func actAsDoomedServer(t *testing.T, h *host, dir string) {
	h.Manager.opts.Dir = dir
	running := h.create(t, hello())
	h.driver.Step = func(_ context.Context, step string) error {
		if step == "resume" { // the VM runs, its row does not say so yet
			report(t, h, running)
			select {}
		}
		return nil
	}
	_, err := h.Create(t.Context(), hello())
	t.Fatalf("the second start ended: %v", err)
}

func report(t *testing.T, h *host, running *kiln.Sandbox) {
	var r childReport
	for _, s := range h.store.all() {
		r.Sandboxes = append(r.Sandboxes, *s)
	}
	holders, err := orphan.Holders(scratchIn(h.dir(r.Sandboxes[1].ID)))
	if err != nil || len(holders) != 1 {
		t.Errorf("holders %v, error %v", holders, err)
	}
	r.Processes = append([]kiln.Process{running.Process}, holders...)
	text, err := json.Marshal(r)
	if err != nil {
		t.Error(err)
	}
	fmt.Printf("\n%s\n", text)
}

// A PID that belongs to somebody else by now is left alone.
func TestReconcileSparesReusedPIDs(t *testing.T) {
	h := newHost(t)
	bystander := exec.Command("sleep", "600")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = bystander.Process.Kill(); _ = bystander.Wait() }()
	p, err := orphan.Identify(bystander.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	s := kiln.Sandbox{ID: kiln.NewSandboxID(), Status: kiln.SandboxRunning,
		Process: kiln.Process{PID: p.PID, StartTime: p.StartTime - 1}}
	if err := h.store.CreateSandbox(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	if err := h.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if gone(p) == nil {
		t.Error("a bystander was killed")
	}
}
