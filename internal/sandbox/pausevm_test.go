package sandbox

import (
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
)

// One sandbox of real VMs through pauses, forks and the end of its server: what it had in
// memory, on its disk and under way is there each time, and its clock is right.
func TestRealPauseForkAndRestart(t *testing.T) {
	h := newVMHost(t, func(v *kiln.Version) { v.Metadata.PostRestore = "echo $(hostname) >>/run/hook" })
	s := h.create(t, hello())
	h.run(t, s.ID, `head -c 3000000 /dev/urandom >/run/m; md5sum /run/m >/run/sum; echo kept >/root/f
(n=0; while :; do n=$((n+1)); echo $n >/run/count; sleep 0.02; done) </dev/null >/dev/null 2>&1 &
cat /etc/machine-id >/run/id`)
	const whole = "md5sum -c /run/sum >/dev/null && cat /root/f && a=$(cat /run/count) && while [ \"$(cat /run/count)\" = \"$a\" ]; do sleep 0.02; done"
	check := func(id string) {
		t.Helper()
		if out := h.run(t, id, whole); out != "kept\n" {
			t.Errorf("it has %q", out)
		}
		if skew := h.skew(t, id); skew.Abs() > 100*time.Millisecond {
			t.Errorf("its clock is %s off", skew)
		}
	}
	pause := func() {
		t.Helper()
		begun := time.Now()
		if _, err := h.Pause(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		t.Logf("paused in %s", time.Since(begun))
		begun = time.Now()
		h.run(t, s.ID, "true")
		t.Logf("awake, and a command run, in %s", time.Since(begun))
	}
	for range 2 {
		pause()
		check(s.ID)
	}
	if out := h.run(t, s.ID, "cmp /run/id /etc/machine-id && cat /run/hook"); out != s.ID+"\n" {
		t.Errorf("a pause changed the machine's ID, or ran the hook again: %q", out)
	}

	begun := time.Now()
	forked, err := h.Fork(t.Context(), s.ID, ForkRequest{Count: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("forked in %s", time.Since(begun))
	const unique = "head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id /etc/machine-id"
	seen := map[string]bool{}
	note := func(id string) {
		t.Helper()
		for line := range strings.Lines(h.run(t, id, unique)) {
			if seen[line] {
				t.Errorf("two forks have %q", line)
			}
			seen[line] = true
		}
	}
	note(s.ID)
	for _, f := range forked {
		if f.Err != nil {
			t.Fatal(f.Err)
		}
		check(f.Sandbox.ID)
		note(f.Sandbox.ID)
		if out := h.run(t, f.Sandbox.ID, "hostname; cat /run/hook; rm /run/m /root/f"); out != f.Sandbox.ID+"\n"+s.ID+"\n"+f.Sandbox.ID+"\n" {
			t.Errorf("the fork says %q", out)
		}
		if err := h.Destroy(t.Context(), f.Sandbox.ID); err != nil {
			t.Fatal(err)
		}
	}
	check(s.ID) // what the forks removed is theirs

	if _, err := h.Pause(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h.Manager, err = New(h.opts); err != nil {
		t.Fatal(err)
	}
	if err := h.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(s.ID)
}

// A sandbox that booted cold can be paused as well.
func TestRealPauseAfterColdBoot(t *testing.T) {
	h := newVMHost(t, nil)
	req := hello()
	req.BootMode = kiln.BootCold
	s := h.create(t, req)
	h.run(t, s.ID, "echo memory >/run/f; echo disk >/root/f")
	if _, err := h.Pause(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if out := h.run(t, s.ID, "cat /run/f /root/f"); out != "memory\ndisk\n" {
		t.Errorf("it has %q", out)
	}
}
