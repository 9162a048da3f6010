package guest_test

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/sandboxd/sandboxdtest"
)

// ways are how a clone can be given its identity.
var ways = map[string]func(*sandboxdtest.Daemon) *guest.Client{
	"request": func(d *sandboxdtest.Daemon) *guest.Client { return guest.New(d.Dial) },
	"call":    func(d *sandboxdtest.Daemon) *guest.Client { return guest.Of(d) },
}

func TestIdentity(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) { testIdentity(t, way) })
	}
}

func testIdentity(t *testing.T, way func(*sandboxdtest.Daemon) *guest.Client) {
	d := sandboxdtest.Start(t)
	c := way(d)
	t.Cleanup(c.Close)
	etc := filepath.Join(d.Root, "etc")
	if err := os.WriteFile(etc+"/hosts", []byte("127.0.0.1 localhost\n127.0.1.1 golden\n10.0.0.1 db"), 0o644); err != nil {
		t.Fatal(err)
	}
	entropy := bytes.Repeat([]byte{7}, 64)
	identity := kiln.Identity{Hostname: "i123", Entropy: entropy, AccessToken: "secret", Env: map[string]string{"K": "v"}}
	before := time.Now()
	if err := c.SetIdentity(t.Context(), identity); err != nil {
		t.Fatal(err)
	}
	calls := d.System.Calls()
	if want := []string{"AddEntropy", "SetClock", "SetHostname", "SetBootID"}; !slices.Equal(calls.Order, want) {
		t.Errorf("calls %v, want %v", calls.Order, want)
	}
	if !bytes.Equal(calls.Entropy[0], entropy) || calls.Hostnames[0] != "i123" {
		t.Errorf("%+v", calls)
	}
	if late := calls.Clocks[0].Sub(before); late < 0 || late > 100*time.Millisecond {
		t.Errorf("clock set to %v after the request began", late)
	}
	hosts, _ := os.ReadFile(etc + "/hosts")
	if want := "127.0.0.1 localhost\n10.0.0.1 db\n127.0.1.1\ti123\n"; string(hosts) != want {
		t.Errorf("hosts %q, want %q", hosts, want)
	}
	if name, _ := os.ReadFile(etc + "/hostname"); string(name) != "i123\n" {
		t.Errorf("hostname %q", name)
	}
	if got := sh(t, c, "echo $K"); got != "v\n" {
		t.Errorf("environment: %q", got)
	}
	// The token is asked for now; this client has it, another one has not.
	other := guest.New(d.Dial)
	defer other.Close()
	if _, err := other.Stat(t.Context(), "/"); kiln.CodeOf(err) != kiln.CodeUnauthorized {
		t.Errorf("without token: %v", err)
	}
	if err := other.SetIdentity(t.Context(), kiln.Identity{AccessToken: "stolen"}); kiln.CodeOf(err) != kiln.CodeUnauthorized {
		t.Errorf("init with another token: %v", err)
	}
	other.UseToken("secret")
	if _, err := other.Stat(t.Context(), "/"); err != nil {
		t.Errorf("with token: %v", err)
	}
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://any.host/envs", nil)
	answer, err := c.Transport().RoundTrip(r)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("transport: %v, %v", answer, err)
	}
	answer.Body.Close()
}

// An identity that is given as a call lands on files that were prepared before the capture,
// if the name is as long as names of sandboxes are, and is written the long way otherwise.
func TestIdentityOnPreparedFiles(t *testing.T) {
	for _, name := range []string{kiln.NewSandboxID(), "short", strings.Repeat("l", 60)} {
		d := sandboxdtest.Start(t)
		c := guest.Of(d)
		etc := filepath.Join(d.Root, "etc")
		if err := os.WriteFile(etc+"/hosts", []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := c.Quiesce(t.Context()); err != nil {
			t.Fatal(err)
		}
		blank, _ := os.ReadFile(etc + "/machine-id")
		if err := c.SetIdentity(t.Context(), kiln.Identity{Hostname: name, Entropy: make([]byte, 64), AccessToken: "secret"}); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(etc + "/hostname"); string(got) != name+"\n" {
			t.Errorf("hostname %q, want %q", got, name)
		}
		if got, _ := os.ReadFile(etc + "/hosts"); string(got) != "127.0.0.1 localhost\n127.0.1.1\t"+name+"\n" {
			t.Errorf("hosts %q", got)
		}
		id, _ := os.ReadFile(etc + "/machine-id")
		if !regexp.MustCompile(`^[0-9a-f]{32}\n$`).Match(id) || bytes.Equal(id, blank) {
			t.Errorf("machine-id %q, before %q", id, blank)
		}
		// To be captured again does not take its identity away.
		if err := c.Quiesce(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(etc + "/machine-id"); !bytes.Equal(got, id) {
			t.Errorf("machine-id %q after another capture, was %q", got, id)
		}
		c.Close()
	}
}

func TestHazard04IdentityDiffersBetweenClones(t *testing.T) {
	machineID := regexp.MustCompile(`^[0-9a-f]{32}\n$`)
	bootID := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[string]bool{}
	for i := range 20 {
		c, d := start(t)
		if i%2 == 1 {
			c = guest.Of(d)
			t.Cleanup(c.Close)
		}
		dbus := d.Root + "/var/lib/dbus"
		for path, text := range map[string]string{
			d.Root + "/etc/machine-id":               "0123456789abcdef0123456789abcdef\n",
			dbus + "/machine-id":                     "0123456789abcdef0123456789abcdef\n",
			d.Root + "/etc/ssh/ssh_host_rsa_key":     "golden",
			d.Root + "/etc/ssh/ssh_host_rsa_key.pub": "golden",
			d.Root + "/etc/ssh/ssh_host_ed25519_key": "golden",
		} {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o444); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.SetIdentity(t.Context(), kiln.Identity{Hostname: "clone", Entropy: make([]byte, 32)}); err != nil {
			t.Fatal(err)
		}
		machine, _ := os.ReadFile(d.Root + "/etc/machine-id")
		bus, _ := os.ReadFile(dbus + "/machine-id")
		key, _ := os.ReadFile(d.Root + "/etc/ssh/ssh_host_ed25519_key.pub")
		ids := d.System.Calls().BootIDs
		boot := ids[len(ids)-1]
		if !machineID.Match(machine) || !bytes.Equal(machine, bus) || !bootID.MatchString(boot) {
			t.Errorf("machine-id %q, %q; boot ID %q", machine, bus, boot)
		}
		if !slices.Equal(d.System.Calls().Reloads, []string{"sshd"}) {
			t.Error("sshd was not told to take up its new key")
		}
		if keys, _ := filepath.Glob(d.Root + "/etc/ssh/*"); len(keys) != 2 {
			t.Errorf("host keys left: %v", keys)
		}
		for _, id := range []string{string(machine), string(key), boot} {
			if seen[id] || strings.Contains(id, "golden") {
				t.Errorf("clone %d: %q is not its own", i, id)
			}
			seen[id] = true
		}
	}
}

func TestHazard06QuiesceRefusesOpenConnections(t *testing.T) {
	c, d := start(t)
	if err := c.Quiesce(t.Context()); err != nil || d.System.Calls().Syncs != 1 {
		t.Errorf("%v, %d syncs", err, d.System.Calls().Syncs)
	}
	d.System.Open("10.0.0.2:40000 to 192.0.2.1:443 of curl (process 12)")
	err := c.Quiesce(t.Context())
	if kiln.CodeOf(err) != kiln.CodeConflict || !strings.Contains(err.Error(), "192.0.2.1:443 of curl (process 12)") {
		t.Errorf("%v", err)
	}
}

func TestShutdownEndsCommandsInOrder(t *testing.T) {
	c, d := start(t)
	p, err := c.Start(t.Context(), guest.Command{Args: []string{"sh", "-c", "trap 'echo ended >" + d.Root + "/mark; exit 0' TERM; echo $$ >" + d.Root + "/up; while :; do sleep 0.02; done"}})
	if err != nil {
		t.Fatal(err)
	}
	sh(t, c, "until test -s "+d.Root+"/up; do sleep 0.01; done")
	if err := c.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-d.PoweredOff
	if mark, err := os.ReadFile(d.Root + "/mark"); string(mark) != "ended\n" {
		t.Errorf("the command was not asked to end: %q, %v", mark, err)
	}
	if exit, err := p.Wait(t.Context()); err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
	d.Stop()
}
