package test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm"
	"github.com/kilnvm/kiln/internal/vmm/qemu"
	"github.com/kilnvm/kiln/internal/vmm/vmmtest"
)

// A template with a service of its own and, so that systemd is degraded, one that fails.
const systemdDockerfile = `FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends systemd systemd-sysv dbus && rm -rf /var/lib/apt/lists/*
COPY <<EOT /etc/systemd/system/greeter.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo hello > /var/greeting'
[Install]
WantedBy=multi-user.target
EOT
COPY <<EOT /etc/systemd/system/broken.service
[Service]
Type=oneshot
ExecStart=/bin/false
[Install]
WantedBy=multi-user.target
EOT
RUN systemctl enable greeter.service broken.service
`

// TestSystemd builds a template that boots its own systemd and uses clones of it.
func TestSystemd(t *testing.T) {
	s := newServer(t)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"Dockerfile":         systemdDockerfile,
		"kiln-template.toml": "init = \"systemd\"\ndefault_size = \"shared-cpu-1x\"\nready_cmd = \"test -e /var/greeting\"\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	built := s.kiln("templates", "build", "own-init", dir)
	if built.code != 0 {
		t.Fatalf("build: exit code %d\n%s%s\n%s", built.code, built.stdout, built.stderr, s.logText())
	}
	t.Log(built.stderr)
	if want := "these units failed: broken.service\n"; !strings.Contains(built.stdout+built.stderr, want) {
		t.Errorf("the log of the build does not say %q:\n%s%s", want, built.stdout, built.stderr)
	}

	seen := map[string]bool{}
	for _, last := range []bool{false, true} {
		id := strings.TrimSpace(s.must("sandbox", "create", "-t", "own-init", "--boot-mode", "snapshot", "--ttl", "10m"))
		sh := func(script string) string {
			return strings.TrimSpace(s.must("sandbox", "exec", id, "--", "sh", "-c", script))
		}
		if got := sh("cat /proc/1/comm; cat /var/greeting; systemctl is-active kiln-sandboxd greeter"); got != "systemd\nhello\nactive\nactive" {
			t.Errorf("process 1, greeting and services: %q", got)
		}
		if got := sh("systemctl is-system-running || systemctl list-units --failed --plain --no-legend | cut -d' ' -f1"); got != "degraded\nbroken.service" {
			t.Errorf("the system is %q", got)
		}
		if got := sh("hostname; cat /etc/hostname"); got != id+"\n"+id {
			t.Errorf("host names %q, want %q", got, id)
		}
		for _, file := range []string{"/etc/machine-id", "/proc/sys/kernel/random/boot_id"} {
			name := sh("cat " + file)
			if seen[name] || len(name) < 32 || strings.Trim(name, "0-") == "" {
				t.Errorf("%s: %q", file, name)
			}
			seen[name] = true
		}
		if last {
			s.endWithTheDaemon(id)
		} else {
			s.must("sandbox", "destroy", id)
		}
	}
	t.Run("shutdown", func(t *testing.T) { testSystemdShutdown(t, s.in(t)) })
}

// endWithTheDaemon checks that no second daemon, which would ask for no token, ever answers: the
// VM ends with the first one.
func (s *server) endWithTheDaemon(id string) {
	s.t.Helper()
	for _, verb := range []string{"restart", "stop"} {
		if r := s.kiln("sandbox", "exec", id, "--", "systemctl", verb, "kiln-sandboxd"); !strings.Contains(r.stderr, "refused") {
			s.t.Errorf("systemctl %s: exit code %d, %s%s", verb, r.code, r.stdout, r.stderr)
		}
	}
	if r := s.kiln("sandbox", "exec", id, "--", "sh", "-c", "test ! -e /run/kiln/kiln-sandboxd"); r.code != 0 {
		s.t.Errorf("the program of the daemon is still there: %s", r.stderr)
	}
	const script = "(trap '' TERM; sleep 1000) & kill -KILL $(systemctl show --property=MainPID --value kiln-sandboxd)"
	if r := s.kiln("sandbox", "exec", id, "--", "sh", "-c", script); r.code == 0 {
		s.t.Errorf("the command that killed the daemon succeeded: %s%s", r.stdout, r.stderr)
	}
	ended := "msg=\"sandbox ended\" sandbox=" + id + " status=failed"
	for begun := time.Now(); !strings.Contains(s.logText(), ended); time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > time.Minute {
			s.t.Fatalf("the VM did not end with its daemon\n%s", s.logText())
		}
	}
}

// testSystemdShutdown boots the template by itself and asks its daemon to end the VM.
func testSystemdShutdown(t *testing.T, s *server) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	driver, err := qemu.New(ctx, qemu.Options{Accel: qemu.TCG})
	if err != nil {
		t.Fatal(err)
	}
	rootfs := filepath.Join(testkit.ShortTempDir(t), "rootfs")
	if err := artifact.CopySparse(ctx, rootfs, s.rootfsOf("own-init")); err != nil {
		t.Fatal(err)
	}
	machine, client, end := vmmtest.Boot(ctx, t, driver, vmm.Config{
		ID: "systemd", Dir: testkit.ShortTempDir(t), Boot: testkit.BootBundle(t), Size: kiln.Sizes()[0],
		Rootfs: rootfs, Scratch: testkit.ScratchDisk(t, 128), Init: kiln.InitSystemd,
	})
	defer end()
	if err := client.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-machine.Done():
		if err := machine.Err(); err != nil {
			t.Errorf("the VM ended with %v", err)
		}
	case <-ctx.Done():
		console, _ := os.ReadFile(machine.ConsoleLog())
		t.Errorf("the VM does not stop\n%s", console)
	}
}

// rootfsOf returns the file of the root filesystem of a template's newest version.
func (s *server) rootfsOf(template string) string {
	s.t.Helper()
	var versions []kiln.Version
	if err := json.Unmarshal([]byte(s.must("templates", "versions", template, "-o", "json")), &versions); err != nil {
		s.t.Fatal(err)
	}
	blobs, err := artifact.Open(filepath.Join(s.dataDir, "blobs"))
	if err != nil {
		s.t.Fatal(err)
	}
	return blobs.Path(versions[0].Rootfs.Digest)
}
