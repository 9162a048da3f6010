package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kilnvm/kiln/internal/telemetry/telemetrytest"
	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// TestMainJob is the promise of the README: a Dockerfile that was not written for Kiln
// becomes a template, and clones of it run commands.
func TestMainJob(t *testing.T) {
	traces := telemetrytest.New(t)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "100") // milliseconds until spans are sent
	s := newServerWith(t, "[telemetry]\nendpoint = \""+traces.GRPC+"\"\nprotocol = \"grpc\"\n")
	dir := writeFiles(t, map[string]string{
		"Dockerfile": `# syntax=docker/dockerfile:1
ARG RELEASE=bookworm-slim
FROM debian:${RELEASE} AS tools
RUN <<SCRIPT
set -e
mkdir -p /out
printf '#!/bin/sh\necho built in a stage\n' > /out/tool
chmod 4755 /out/tool
SCRIPT

FROM debian:bookworm-slim
ARG WHO=nobody
LABEL who=$WHO
RUN --mount=type=cache,target=/var/cache/apt --mount=type=cache,target=/var/lib/apt/lists \
    apt-get update && apt-get install -y --no-install-recommends python3-minimal
COPY --from=tools /out/tool /usr/local/bin/tool
COPY data/ /srv/data/
RUN useradd --create-home maker && mkdir -p /home/agent && echo skeleton > /home/agent/.profile
USER maker
WORKDIR /srv/data
ENV FORTY_TWO=42
`,
		"data/a.txt":      "alpha\n",
		"data/ignored.md": "not copied\n",
		".dockerignore":   "**/*.md\n",
	})

	out := s.must("templates", "build", "my-ml", dir, "--build-arg", "WHO=me")
	for _, want := range []string{"python3-minimal", "image", "rootfs", "snapshot"} {
		if !strings.Contains(out, want) {
			t.Errorf("the build's output does not mention %q:\n%s", want, out)
		}
	}

	t.Run("commands", func(t *testing.T) {
		for _, c := range []struct {
			name, want string
			args       []string
			code       int
		}{
			{"the README's line", "42\n", []string{"python3", "-c", "print(40+2)"}, 0},
			{"image environment", "42\n", []string{"printenv", "FORTY_TWO"}, 0},
			{"image user", "maker\n", []string{"id", "-un"}, 0},
			{"image folder", "/srv/data\n", []string{"pwd"}, 0},
			{"context with .dockerignore", "a.txt\n", []string{"ls"}, 0},
			{"other stage", "built in a stage\n", []string{"tool"}, 0},
			{"setuid survives", "4755\n", []string{"stat", "-c", "%a", "/usr/local/bin/tool"}, 0},
			{"agent skeleton", "skeleton\n", []string{"cat", "/etc/skel/agent-skel/.profile"}, 0},
			{"exit code", "", []string{"sh", "-c", "exit 7"}, 7},
			{"killed by a signal", "", []string{"sh", "-c", "kill -9 $$"}, 137},
			{"missing command", "", []string{"no-such-command"}, 127},
		} {
			t.Run(c.name, func(t *testing.T) {
				r := s.kiln(append([]string{"sandbox", "run", "-t", "my-ml", "--"}, c.args...)...)
				if r.stdout != c.want || r.code != c.code {
					t.Errorf("printed %q and exited with %d, want %q and %d\n%s", r.stdout, r.code, c.want, c.code, r.stderr)
				}
			})
		}
	})

	t.Run("clones are private", func(t *testing.T) {
		const n = 4
		var wg sync.WaitGroup
		seen := make([]string, n)
		for i := range n {
			wg.Go(func() {
				r := s.kiln("sandbox", "run", "-t", "my-ml", "--", "sh", "-c",
					fmt.Sprintf("echo %d > /tmp/mine; sleep 0.2; cat /tmp/mine /proc/sys/kernel/random/uuid /etc/machine-id; hostname", i))
				seen[i] = r.stdout
				if !strings.HasPrefix(r.stdout, fmt.Sprintf("%d\n", i)) {
					t.Errorf("clone %d saw %q %s", i, r.stdout, r.stderr)
				}
			})
		}
		wg.Wait()
		lines := map[string]bool{}
		for _, out := range seen {
			for _, line := range strings.Fields(out) {
				if lines[line] {
					t.Errorf("two clones both have %q", line)
				}
				lines[line] = true
			}
		}
	})

	t.Run("rebuild without change is a no-op", func(t *testing.T) {
		r := s.kiln("templates", "rebuild", "my-ml")
		if r.code != 0 || !strings.Contains(r.stdout+r.stderr, "no change") {
			t.Errorf("rebuild: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
		}
		var shown struct {
			Version int `json:"version"`
		}
		if err := json.Unmarshal([]byte(s.must("templates", "show", "my-ml", "-o", "json")), &shown); err != nil || shown.Version != 1 {
			t.Errorf("version after a no-op rebuild: %d, %v", shown.Version, err)
		}
	})

	t.Run("files in and out", func(t *testing.T) {
		id := strings.TrimSpace(s.must("sandbox", "create", "-t", "my-ml"))
		defer s.must("sandbox", "destroy", id)
		in := filepath.Join(t.TempDir(), "in.bin")
		content := make([]byte, 3<<20)
		for i := range content {
			content[i] = byte(i * 7)
		}
		if err := os.WriteFile(in, content, 0o640); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "out.bin")
		s.must("sandbox", "upload", id, in, "/tmp/in.bin")
		s.must("sandbox", "exec", id, "--", "cp", "/tmp/in.bin", "/tmp/out.bin")
		s.must("sandbox", "download", id, "/tmp/out.bin", out)
		got, err := os.ReadFile(out)
		if err != nil || string(got) != string(content) {
			t.Errorf("a file of %d bytes came back as %d bytes, %v", len(content), len(got), err)
		}

		// Files and folders alike are moved with root's rights and belong to the user.
		folder := filepath.Join(t.TempDir(), "kept")
		if err := os.MkdirAll(filepath.Join(folder, "sub"), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "sub", "note"), []byte("kept"), 0o600); err != nil {
			t.Fatal(err)
		}
		s.must("sandbox", "upload", id, filepath.Join(folder, "sub", "note"), "/etc/one/note")
		s.must("sandbox", "upload", id, folder, "/etc/")
		if out := s.must("sandbox", "exec", id, "--", "stat", "-c", "%U %a", "/etc/one/note", "/etc/kept/sub", "/etc/kept/sub/note"); out != "maker 600\nmaker 750\nmaker 600\n" {
			t.Errorf("owners and modes of what was uploaded:\n%s", out)
		}
		s.must("sandbox", "exec", id, "-u", "root", "--", "sh", "-c", "mkdir -m 700 /etc/hidden && echo all >/etc/hidden/note")
		s.must("sandbox", "download", id, "/etc/hidden", folder)
		if got, err := os.ReadFile(filepath.Join(folder, "hidden", "note")); err != nil || string(got) != "all\n" {
			t.Errorf("a folder that only root reads came back with %q, %v", got, err)
		}
	})

	t.Run("warm slots and commands", func(t *testing.T) { checkCommands(t, s.in(t), "my-ml") })
	t.Run("metrics", func(t *testing.T) { checkMetrics(t, s.in(t), "my-ml") })
	t.Run("traces", func(t *testing.T) { checkTraces(t, s.in(t), traces, "my-ml") })

	t.Run("versions are compared", func(t *testing.T) {
		if out := s.must("templates", "diff", "my-ml@1", "my-ml"); out != "" {
			t.Errorf("a version differs from itself:\n%s", out)
		}
		r := s.kiln("templates", "diff", "my-ml@1", "my-ml@9")
		if r.code == 0 || !strings.Contains(r.stderr, "has no version 9") {
			t.Errorf("version that is not there: exit code %d\n%s", r.code, r.stderr)
		}
		if out := s.must("rootfs", "cat", "my-ml", "/srv/data/a.txt"); out != "alpha\n" {
			t.Errorf("the file in the image has %q", out)
		}
	})

	t.Run("a failed rebuild keeps the old version", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM debian:bookworm-slim\nRUN echo about to fail $((6*7)); exit 3\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		r := s.kiln("templates", "build", "my-ml", dir)
		if r.code == 0 || !strings.Contains(r.stderr, "Dockerfile:2") || !strings.Contains(r.stdout+r.stderr, "about to fail") {
			t.Errorf("failing build: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
		}
		checkLogsApart(t, s.in(t), "my-ml", "about to fail 42")
		if got := s.must("sandbox", "run", "-t", "my-ml", "--", "printenv", "FORTY_TWO"); got != "42\n" {
			t.Errorf("after a failed rebuild a sandbox printed %q", got)
		}
	})
}

// checkLogsApart: what a build printed is in the log of its user and not in that of the
// server's operator, and the other way round.
func checkLogsApart(t *testing.T, s *server, template, printed string) {
	t.Helper()
	operators, err := os.ReadFile(filepath.Join(filepath.Dir(s.dataDir), "server.log"))
	if err != nil {
		t.Fatal(err)
	}
	users := s.must("templates", "logs", template)
	if !strings.Contains(users, printed) || strings.Contains(string(operators), printed) {
		t.Errorf("%q: the user's log has\n%s\nthe operator's\n%s", printed, users, operators)
	}
	if !strings.Contains(string(operators), `msg="build failed"`) {
		t.Errorf("the operator's log does not say how a build ended:\n%s", operators)
	}
	for _, word := range []string{"level=", "msg=", s.dataDir} {
		if strings.Contains(users, word) {
			t.Errorf("the user's log holds %q:\n%s", word, users)
		}
	}
}

func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
