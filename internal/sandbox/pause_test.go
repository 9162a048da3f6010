package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// hello says hello from a sandbox through the client that everybody gets.
func (h *host) hello(t *testing.T, id string) error {
	t.Helper()
	client, err := h.Guest(t.Context(), id)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	_, err = client.Run(t.Context(), guest.Command{Args: []string{"echo", "hello"}, Stdout: &out})
	if err == nil && out.String() != "hello\n" {
		t.Errorf("output %q", out.String())
	}
	return err
}

func (h *host) pause(t *testing.T, id string) *kiln.Sandbox {
	t.Helper()
	s, err := h.Pause(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (h *host) status(t *testing.T, id string) kiln.SandboxStatus {
	t.Helper()
	s, err := h.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return s.Status
}

func TestPauseAndWake(t *testing.T) {
	h := newHost(t)
	s := h.create(t, hello())
	row, _ := h.store.Sandbox(t.Context(), s.ID)
	paused := h.pause(t, s.ID)
	if paused.Status != kiln.SandboxPaused || !paused.ExpiresAt.IsZero() || paused.PausedAt.IsZero() || paused.Reason == "" {
		t.Errorf("paused: %+v", paused)
	}
	if err := gone(row.Process); err != nil {
		t.Error(err)
	}
	if h.admission.promised != 0 {
		t.Errorf("a paused sandbox holds %d MiB", h.admission.promised)
	}
	if stored, _ := h.store.Sandbox(t.Context(), s.ID); stored.Status != kiln.SandboxPaused || stored.Process.PID != 0 {
		t.Errorf("row %+v", stored)
	}
	_, err := h.Pause(t.Context(), s.ID)
	wantCode(t, err, kiln.CodeConflict)

	longer, err := h.Keepalive(t.Context(), s.ID, time.Hour)
	if err != nil || !longer.ExpiresAt.IsZero() {
		t.Errorf("keepalive of a paused sandbox: %+v, %v", longer, err)
	}
	if err := h.hello(t, s.ID); err != nil {
		t.Fatal(err)
	}
	woken, _ := h.Get(t.Context(), s.ID)
	if woken.Status != kiln.SandboxRunning || time.Until(woken.ExpiresAt) < 59*time.Minute || !woken.PausedAt.IsZero() || woken.Reason != "" {
		t.Errorf("woken: %+v", woken)
	}
	h.pause(t, s.ID)
	if woken, err = h.Wake(t.Context(), s.ID); err != nil || woken.Status != kiln.SandboxRunning {
		t.Errorf("wake: %+v, %v", woken, err)
	}
	if _, err = h.Wake(t.Context(), s.ID); err != nil {
		t.Errorf("wake of a running sandbox: %v", err)
	}
	h.pause(t, s.ID)
	if err := h.Destroy(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	h.checkEmpty(t)
	for _, f := range []func(context.Context, string) (*kiln.Sandbox, error){h.Pause, h.Wake} {
		_, err = f(t.Context(), s.ID)
		wantCode(t, err, kiln.CodeConflict)
		_, err = f(t.Context(), "inone")
		wantCode(t, err, kiln.CodeNotFound)
	}
}

// Many who come at once wake a sandbox once.
func TestOneWakeForAll(t *testing.T) {
	h := newHost(t)
	s := h.create(t, hello())
	h.pause(t, s.ID)
	var restores atomic.Int32
	h.driver.Step = func(_ context.Context, step string) error {
		if step == "restore" {
			restores.Add(1)
		}
		return nil
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := h.hello(t, s.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := restores.Load(); n != 1 {
		t.Errorf("%d restores", n)
	}
}

func TestFailedPauseAndWake(t *testing.T) {
	boom := errors.New("boom")
	failing := ""
	h := newHost(t)
	h.driver.Step = func(_ context.Context, step string) error {
		if step == failing {
			return boom
		}
		return nil
	}
	s := h.create(t, hello())
	for _, failing = range []string{"pause", "capture"} {
		if _, err := h.Pause(t.Context(), s.ID); !errors.Is(err, boom) {
			t.Errorf("%s: error %v", failing, err)
		}
		failing = ""
		if err := h.hello(t, s.ID); err != nil || h.status(t, s.ID) != kiln.SandboxRunning {
			t.Errorf("after a failed pause: %v", err)
		}
	}
	h.pause(t, s.ID)
	failing = "restore"
	_, err := h.Wake(t.Context(), s.ID)
	wantCode(t, err, kiln.CodeUnavailable)
	if h.status(t, s.ID) != kiln.SandboxPaused || h.admission.promised != 0 {
		t.Errorf("after a failed restore it is %s with %d MiB", h.status(t, s.ID), h.admission.promised)
	}
	failing = ""
	if err := h.hello(t, s.ID); err != nil {
		t.Error(err)
	}

	h.pause(t, s.ID)
	failing = "resume" // whether its disk has changed, nobody knows
	_, err = h.Wake(t.Context(), s.ID)
	wantCode(t, err, kiln.CodeUnavailable)
	if ended := h.awaitEnd(t, s.ID); ended.Status != kiln.SandboxFailed || !strings.Contains(ended.Reason, "did not wake") {
		t.Errorf("%s: %s", ended.Status, ended.Reason)
	}
	h.checkEmpty(t)
}

func TestDestroyDuringPauseAndWake(t *testing.T) {
	for _, step := range []string{"capture", "restore"} {
		h := newHost(t)
		s := h.create(t, hello())
		change := h.Pause
		if step == "restore" {
			h.pause(t, s.ID)
			change = h.Wake
		}
		reached := make(chan struct{})
		h.driver.Step = func(ctx context.Context, s string) error {
			if s != step {
				return nil
			}
			close(reached)
			<-ctx.Done()
			return ctx.Err()
		}
		changed := make(chan error)
		go func() {
			_, err := change(t.Context(), s.ID)
			changed <- err
		}()
		<-reached
		if err := h.Destroy(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if err := <-changed; err == nil {
			t.Errorf("%s succeeded in a destroyed sandbox", step)
		}
		h.checkEmpty(t)
	}
}

// reaches returns what is closed when a row gets a status.
func (h *host) reaches(status kiln.SandboxStatus) <-chan struct{} {
	reached, once := make(chan struct{}), sync.Once{}
	h.store.mu.Lock()
	defer h.store.mu.Unlock()
	h.store.fail = func(op string) error {
		if op == "update "+string(status) {
			once.Do(func() { close(reached) })
		}
		return nil
	}
	return reached
}

func await(t *testing.T, what string, reached <-chan struct{}) {
	t.Helper()
	select {
	case <-reached:
	case <-time.After(20 * time.Second):
		t.Fatalf("it never becomes %s", what)
	}
}

func TestIdleSandboxes(t *testing.T) {
	h := newHost(t)
	req := hello()
	req.IdleTimeout = time.Second
	s := h.create(t, req)
	if ended := h.awaitEnd(t, s.ID); ended.Status != kiln.SandboxDeleted || ended.Reason != "idle for 1s" {
		t.Errorf("%s: %s", ended.Status, ended.Reason)
	}

	req.Persistent = true
	s = h.create(t, req)
	client, err := h.Guest(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	paused := h.reaches(kiln.SandboxPaused)
	input, typist := io.Pipe()
	cat, err := client.Start(t.Context(), guest.Command{Args: []string{"cat"}, Stdin: input})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-paused:
		t.Error("a sandbox was paused in which a command runs")
	case <-time.After(1500 * time.Millisecond):
	}
	typist.Close()
	if _, err := cat.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "paused", paused)
	if err := h.hello(t, s.ID); err != nil {
		t.Error(err)
	}
	await(t, "paused", h.reaches(kiln.SandboxPaused)) // idle again
	h.box(s.ID).await(t)
	if err := h.Destroy(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
}

// await returns when no change is under way.
func (b *box) await(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	under := b.under
	b.mu.Unlock()
	if under != nil {
		await(t, "settled", under.over)
	}
}

func TestPersistentSandboxIsPausedWhenItExpires(t *testing.T) {
	h := newHost(t)
	req := hello()
	req.Persistent, req.TTL = true, time.Second
	paused := h.reaches(kiln.SandboxPaused)
	s := h.create(t, req)
	await(t, "paused", paused)
	if got, _ := h.Get(t.Context(), s.ID); got.Status != kiln.SandboxPaused || got.Reason != "expired" {
		t.Errorf("%s: %s", got.Status, got.Reason)
	}
	if err := h.Destroy(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
}

// Another server takes over what was paused, and what its predecessor paused as it stopped.
func TestPausedSandboxesSurviveTheServer(t *testing.T) {
	h := newHost(t)
	persistent := hello()
	persistent.Persistent = true
	asked, stopped, whole, other := h.create(t, hello()), h.create(t, persistent), h.create(t, hello()), h.create(t, hello())
	h.pause(t, asked.ID)
	h.pause(t, whole.ID)
	if err := h.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := h.status(t, other.ID); s != kiln.SandboxDeleted {
		t.Errorf("a sandbox that runs became %s when the server stopped", s)
	}
	if err := os.Truncate(filepath.Join(h.dir(whole.ID), savedName, "memory"), 3); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(h.dir(asked.ID), unsavedName), 0o700); err != nil {
		t.Fatal(err)
	}

	next, err := New(h.opts)
	if err != nil {
		t.Fatal(err)
	}
	h.Manager = next
	for range 2 { // the second time there is nothing to do
		if err := h.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{asked.ID, stopped.ID} {
		if s := h.status(t, id); s != kiln.SandboxPaused {
			t.Errorf("after the restart it is %s", s)
		}
		if err := h.hello(t, id); err != nil {
			t.Error(err)
		}
	}
	lost, _ := h.Get(t.Context(), whole.ID)
	if lost.Status != kiln.SandboxFailed || !strings.Contains(lost.Reason, "memory has 3 bytes") {
		t.Errorf("damaged: %s: %s", lost.Status, lost.Reason)
	}

	// On another VMM it stays paused and says why, until it is back.
	h.pause(t, asked.ID)
	h.driver.Version = "2"
	err = h.hello(t, asked.ID)
	wantCode(t, err, kiln.CodeUnavailable)
	if !strings.Contains(err.Error(), "paused on fake 1") {
		t.Errorf("error %v", err)
	}
	h.driver.Version = "1"
	if err := h.hello(t, asked.ID); err != nil {
		t.Error(err)
	}
	if err := h.Destroy(t.Context(), stopped.ID); err != nil {
		t.Fatal(err)
	}
}

func TestWakeNeedsMemory(t *testing.T) {
	h := newHost(t, func(o *Options) { o.Limits.MaxRunning = 1 })
	a := h.create(t, hello())
	h.pause(t, a.ID)
	b := h.create(t, hello())
	wantCode(t, h.hello(t, a.ID), kiln.CodeLimit)
	if err := h.Destroy(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	if err := h.hello(t, a.ID); err != nil {
		t.Error(err)
	}
}

func TestFork(t *testing.T) {
	h := newHost(t, func(o *Options) { o.Limits.MaxRunning = 10 })
	req := hello()
	req.Env, req.Metadata = map[string]string{"A": "1"}, map[string]string{"k": "v"}
	parent := h.create(t, req)
	for _, paused := range []bool{false, true} {
		if paused {
			h.pause(t, parent.ID)
		}
		forked, err := h.Fork(t.Context(), parent.ID, ForkRequest{Count: 3})
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{parent.ID: true, parent.AccessToken: true}
		for _, f := range forked {
			if f.Err != nil {
				t.Fatal(f.Err)
			}
			s := f.Sandbox
			if s.Parent != parent.ID || s.Status != kiln.SandboxRunning || s.Metadata["k"] != "v" || s.Env["A"] != "1" || s.BootTime <= 0 {
				t.Errorf("child %+v", s)
			}
			if seen[s.ID] || seen[s.AccessToken] {
				t.Error("two share an ID or a token")
			}
			seen[s.ID], seen[s.AccessToken] = true, true
			if err := h.hello(t, s.ID); err != nil {
				t.Error(err)
			}
			if g := h.guests.In(h.dir(s.ID)); g.Hostname() != s.ID {
				t.Errorf("child %s is called %s", s.ID, g.Hostname())
			}
			if err := h.Destroy(t.Context(), s.ID); err != nil {
				t.Error(err)
			}
		}
		want := kiln.SandboxRunning
		if paused {
			want = kiln.SandboxPaused
		}
		if s := h.status(t, parent.ID); s != want {
			t.Errorf("the parent is %s, want %s", s, want)
		}
	}
	if err := h.hello(t, parent.ID); err != nil { // its saved state is still its own
		t.Error(err)
	}
	for _, n := range []int{0, -1, MaxForks + 1} {
		_, err := h.Fork(t.Context(), parent.ID, ForkRequest{Count: n})
		wantCode(t, err, kiln.CodeInvalid)
	}
	_, err := h.Fork(t.Context(), parent.ID, ForkRequest{Count: 10}) // more than may run
	wantCode(t, err, kiln.CodeLimit)
	if s := h.status(t, parent.ID); s != kiln.SandboxRunning {
		t.Errorf("a fork that was refused left its parent %s", s)
	}
	h.driver.Step = func(_ context.Context, step string) error {
		if step == "capture" {
			return errors.New("boom")
		}
		return nil
	}
	if _, err := h.Fork(t.Context(), parent.ID, ForkRequest{Count: 2}); err == nil {
		t.Error("a fork without a capture succeeded")
	}
	if list, _ := h.List(t.Context()); len(list) != 1 {
		t.Errorf("%d sandboxes live", len(list))
	}
	if err := h.hello(t, parent.ID); err != nil {
		t.Error(err)
	}
}
