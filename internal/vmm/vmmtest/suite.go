// Package vmmtest is the conformance suite of [vmm.Driver]: what every driver must do,
// shown with real VMs.
package vmmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm"
)

// patience bounds every wait for a VM; emulated ones are slow, and those of an emulated host
// slower ($KILN_TEST_PATIENCE).
var patience = func() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("KILN_TEST_PATIENCE")); err == nil {
		return d
	}
	return 90 * time.Second
}()

// suite is one driver with what its machines are made of.
type suite struct {
	driver vmm.Driver
	boot   kiln.BootBundle
	rootfs string
	size   kiln.Size
}

// Run runs the suite.
func Run(t *testing.T, driver vmm.Driver) {
	s := &suite{driver: driver, boot: testkit.BootBundle(t), rootfs: testkit.MinimalRootfs(t), size: kiln.Sizes()[0]}
	t.Run("info", s.info)
	t.Run("boot", s.bootAndKill)
	t.Run("capture and restore", s.captureAndRestore)
	t.Run("refusals", s.refusals)
	t.Run("confine", s.confine)
	t.Run("disk limits", s.diskLimits)
	t.Run("network", s.network)
}

func (s *suite) info(t *testing.T) {
	if i := s.driver.Info(); i.Name == "" || i.Version == "" || i.CPU == "" {
		t.Errorf("Info() = %+v, want every field", i)
	}
}

// config returns a machine in a folder of its own.
func (s *suite) config(t *testing.T, name string) vmm.Config {
	t.Helper()
	return vmm.Config{
		ID: name, Dir: testkit.ShortTempDir(t), Boot: s.boot, Size: s.size,
		Rootfs: s.rootfs, Scratch: testkit.ScratchDisk(t, 64),
	}
}

func (s *suite) bootAndKill(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cfg := s.config(t, "boot")
	m, err := s.driver.Boot(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	client := waitReady(t, ctx, m)
	if got := output(t, ctx, client, "echo", "hello"); got != "hello\n" {
		t.Errorf("the guest printed %q", got)
	}
	if m.PID() <= 0 {
		t.Errorf("PID() = %d", m.PID())
	}

	s.means(t, m)

	t.Run("many connections at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				want := strings.Repeat(fmt.Sprint(i), 1000) + "\n"
				if got := output(t, ctx, client, "echo", strings.TrimSpace(want)); got != want {
					t.Errorf("connection %d: %d bytes, want %d", i, len(got), len(want))
				}
			})
		}
		wg.Wait()
	})

	t.Run("streams", func(t *testing.T) { streams(t, ctx, client) })

	t.Run("pause and resume", func(t *testing.T) {
		for range 2 { // both are idempotent
			must(t, m.Pause(ctx))
		}
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		if err := client.WaitReady(short); err == nil {
			t.Error("a paused machine answers")
		}
		for range 2 {
			must(t, m.Resume(ctx))
		}
		if got := output(t, ctx, client, "echo", "again"); got != "again\n" {
			t.Errorf("after resume the guest printed %q", got)
		}
	})

	t.Run("a machine without memory file is not captured", func(t *testing.T) {
		must(t, m.Pause(ctx))
		err := m.Capture(ctx, vmm.State{Memory: filepath.Join(cfg.Dir, "m"), State: filepath.Join(cfg.Dir, "s")})
		if err == nil {
			t.Error("Capture succeeded")
		}
		must(t, m.Resume(ctx))
	})

	t.Run("the base is read-only", func(t *testing.T) {
		before, err := os.ReadFile(s.rootfs)
		must(t, err)
		output(t, ctx, client, "sh", "-c", "echo x > /new; sync")
		after, err := os.ReadFile(s.rootfs)
		must(t, err)
		if !bytes.Equal(before, after) {
			t.Error("a guest changed the base image")
		}
	})

	t.Run("kill", func(t *testing.T) {
		for range 2 {
			must(t, m.Kill())
		}
		select {
		case <-m.Done():
		default:
			t.Error("Done is open after Kill")
		}
		if m.Err() != nil {
			t.Errorf("Err() = %v after Kill", m.Err())
		}
		if _, err := m.Dial(ctx); err == nil {
			t.Error("Dial reaches a machine that was killed")
		}
		left, err := os.ReadDir(cfg.Dir)
		must(t, err)
		for _, e := range left {
			if filepath.Join(cfg.Dir, e.Name()) != m.ConsoleLog() {
				t.Errorf("left in its folder: %s", e.Name())
			}
		}
	})
}

func (s *suite) captureAndRestore(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	cfg := s.config(t, "golden")
	cfg.Memory = filepath.Join(cfg.Dir, "memory")
	golden, err := s.driver.Boot(ctx, cfg)
	must(t, err)
	defer golden.Kill()
	client := waitReady(t, ctx, golden)
	output(t, ctx, client, "sh", "-c", "echo golden > /tmp/file")
	must(t, client.Quiesce(ctx))
	client.Close()
	must(t, golden.Pause(ctx))
	state := vmm.State{Memory: filepath.Join(cfg.Dir, "golden.memory"), State: filepath.Join(cfg.Dir, "golden.state")}
	must(t, golden.Capture(ctx, state))
	must(t, golden.Kill())
	scratch, err := os.ReadFile(cfg.Scratch)
	must(t, err)
	before := filepath.Join(cfg.Dir, "before")
	must(t, artifact.CopySparse(ctx, before, state.Memory))

	t.Run("private clones", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				m := s.restore(t, ctx, state, scratch, fmt.Sprint("clone", i))
				if m == nil {
					return
				}
				defer m.Kill()
				must(t, m.Resume(ctx))
				client := waitReady(t, ctx, m)
				if got := output(t, ctx, client, "cat", "/tmp/file"); got != "golden\n" {
					t.Errorf("clone %d sees %q", i, got)
				}
				want := fmt.Sprintln(i)
				output(t, ctx, client, "sh", "-c", fmt.Sprintf("echo %d > /tmp/file", i))
				if got := output(t, ctx, client, "cat", "/tmp/file"); got != want {
					t.Errorf("clone %d sees %q of its own, want %q", i, got, want)
				}
			})
		}
		wg.Wait()
		if !same(t, state.Memory, before) {
			t.Error("clones changed the golden memory")
		}
	})

	t.Run("paused until resumed", func(t *testing.T) {
		m := s.restore(t, ctx, state, scratch, "paused")
		if m == nil {
			return
		}
		defer m.Kill()
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		if conn, err := m.Dial(short); err == nil {
			conn.Close()
			t.Error("a restored machine answers before Resume")
		}
		must(t, m.Resume(ctx))
		waitReady(t, ctx, m)
	})

	t.Run("a clone is captured", func(t *testing.T) { s.captureClone(t, ctx, saved{state, cfg.Scratch}) })
	if !same(t, state.Memory, before) {
		t.Error("the capture of a clone changed the golden memory")
	}
	t.Run("called before it runs", func(t *testing.T) {
		m := s.restore(t, ctx, state, scratch, "called")
		if m == nil {
			return
		}
		defer m.Kill()
		s.calls(t, ctx, m)
	})

	t.Run("damaged state is refused", func(t *testing.T) {
		whole, err := os.ReadFile(state.State)
		must(t, err)
		for name, content := range map[string][]byte{
			"empty": {}, "truncated": whole[:len(whole)/2], "not a state": bytes.Repeat([]byte("x"), len(whole)),
		} {
			bad := vmm.State{Memory: state.Memory, State: filepath.Join(cfg.Dir, "bad")}
			must(t, os.WriteFile(bad.State, content, 0o600))
			if m, err := s.driver.Restore(ctx, s.config(t, "bad"), bad); err == nil {
				t.Errorf("%s: restored", name)
				m.Kill()
			}
		}
		short := vmm.State{Memory: filepath.Join(cfg.Dir, "short"), State: state.State}
		must(t, os.WriteFile(short.Memory, make([]byte, 4096), 0o600))
		if m, err := s.driver.Restore(ctx, s.config(t, "bad"), short); err == nil {
			t.Error("truncated memory: restored")
			m.Kill()
		}
	})
}

func (s *suite) restore(t *testing.T, ctx context.Context, state vmm.State, scratch []byte, name string) vmm.Machine {
	t.Helper()
	cfg := s.config(t, name)
	must(t, os.WriteFile(cfg.Scratch, scratch, 0o600))
	m, err := s.driver.Restore(ctx, cfg, state)
	if err != nil {
		t.Errorf("restore %s: %v", name, err)
		return nil
	}
	return m
}

func (s *suite) refusals(t *testing.T) {
	t.Run("cancelled before it starts", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if m, err := s.driver.Boot(ctx, s.config(t, "cancelled")); err == nil {
			t.Error("Boot succeeded")
			m.Kill()
		}
	})
	t.Run("no such disk", func(t *testing.T) {
		cfg := s.config(t, "nodisk")
		cfg.Rootfs = filepath.Join(cfg.Dir, "missing")
		m, err := s.driver.Boot(t.Context(), cfg)
		if err == nil {
			m.Kill()
			t.Fatal("Boot succeeded")
		}
		if !strings.Contains(err.Error(), "missing") {
			t.Errorf("the error does not name the disk: %v", err)
		}
	})
	t.Run("a guest that panics ends", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cfg := s.config(t, "panic")
		cfg.Rootfs = testkit.ScratchDisk(t, 8) // no root filesystem for the daemon
		must(t, os.Truncate(cfg.Rootfs, 0))
		must(t, os.Truncate(cfg.Rootfs, 8<<20))
		m, err := s.driver.Boot(ctx, cfg)
		must(t, err)
		defer m.Kill()
		if _, err := m.Dial(ctx); err == nil {
			t.Error("Dial reaches a guest without a root filesystem")
		}
		select {
		case <-m.Done():
		case <-ctx.Done():
			t.Error("the VMM goes on after the guest has ended")
		}
		if log, err := os.ReadFile(m.ConsoleLog()); err != nil || len(log) == 0 {
			t.Errorf("console log: %d bytes, %v", len(log), err)
		}
	})
}

func waitReady(t *testing.T, ctx context.Context, m vmm.Machine) *guest.Client {
	t.Helper()
	client := guest.New(m.Dial)
	t.Cleanup(client.Close)
	if err := client.WaitReady(ctx); err != nil {
		log, _ := os.ReadFile(m.ConsoleLog())
		t.Fatalf("%v\nconsole:\n%s", err, log)
	}
	return client
}

func output(t *testing.T, ctx context.Context, client *guest.Client, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	exit, err := client.Run(ctx, guest.Command{Args: args, Stdout: &stdout, Stderr: &stderr})
	if err != nil || exit.Code != 0 {
		t.Errorf("%v: %+v, %v %s", args, exit, err, stderr.String())
	}
	return stdout.String()
}

// same reports whether two files have the same content.
func same(t *testing.T, a, b string) bool {
	t.Helper()
	var files [2]*os.File
	for i, path := range []string{a, b} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	for x, y := make([]byte, 1<<20), make([]byte, 1<<20); ; {
		n, errX := io.ReadFull(files[0], x)
		m, errY := io.ReadFull(files[1], y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false
		}
		if errX != nil || errY != nil {
			return errors.Is(errX, io.EOF) && errors.Is(errY, io.EOF) || n < len(x) && n == m
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
