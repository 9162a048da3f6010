package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

func TestLifeOfASandbox(t *testing.T) {
	h := newHost(t)
	h.store.version.Metadata.Env = map[string]string{"COLOUR": "template"}
	h.addSnapshot(t)
	s := h.create(t, CreateRequest{
		OrgID: kiln.LocalOrgID, Template: "hello", TTL: time.Hour,
		Env: map[string]string{"WHO": "me"}, Metadata: map[string]string{"k": "v"},
	})
	if s.Status != kiln.SandboxRunning || s.BootMode != kiln.BootSnapshot || s.BootTime <= 0 ||
		s.Size != kiln.DefaultSizeName || s.Template != "hello" || s.Metadata["k"] != "v" || s.AccessToken == "" {
		t.Errorf("created %+v", s)
	}
	client, err := h.Guest(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	exit, err := client.Run(t.Context(), guest.Command{Args: []string{"sh", "-c", "echo $WHO; exit 3"}, Stdout: &out})
	if err != nil || exit.Code != 3 || out.String() != "me\n" {
		t.Errorf("exit %+v, output %q, error %v", exit, out.String(), err)
	}
	row, err := h.store.Sandbox(t.Context(), s.ID)
	if err != nil || row.Status != kiln.SandboxRunning || row.Process.PID == 0 {
		t.Errorf("row %+v, error %v", row, err)
	}
	if list, _ := h.List(t.Context()); len(list) != 1 || list[0].ID != s.ID {
		t.Errorf("list %v", list)
	}
	longer, err := h.Keepalive(t.Context(), s.ID, 2*time.Hour)
	if err != nil || longer.ExpiresAt.Sub(s.ExpiresAt) < 59*time.Minute {
		t.Errorf("keepalive: expires %s after %s, error %v", longer.ExpiresAt, s.ExpiresAt, err)
	}

	for range 2 { // the second time it is gone, which is no error
		if err := h.Destroy(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := gone(row.Process); err != nil {
		t.Error(err)
	}
	ended, err := h.Get(t.Context(), s.ID)
	if err != nil || ended.Status != kiln.SandboxDeleted || ended.Reason != "destroyed by request" {
		t.Errorf("after destroy: %+v, error %v", ended, err)
	}
	_, err = h.Guest(t.Context(), s.ID)
	wantCode(t, err, kiln.CodeConflict)
	_, err = h.Keepalive(t.Context(), s.ID, time.Hour)
	wantCode(t, err, kiln.CodeConflict)
	for _, f := range []func() error{
		func() error { return h.Destroy(t.Context(), "inone") },
		func() error { _, err := h.Get(t.Context(), "inone"); return err },
		func() error { _, err := h.Guest(t.Context(), "inone"); return err },
		func() error { _, err := h.Keepalive(t.Context(), "inone", 0); return err },
	} {
		wantCode(t, f(), kiln.CodeNotFound)
	}
}

func TestBadRequestsAreRefusedBeforeAnythingIsAcquired(t *testing.T) {
	h := newHost(t, func(o *Options) { o.Limits.MaxTTL = 2 * time.Hour })
	for name, c := range map[string]struct {
		change func(*CreateRequest)
		before func(*memoryStore)
		code   kiln.ErrorCode
		says   string
	}{
		"no template":        {change: func(r *CreateRequest) { r.Template = "" }, code: kiln.CodeInvalid},
		"unknown template":   {change: func(r *CreateRequest) { r.Template = "nope" }, code: kiln.CodeNotFound, says: "nope"},
		"other organisation": {change: func(r *CreateRequest) { r.OrgID = "other" }, code: kiln.CodeNotFound},
		"unknown size":       {change: func(r *CreateRequest) { r.Size = "huge" }, code: kiln.CodeInvalid, says: "shared-cpu-1x"},
		"short life":         {change: func(r *CreateRequest) { r.TTL = time.Millisecond }, code: kiln.CodeInvalid},
		"negative life":      {change: func(r *CreateRequest) { r.TTL = -time.Hour }, code: kiln.CodeInvalid},
		"long life":          {change: func(r *CreateRequest) { r.TTL = 3 * time.Hour }, code: kiln.CodeInvalid, says: "2h"},
		"environment name":   {change: func(r *CreateRequest) { r.Env = map[string]string{"A-B": ""} }, code: kiln.CodeInvalid, says: "A-B"},
		"NUL":                {change: func(r *CreateRequest) { r.Env = map[string]string{"A": "\x00"} }, code: kiln.CodeInvalid, says: "NUL"},
		"large": {change: func(r *CreateRequest) { r.Metadata = map[string]string{"a": strings.Repeat("x", kiln.MaxPairBytes)} },
			code: kiln.CodeInvalid},
		"small": {change: func(r *CreateRequest) { r.Size = "shared-cpu-1x" }, code: kiln.CodeInvalid, says: "shared-cpu-2x",
			before: func(s *memoryStore) { s.version.Metadata.MinSize = "shared-cpu-2x" }},
		"not built": {before: func(s *memoryStore) { s.version.Status = kiln.VersionBuilding }, code: kiln.CodeConflict, says: "not built yet"},
		"failed":    {before: func(s *memoryStore) { s.version.Status = kiln.VersionFailed }, code: kiln.CodeConflict, says: "build failed"},
	} {
		t.Run(name, func(t *testing.T) {
			old := h.store.version
			defer func() { h.store.version = old }()
			v := *old
			h.store.version = &v
			if c.before != nil {
				c.before(h.store)
			}
			req := hello()
			if c.change != nil {
				c.change(&req)
			}
			_, err := h.Create(t.Context(), req)
			wantCode(t, err, c.code)
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q does not say %q", err, c.says)
			}
			if n := len(h.store.all()); n != 0 {
				t.Errorf("%d rows were written", n)
			}
		})
	}
}

// TestStartOvertakenByARebuild: the version that a request found may be given up before its
// sandbox has a row. Another one serves as well, unless there is none.
func TestStartOvertakenByARebuild(t *testing.T) {
	h := newHost(t)
	refusal := kiln.Errorf(kiln.CodeConflict, "the files of version 1 are no longer kept")
	refused := 0
	h.store.fail = func(op string) error {
		if op != "create" || h.store.version.Number == 2 {
			return nil
		}
		refused++
		next := *h.store.version
		next.Number = 2
		h.store.version = &next
		return refusal
	}
	if s := h.create(t, hello()); s.Version != 2 || refused != 1 {
		t.Errorf("version %d after %d refusals", s.Version, refused)
	}
	h.store.fail = func(op string) error {
		if op == "create" {
			refused++
			return refusal
		}
		return nil
	}
	if _, err := h.Create(t.Context(), hello()); !errors.Is(err, refusal) || refused != 2 {
		t.Errorf("%v after %d refusals", err, refused)
	}
}

func TestColdBootAsksForASnapshot(t *testing.T) {
	h := newHost(t)
	h.store.snapshots = nil
	h.store.version.Metadata.StartCmd = "sleep 60"
	s := h.create(t, hello())
	if s.BootMode != kiln.BootCold || s.BootTime <= 0 {
		t.Errorf("boot mode %s in %s", s.BootMode, s.BootTime)
	}
	if len(h.bakes) != 1 || h.bakes[0] != nil {
		t.Errorf("asked to bake: %v", h.bakes)
	}
}

func TestConcurrentCreatesAreAllDifferent(t *testing.T) {
	h := newHost(t)
	const n = 20
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if _, err := h.Create(t.Context(), hello()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, _ := h.List(t.Context())
	if len(list) != n {
		t.Fatalf("%d sandboxes live, want %d", len(list), n)
	}
	seen := map[string]bool{}
	for _, s := range list {
		g := h.guests.In(h.dir(s.ID))
		if g == nil || g.Hostname() != s.ID || len(g.Entropy()) != 1 || len(g.Entropy()[0]) < 32 {
			t.Fatalf("sandbox %s was not made itself: %+v", s.ID, g)
		}
		for _, unique := range []string{s.ID, s.AccessToken, string(g.Entropy()[0])} {
			if seen[unique] {
				t.Errorf("two sandboxes share %q", unique)
			}
			seen[unique] = true
		}
	}
	if err := h.Close(t.Context()); err != nil {
		t.Error(err)
	}
	_, err := h.Create(t.Context(), hello())
	wantCode(t, err, kiln.CodeUnavailable)
}

// Every step of a start fails in turn, and by a cancelled request in turn.
func TestFailedStartLeavesNothing(t *testing.T) {
	boom := errors.New("boom")
	for _, path := range []struct {
		name  string
		cold  bool
		steps []string
	}{
		{"snapshot", false, []string{"restore", "resume", "dial"}},
		{"cold", true, []string{"boot"}},
	} {
		for _, step := range path.steps {
			t.Run(path.name+" "+step, func(t *testing.T) {
				h := newHost(t)
				if path.cold {
					h.store.snapshots = nil
				}
				h.driver.Step = func(_ context.Context, s string) error {
					if s == step {
						return boom
					}
					return nil
				}
				_, err := h.Create(t.Context(), hello())
				wantCode(t, err, kiln.CodeUnavailable)
				row := h.store.all()[0]
				if row.Status != kiln.SandboxFailed || !strings.Contains(row.Reason, "did not start") {
					t.Errorf("row %s: %s", row.Status, row.Reason)
				}
				h.checkEmpty(t)

				ctx, cancel := context.WithCancel(t.Context())
				h.driver.Step = func(ctx context.Context, s string) error {
					if s != step {
						return nil
					}
					cancel()
					<-ctx.Done()
					return ctx.Err()
				}
				_, err = h.Create(ctx, hello())
				wantCode(t, err, kiln.CodeCanceled)
				h.checkEmpty(t)
			})
		}
	}
	for _, op := range []string{"create", "update running"} {
		t.Run("store "+op, func(t *testing.T) {
			h := newHost(t)
			h.store.fail = func(o string) error {
				if o == op {
					return boom
				}
				return nil
			}
			if _, err := h.Create(t.Context(), hello()); !errors.Is(err, boom) {
				t.Errorf("error %v", err)
			}
			h.checkEmpty(t)
		})
	}
}

func TestDestroyDuringCreate(t *testing.T) {
	for _, step := range []string{"restore", "resume", "dial"} {
		h := newHost(t)
		reached := make(chan struct{})
		h.driver.Step = func(ctx context.Context, s string) error {
			if s != step {
				return nil
			}
			close(reached)
			<-ctx.Done()
			return ctx.Err()
		}
		created := make(chan error)
		go func() {
			_, err := h.Create(t.Context(), hello())
			created <- err
		}()
		<-reached
		list, _ := h.List(t.Context())
		_, err := h.Guest(t.Context(), list[0].ID)
		wantCode(t, err, kiln.CodeConflict)
		if err := h.Destroy(t.Context(), list[0].ID); err != nil {
			t.Fatal(err)
		}
		err = <-created
		wantCode(t, err, kiln.CodeCanceled)
		if !strings.Contains(err.Error(), "destroyed by request") {
			t.Errorf("%s: error %v", step, err)
		}
		if s := h.awaitEnd(t, list[0].ID); s.Status != kiln.SandboxDeleted {
			t.Errorf("%s: status %s", step, s.Status)
		}
		h.checkEmpty(t)
	}
}

func TestExpiry(t *testing.T) {
	h := newHost(t)
	short, long := hello(), hello()
	short.TTL, long.TTL = time.Second, time.Second
	a, b := h.create(t, short), h.create(t, long)
	if _, err := h.Keepalive(t.Context(), b.ID, time.Hour); err != nil {
		t.Fatal(err)
	}
	s := h.awaitEnd(t, a.ID)
	if s.Status != kiln.SandboxDeleted || s.Reason != "expired" {
		t.Errorf("%s: %s", s.Status, s.Reason)
	}
	if late := s.EndedAt.Sub(s.ExpiresAt); late < 0 || late > 2*time.Second {
		t.Errorf("it ended %s after its time", late)
	}
	if s, _ := h.Get(t.Context(), b.ID); s.Status != kiln.SandboxRunning {
		t.Errorf("the prolonged sandbox is %s: %s", s.Status, s.Reason)
	}
}

func TestDeadVMEndsItsSandbox(t *testing.T) {
	h := newHost(t)
	s := h.create(t, hello())
	client, err := h.Guest(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	command, err := client.Start(t.Context(), guest.Command{Args: []string{"cat"}, Stdin: neverEnds{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.Process.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := command.Wait(t.Context()); err == nil {
		t.Error("a command outlived its VM")
	}
	ended := h.awaitEnd(t, s.ID)
	if ended.Status != kiln.SandboxFailed || !strings.Contains(ended.Reason, "the VM ended") {
		t.Errorf("%s: %s", ended.Status, ended.Reason)
	}
	_, err = h.Guest(t.Context(), s.ID)
	if err == nil || !strings.Contains(err.Error(), "the VM ended") {
		t.Errorf("error %v", err)
	}
	h.checkEmpty(t)
}

// neverEnds is an input that nobody types.
type neverEnds struct{}

func (neverEnds) Read([]byte) (int, error) { select {} }

var _ io.Reader = neverEnds{}

func TestAdmission(t *testing.T) {
	h := newHost(t, func(o *Options) { o.Limits.MaxRunning = 3; o.Limits.Overcommit = 1 })
	host := hostMemory{totalMiB: 512 + 1100, availableMiB: 8000}
	h.admission.memory = func() (hostMemory, error) { return host, nil }
	first := h.create(t, hello())
	h.create(t, hello())
	_, err := h.Create(t.Context(), hello()) // a third of 512 MiB exceeds 1100
	wantCode(t, err, kiln.CodeExhausted)
	if err := h.Destroy(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	h.create(t, hello())

	host = hostMemory{totalMiB: 100000, availableMiB: 1000} // promised it could be, free it is not
	_, err = h.Create(t.Context(), hello())
	wantCode(t, err, kiln.CodeExhausted)
	host.availableMiB = 50000
	h.create(t, hello())
	_, err = h.Create(t.Context(), hello())
	wantCode(t, err, kiln.CodeLimit)
	if !strings.Contains(err.Error(), "max_running") {
		t.Errorf("error %v does not name the limit", err)
	}
}

func TestEveryOrganisationHasItsLimit(t *testing.T) {
	h := newHost(t, func(o *Options) { o.Limits.MaxPerOrg = 2; o.Limits.OrgLimits = map[string]int{"small": 1, "free": 0} })
	leave := map[string]func(){}
	for _, tt := range []struct {
		org  string
		code kiln.ErrorCode
	}{
		{"a", ""}, {"a", ""}, {"a", kiln.CodeLimit}, {"b", ""},
		{"small", ""}, {"small", kiln.CodeLimit},
		{"free", ""}, {"free", ""}, {"free", ""},
	} {
		release, err := h.admission.seat(tt.org)
		wantCode(t, err, tt.code)
		if err == nil {
			leave[tt.org] = release
			t.Cleanup(release)
			continue
		}
		if !strings.Contains(err.Error(), tt.org) || !strings.Contains(err.Error(), "max_per_org") {
			t.Errorf("error %v names neither the organisation nor the limit", err)
		}
	}
	leave["small"]()
	leave["small"]() // once is enough
	release, err := h.admission.seat("small")
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestStartsWaitForTheirTurn(t *testing.T) {
	h := newHost(t, func(o *Options) { o.Limits.MaxStarting = 1 })
	enter, leave := make(chan struct{}), make(chan struct{})
	h.driver.Step = func(_ context.Context, s string) error {
		if s == "restore" {
			enter <- struct{}{}
			<-leave
		}
		return nil
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := h.Create(t.Context(), hello()); err != nil {
				t.Error(err)
			}
		})
	}
	<-enter
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := h.Create(ctx, hello())
	wantCode(t, err, kiln.CodeTimeout)
	select {
	case <-enter:
		t.Error("two starts run at once")
	default:
	}
	leave <- struct{}{}
	<-enter
	leave <- struct{}{}
	wg.Wait()
}

func TestForcedStartPath(t *testing.T) {
	h := newHost(t)
	forced := func(mode kiln.BootMode) CreateRequest {
		req := hello()
		req.BootMode = mode
		return req
	}
	for _, mode := range []kiln.BootMode{kiln.BootSnapshot, kiln.BootCold} {
		if s := h.create(t, forced(mode)); s.BootMode != mode {
			t.Errorf("boot mode %s, want %s", s.BootMode, mode)
		}
	}
	if len(h.bakes) != 0 {
		t.Errorf("a cold boot that was asked for asked for %d bakes", len(h.bakes))
	}
	h.store.snapshots = nil
	_, err := h.Create(t.Context(), forced(kiln.BootSnapshot))
	wantCode(t, err, kiln.CodeConflict)
	if len(h.bakes) != 1 {
		t.Errorf("%d bakes asked for, want 1", len(h.bakes))
	}
}
