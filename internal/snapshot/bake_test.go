package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/orphan"
	"github.com/kilnvm/kiln/internal/ready"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm"
	"github.com/kilnvm/kiln/internal/vmm/fakevm"
)

// kitchen is a baker of fake machines whose guest daemon is the real one.
type kitchen struct {
	*Baker
	driver *fakevm.Driver
	guests *fakevm.Guests
	spec   kiln.VMSpec
}

func newKitchen(t *testing.T) *kitchen {
	t.Helper()
	dir := testkit.ShortTempDir(t)
	blobs, err := artifact.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	k := &kitchen{guests: &fakevm.Guests{}}
	k.driver = &fakevm.Driver{Version: "1", Serve: k.guests.Serve}
	k.Baker, err = New(t.Context(), Options{
		Driver: k.driver, Blobs: blobs, Dir: filepath.Join(dir, "bake"),
		Ready: ready.Limits{Ready: 2 * time.Second, Attempt: time.Second, Settle: time.Second},
	})
	if err != nil {
		t.Fatal(err)
	}
	rootfs := filepath.Join(dir, "rootfs")
	if err := os.WriteFile(rootfs, []byte("rootfs"), 0o600); err != nil {
		t.Fatal(err)
	}
	size, err := kiln.SizeByName(kiln.DefaultSizeName)
	if err != nil {
		t.Fatal(err)
	}
	k.spec = kiln.VMSpec{Size: size, ScratchMB: 16}
	if k.spec.Rootfs, err = blobs.Ingest(t.Context(), rootfs, kiln.RoleRootfs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		checkNothingLeft(t, k.Baker)
		if left, err := orphan.Holders(dir); err != nil || len(left) > 0 {
			t.Errorf("processes %v are left, error %v", left, err)
		}
	})
	return k
}

func TestFaultsOfTheTemplateAreBuildErrors(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*kitchen)
		says   []string
		code   int
		output string
	}{
		"ready_cmd never succeeds": {
			change: func(k *kitchen) { k.spec.ReadyCmd = "echo not yet >&2; exit 7" },
			says:   []string{"ready_cmd", "echo not yet", "within 2s", "exit code 7"}, code: 7, output: "not yet",
		},
		"ready_cmd hangs": {
			change: func(k *kitchen) { k.spec.ReadyCmd = "echo waiting; exec sleep 60" },
			says:   []string{"ready_cmd", "signal KILL"}, code: 137, output: "waiting",
		},
		"start_cmd fails": {
			change: func(k *kitchen) { k.spec.StartCmd = "echo no such model; exit 4" },
			says:   []string{"start_cmd", "exit code 4"}, code: 4, output: "no such model",
		},
		"start_cmd fails while ready_cmd waits": {
			change: func(k *kitchen) { k.spec.StartCmd, k.spec.ReadyCmd = "sleep 0.3; echo crash; exit 5", "false" },
			says:   []string{"start_cmd", "exit code 5"}, code: 5, output: "crash",
		},
		"unknown user": {
			change: func(k *kitchen) { k.spec.Config.User = "nobody-has-this-name" },
			says:   []string{"nobody-has-this-name", "Dockerfile"},
		},
		"open connection": {
			change: func(k *kitchen) { k.guests.Connections = []string{"10.0.0.2:4242 -> 1.2.3.4:443 (curl)"} },
			says:   []string{"1.2.3.4:443", "dead in every sandbox"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKitchen(t)
			c.change(k)
			_, err := k.Bake(t.Context(), k.spec, &lines{t: t})
			var mistake *kiln.BuildError
			if !errors.As(err, &mistake) {
				t.Fatalf("error %v (%T) is not a build error", err, err)
			}
			for _, want := range c.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if mistake.ExitCode != c.code || mistake.Stage != kiln.StageSnapshot {
				t.Errorf("exit code %d of stage %s, want %d", mistake.ExitCode, mistake.Stage, c.code)
			}
			if got := strings.Join(mistake.Output, "\n"); got != c.output {
				t.Errorf("output %q, want %q", got, c.output)
			}
		})
	}
}

func TestGoodCommands(t *testing.T) {
	for name, c := range map[string]struct{ start, ready string }{
		"none":                {},
		"daemonises":          {start: "true", ready: "true"},
		"start only":          {start: "sleep 60"},
		"ready only":          {ready: "true"},
		"ready after a while": {start: "sleep 60", ready: "test $(date +%s%N) -gt " + soon()},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKitchen(t)
			k.spec.StartCmd, k.spec.ReadyCmd = c.start, c.ready
			if _, err := k.Bake(t.Context(), k.spec, &lines{t: t}); err != nil {
				t.Error(err)
			}
		})
	}
}

// soon is a moment in the near future, in nanoseconds.
func soon() string { return strconv.FormatInt(time.Now().Add(500*time.Millisecond).UnixNano(), 10) }

// Every step fails in turn, and by a cancelled request in turn. The check for leftovers
// is newKitchen's.
func TestFailedBakeLeavesNothing(t *testing.T) {
	boom := errors.New("boom")
	for _, step := range []string{"boot", "dial", "pause", "capture", "restore", "resume"} {
		t.Run(step, func(t *testing.T) {
			k := newKitchen(t)
			k.opts.BootTimeout = time.Second // a daemon that cannot be dialled is waited for
			k.driver.Step = func(_ context.Context, s string) error {
				if s == step {
					return boom
				}
				return nil
			}
			_, err := k.Bake(t.Context(), k.spec, kiln.DiscardProgress)
			if kiln.CodeOf(err) == kiln.CodeBuildFailed || err == nil {
				t.Errorf("our fault is reported as the user's: %v", err)
			}
			if step == "dial" && (kiln.CodeOf(err) != kiln.CodeTimeout || !strings.Contains(err.Error(), "boot took longer than 1s")) {
				t.Errorf("a guest that does not answer in time: %v", err)
			}
			checkNothingLeft(t, k.Baker)

			ctx, cancel := context.WithCancel(t.Context())
			k.driver.Step = func(ctx context.Context, s string) error {
				if s == step {
					cancel()
					<-ctx.Done()
				}
				return ctx.Err()
			}
			if _, err := k.Bake(ctx, k.spec, kiln.DiscardProgress); err == nil {
				t.Error("a cancelled bake succeeds")
			}
		})
	}
}

func TestVMThatDiesEndsTheBakeAtOnce(t *testing.T) {
	k := newKitchen(t)
	k.spec.ReadyCmd = "false"
	begun := time.Now()
	k.opts.Ready.Ready = time.Minute
	_, err := k.Bake(t.Context(), k.spec, killer{t, k.opts.Dir, unix.SIGKILL})
	if err == nil || !strings.Contains(err.Error(), "VM ended") || kiln.CodeOf(err) == kiln.CodeBuildFailed {
		t.Errorf("error %v", err)
	}
	if d := time.Since(begun); d > 20*time.Second {
		t.Errorf("it took %s", d)
	}
}

// A guest that is lost is our fault, which a build tries again.
func TestLostGuestIsOurFault(t *testing.T) {
	k := newKitchen(t)
	k.driver.Step = func(_ context.Context, s string) error {
		if s == "pause" {
			return &kiln.Error{Code: kiln.CodeUnavailable, Message: "the sandbox is gone", Err: guest.ErrGone}
		}
		return nil
	}
	if _, err := k.Bake(t.Context(), k.spec, kiln.DiscardProgress); kiln.CodeOf(err) != kiln.CodeInternal || !errors.Is(err, guest.ErrGone) {
		t.Errorf("error %v", err)
	}
}

// A template that switches its VM off is at fault, and is not built again and again.
func TestVMThatIsSwitchedOffIsTheTemplatesFault(t *testing.T) {
	k := newKitchen(t)
	k.spec.ReadyCmd = "false"
	k.opts.Ready.Ready = time.Minute
	_, err := k.Bake(t.Context(), k.spec, killer{t, k.opts.Dir, unix.SIGTERM})
	if kiln.CodeOf(err) != kiln.CodeBuildFailed || !strings.Contains(err.Error(), "switched itself off") {
		t.Errorf("error %v", err)
	}
}

// killer ends the VM when the ready command is about to be waited for.
type killer struct {
	t   *testing.T
	dir string
	how unix.Signal
}

func (k killer) Log(_ kiln.Stage, line string) {
	if !strings.HasPrefix(line, "ready_cmd: ") {
		return
	}
	vms, err := orphan.Holders(k.dir)
	if len(vms) != 1 || err != nil {
		k.t.Fatalf("VMs %v, error %v", vms, err)
	}
	if err := unix.Kill(vms[0].PID, k.how); err != nil {
		k.t.Error(err)
	}
}

// What a baker that was killed left is gone when the next one starts, VMs included.
func TestNewSweeps(t *testing.T) {
	k := newKitchen(t)
	dir := filepath.Join(k.opts.Dir, "b-of-a-dead-server")
	if err := os.MkdirAll(filepath.Join(dir, "vm"), 0o700); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, liveDisk)
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	machine, err := k.driver.Boot(t.Context(), vmm.Config{
		Dir: filepath.Join(dir, machineName), Scratch: disk, Rootfs: k.opts.Blobs.Path(k.spec.Rootfs.Digest),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), k.opts); err != nil {
		t.Fatal(err)
	}
	<-machine.Done()
}

func TestHazard08KeyCoversTheHost(t *testing.T) {
	k := newKitchen(t)
	before := k.Key(k.spec)
	k.driver.Version = "2"
	if k.Key(k.spec) == before {
		t.Error("another VMM version, the same key")
	}
	k.driver.Version = "1"
	k.opts.Boot.Digest = "sha256:other"
	if k.Key(k.spec) == before {
		t.Error("another boot bundle, the same key")
	}
}
