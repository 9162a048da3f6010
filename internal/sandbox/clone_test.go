package sandbox

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/testkit"
)

func TestRealSandbox(t *testing.T) {
	h := newVMHost(t, nil)
	for _, mode := range []kiln.BootMode{kiln.BootSnapshot, kiln.BootCold} {
		req := hello()
		req.Env = map[string]string{"ANSWER": "42"}
		s := h.create(t, req)
		if s.BootMode != mode {
			t.Errorf("boot mode %s, want %s", s.BootMode, mode)
		}
		t.Logf("%s: %s", s.BootMode, s.BootTime)
		if out := h.run(t, s.ID, "echo $ANSWER >/root/f; cat /root/f"); out != "42\n" {
			t.Errorf("%s: output %q", mode, out)
		}
		if err := h.Destroy(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		h.store.snapshots = nil
	}
}

// compare runs a command that prints one value per line in n clones, some at once, and
// fails the test when a value occurs twice.
func (h *vmHost) compare(t *testing.T, n int, command string) {
	t.Helper()
	var mu sync.Mutex
	seen := map[string]bool{}
	ids := make(chan struct{}, n)
	for range n {
		ids <- struct{}{}
	}
	close(ids)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range ids {
				s, err := h.Create(t.Context(), hello())
				if err != nil {
					t.Error(err)
					return
				}
				out := h.run(t, s.ID, command)
				mu.Lock()
				for line := range strings.Lines(out) {
					if seen[line] {
						t.Errorf("two clones have %q", line)
					}
					seen[line] = true
				}
				mu.Unlock()
				if err := h.Destroy(t.Context(), s.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d clones, %d different values", n, len(seen))
	if len(seen) < 3*n {
		t.Errorf("only %d values of %d clones", len(seen), n)
	}
}

func TestHazard01RandomStateOfClones(t *testing.T) {
	h := newVMHost(t, nil)
	h.compare(t, testkit.Rounds(8, 1000), `for i in 1 2 3; do head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; done
cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/random | od -An -tx1`)
}

// A generator of random numbers that a program seeded before the snapshot gives every clone
// the same numbers, unless the template's hook seeds it anew.
func TestHazard02GeneratorsOfPrograms(t *testing.T) {
	const (
		program = `mkfifo /run/ask; exec 3<>/run/ask
awk 'BEGIN { srand() } $1 == "seed" { srand($2); next } { for (i = 0; i < 4; i++) printf "%d ", 1e9 * rand(); print ""; fflush() }' <&3 >/run/said`
		ask    = `echo next >/run/ask; until read -r line </run/said; do sleep 0.05; done; echo "$line"`
		reseed = "echo seed $(head -c 4 /dev/urandom | od -An -tu4) >/run/ask"
	)
	for name, hook := range map[string]string{"without a hook": "", "with one": reseed} {
		t.Run(name, func(t *testing.T) {
			h := newVMHost(t, func(v *kiln.Version) {
				v.Metadata.StartCmd, v.Metadata.ReadyCmd, v.Metadata.PostRestore = program, "test -p /run/ask", hook
			})
			seen := map[string]int{}
			n := testkit.Rounds(2, 100)
			for range n {
				s := h.create(t, hello())
				out := h.run(t, s.ID, ask)
				if len(strings.Fields(out)) != 4 {
					t.Fatalf("the program said %q", out)
				}
				seen[out]++
				if err := h.Destroy(t.Context(), s.ID); err != nil {
					t.Fatal(err)
				}
			}
			if want := map[bool]int{false: 1, true: n}[hook != ""]; len(seen) != want {
				t.Errorf("%d clones said %d different things, want %d: %v", n, len(seen), want, seen)
			}
		})
	}
}

func TestHazard04NamesOfClones(t *testing.T) {
	h := newVMHost(t, func(v *kiln.Version) {
		// What an image with an SSH server has: keys that were made when it was built.
		v.Metadata.ReadyCmd = "mkdir -p /etc/ssh && echo golden >/etc/ssh/ssh_host_ed25519_key && echo golden >/etc/ssh/ssh_host_ed25519_key.pub"
	})
	h.compare(t, testkit.Rounds(3, 100), `echo machine $(cat /etc/machine-id); echo boot $(cat /proc/sys/kernel/random/boot_id)
echo host $(hostname) && grep -q $(hostname) /etc/hosts && test $(hostname) = $(cat /etc/hostname) || exit 1
cat /etc/ssh/ssh_host_ed25519_key.pub; md5sum </etc/ssh/ssh_host_ed25519_key`)
}

// The clock of a clone is right at hand-out, whenever its snapshot was made: the guest's
// clock is ten years off at capture, in both directions. So it is after a pause, however long
// that was, and in a warm slot, however long it waited.
func TestHazard03ClockOfClones(t *testing.T) {
	for name, when := range map[string]string{"old": "2016-11-24 00:00", "young": "2036-11-24 00:00"} {
		t.Run(name, func(t *testing.T) {
			h := newVMHost(t, func(v *kiln.Version) { v.Metadata.ReadyCmd = "date -s '" + when + "'" })
			check := func(what, id string) {
				t.Helper()
				if skew := h.skew(t, id); skew.Abs() > 100*time.Millisecond {
					t.Errorf("%s: the clock is %s off", what, skew)
				} else {
					t.Logf("%s: skew at most %s", what, skew)
				}
			}
			s := h.create(t, hello())
			check("restored", s.ID)
			h.run(t, s.ID, "date -s '"+when+"'") // as if it had been paused then
			if _, err := h.Pause(t.Context(), s.ID); err != nil {
				t.Fatal(err)
			}
			check("woken", s.ID)
			h.run(t, s.ID, "date -s '"+when+"'")
			forked, err := h.Fork(t.Context(), s.ID, ForkRequest{Count: 1})
			if err != nil || forked[0].Err != nil {
				t.Fatal(err, forked)
			}
			check("forked", forked[0].Sandbox.ID)
			h.warm.limits.Targets = map[string]int{"hello": 1}
			keepWarm(t, h.Manager)
			awaitWarm(t, h.Manager, "a slot", withReady(1)) // whose clock is the snapshot's
			check("claimed", h.create(t, CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", BootMode: kiln.BootWarm}).ID)
		})
	}
}

// skew lets the guest print its clock some times and returns by how much the quickest
// line was late, which bounds how far the clock is behind; a clock that is ahead gives
// negative values.
func (h *vmHost) skew(t *testing.T, id string) time.Duration {
	t.Helper()
	client, err := h.Guest(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	go func() {
		exit, err := client.Run(t.Context(), guest.Command{
			Args: []string{"/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do adjtimex 2>/dev/null | grep -E 'time.tv'; echo end; done"}, Stdout: w,
		})
		if err == nil && exit.Code != 0 {
			err = io.ErrUnexpectedEOF
		}
		w.CloseWithError(err)
	}()
	best := time.Duration(1 << 62)
	var sec, usec int64
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if lines.Text() == "end" {
			best = min(best, time.Since(time.Unix(sec, usec*1000)))
			continue
		}
		name, value, _ := strings.Cut(lines.Text(), ":")
		n, _ := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		switch strings.TrimSpace(name) {
		case "time.tv_sec":
			sec = n
		case "time.tv_usec":
			usec = n
		}
	}
	return best
}

// Nothing that belongs to a sandbox, and nothing of the server's own environment, is in
// the files that every clone is made from.
func TestHazard11NoSecretInArtifacts(t *testing.T) {
	const planted = "planted-in-the-servers-environment"
	t.Setenv("KILN_PLANTED", planted)
	h := newVMHost(t, func(v *kiln.Version) { v.Metadata.Env = map[string]string{"MARK": "known-to-be-inside"} })
	req := hello()
	req.Env = map[string]string{"API_KEY": "planted-in-a-sandbox"}
	s := h.create(t, req)
	if out := h.run(t, s.ID, "echo $API_KEY $MARK; echo $API_KEY >/root/f; sync"); !strings.Contains(out, "planted-in-a-sandbox known") {
		t.Fatalf("the sandbox has %q", out)
	}
	if err := h.Destroy(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if !h.inArtifacts(t, "known-to-be-inside") {
		t.Fatal("the search does not find what is there")
	}
	for _, secret := range []string{planted, "planted-in-a-sandbox", s.AccessToken, s.ID} {
		if h.inArtifacts(t, secret) {
			t.Errorf("%q is in the golden snapshot", secret)
		}
	}
}

func (h *vmHost) inArtifacts(t *testing.T, text string) bool {
	t.Helper()
	for _, blob := range []kiln.Blob{h.snap.Memory, h.snap.VMState, h.snap.Scratch} {
		content, err := os.ReadFile(h.blobs.Path(blob.Digest))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, []byte(text)) {
			return true
		}
	}
	return false
}

// A warm slot is a clone like any other once it is claimed: its own names, clock and random
// numbers, in its own control group, and nothing of the time in which it waited.
func TestWarmSlotsOfRealVMs(t *testing.T) {
	h := newVMHost(t, nil)
	h.warm.limits.Targets = map[string]int{"hello": 2}
	keepWarm(t, h.Manager)
	awaitWarm(t, h.Manager, "two slots", withReady(2))
	const facts = `cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id /etc/machine-id /etc/hostname`
	seen := map[string]string{}
	for range 2 {
		s := h.create(t, CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", BootMode: kiln.BootWarm})
		t.Logf("warm start in %s", s.BootTime)
		out := h.run(t, s.ID, facts)
		for _, fact := range strings.Fields(out) {
			if other, taken := seen[fact]; taken {
				t.Errorf("%q is the same in %s and %s", fact, other, s.ID)
			}
			seen[fact] = s.ID
		}
		if _, ok := seen[s.ID]; !ok {
			t.Errorf("sandbox %s has another host name: %s", s.ID, out)
		}
		seconds, err := strconv.ParseInt(strings.TrimSpace(h.run(t, s.ID, "date +%s")), 10, 64)
		if skew := time.Since(time.Unix(seconds, 0)); err != nil || skew < -time.Second || skew > 5*time.Second {
			t.Errorf("clock of %s is off by %s, error %v", s.ID, skew, err)
		}
	}
}
