package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnvm/kiln/internal/testkit"
)

// badInput is a mistake that a user can make, and what kiln has to say about it.
type badInput struct {
	name string
	args []string
	code int
	want []string // in standard error
}

// check runs the command. Whatever is wrong, kiln tells it in few lines, on standard
// error only, and soon.
func (s *server) check(t *testing.T, c badInput) {
	t.Helper()
	start := time.Now()
	r := s.kiln(c.args...)
	if r.code != c.code {
		t.Errorf("exit code %d, want %d\n%s%s", r.code, c.code, r.stdout, r.stderr)
	}
	for _, want := range c.want {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("standard error does not mention %q:\n%s", want, r.stderr)
		}
	}
	if !strings.Contains(r.stderr, "kiln: ") {
		t.Errorf("standard error does not say who speaks:\n%s", r.stderr)
	}
	if strings.ContainsAny(r.stderr, "\x00\x07\x1b\r") {
		t.Errorf("standard error has orders to the terminal:\n%q", r.stderr)
	}
	if took := time.Since(start); took > 2*time.Minute {
		t.Errorf("took %v", took)
	}
}

// contextWith writes a build context with this Dockerfile and returns its folder.
func contextWith(t *testing.T, dockerfile string) string {
	return writeFiles(t, map[string]string{"Dockerfile": dockerfile, "a.txt": "a\n"})
}

// TestBadInput makes every mistake of the list in the issue that founded the project. None
// leaves anything behind.
func TestBadInput(t *testing.T) {
	s := newServerWith(t, "timeout = \"20s\"\nready_timeout = \"3s\"\n")
	blobs := s.blobs() // the recipes of the built-in templates
	plain := contextWith(t, "FROM debian:bookworm-slim\n")
	s.must("templates", "build", "plain", plain)
	shellless := contextWith(t, "FROM scratch\nCOPY a.txt /\n")
	s.must("templates", "build", "shellless", shellless)
	id := strings.TrimSpace(s.must("sandbox", "create", "-t", "plain", "--ttl", "10m"))
	gone := strings.TrimSpace(s.must("sandbox", "create", "-t", "plain"))
	s.must("sandbox", "destroy", gone)
	before := s.must("templates", "list")

	for _, c := range []badInput{
		{"no such Dockerfile", []string{"templates", "create", "x", "--dockerfile", "/nowhere/Dockerfile"}, 2, []string{"/nowhere/Dockerfile"}},
		{"no such context", []string{"templates", "build", "x", "/nowhere"}, 2, []string{"/nowhere"}},
		{"Dockerfile is a folder", []string{"templates", "create", "x", "--dockerfile", plain}, 2, []string{plain, "not a regular file"}},
		{"no Dockerfile on standard input", []string{"templates", "create", "x", "--dockerfile", "-"}, 2, []string{"standard input"}},
		{"context on standard input", []string{"templates", "build", "x", "-"}, 2, []string{"standard input", "--dockerfile -"}},
		{"context without Dockerfile", []string{"templates", "build", "x", t.TempDir()}, 2, []string{"Dockerfile"}},
		{"empty Dockerfile", []string{"templates", "build", "x", contextWith(t, "")}, 7, []string{"Dockerfile", "is empty"}},
		{"template name invalid", []string{"templates", "build", "Not A Name", plain}, 2, []string{`"Not A Name"`, "hint: "}},
		{"template name taken", []string{"templates", "create", "plain", "--dockerfile", filepath.Join(plain, "Dockerfile")}, 4, []string{`"plain"`, "hint: "}},
		{"no template given", []string{"sandbox", "run", "--", "true"}, 2, []string{"-t TEMPLATE"}},
		{"no command given", []string{"sandbox", "run", "-t", "plain"}, 2, []string{"usage:"}},
		{"unknown flag", []string{"sandbox", "run", "--templte", "plain"}, 2, []string{"templte"}},
		{"unknown command", []string{"templates", "biuld"}, 2, []string{"biuld"}},
		{"unknown output", []string{"templates", "list", "-o", "yaml"}, 2, []string{"yaml"}},
		{"unknown size", []string{"sandbox", "create", "-t", "plain", "--size", "huge"}, 2, []string{"huge", "shared-cpu-1x"}},
		{"environment without a value", []string{"sandbox", "create", "-t", "plain", "-e", "NAME"}, 2, []string{"NAME=VALUE"}},
		{"unknown template", []string{"sandbox", "run", "-t", "nope", "--", "true"}, 125, []string{`"nope"`}},
		{"unknown template shown", []string{"templates", "show", "nope"}, 3, []string{`"nope"`}},
		{"unknown version", []string{"sandbox", "run", "-t", "plain@9", "--", "true"}, 125, []string{"9"}},
		{"sandbox never was", []string{"sandbox", "exec", "inone", "--", "true"}, 125, []string{"inone"}},
		{"sandbox already gone", []string{"sandbox", "exec", gone, "--", "true"}, 125, []string{gone}},
		{"keepalive of a gone sandbox", []string{"sandbox", "keepalive", gone}, 4, []string{gone}},
		{"missing command", []string{"sandbox", "exec", id, "--", "no-such-command"}, 127, []string{"no-such-command"}},
		{"missing folder", []string{"sandbox", "exec", id, "-w", "/nowhere", "--", "true"}, 125, []string{"/nowhere"}},
		{"missing user", []string{"sandbox", "exec", id, "-u", "nobody-here", "--", "true"}, 125, []string{"nobody-here"}},
		{"image without a shell", []string{"sandbox", "run", "-t", "shellless", "--", "/bin/sh", "-c", "true"}, 127, []string{"/bin/sh"}},
		{"upload to a path that cannot be written", []string{"sandbox", "upload", id, filepath.Join(plain, "a.txt"), "/sys/kernel/x"}, 5, []string{"/sys/kernel/x"}},
		{"upload below a file", []string{"sandbox", "upload", id, filepath.Join(plain, "a.txt"), "/etc/passwd/x"}, 2, []string{"/etc/passwd"}},
		{"upload of a missing file", []string{"sandbox", "upload", id, "/nowhere", "/tmp/x"}, 2, []string{"/nowhere"}},
		{"download of a missing file", []string{"sandbox", "download", id, "/nowhere", filepath.Join(t.TempDir(), "x")}, 3, []string{"/nowhere"}},
		{"wrong token", []string{"--token", "wrong", "templates", "list"}, 5, []string{"wrong token", "hint: "}},
		{"server not running", []string{"--server", "http://127.0.0.1:1", "templates", "list"}, 6, []string{"127.0.0.1:1", "kiln serve"}},
		{"server that is no server", []string{"--server", "nonsense", "templates", "list"}, 2, []string{"nonsense"}},
	} {
		t.Run(c.name, func(t *testing.T) { s.check(t, c) })
	}
	if after := s.must("templates", "list"); after != before {
		t.Errorf("requests that failed left templates behind:\n%s", after)
	}

	for _, c := range []struct {
		name, dockerfile string
		flags, want      []string
	}{
		{"syntax error", "FROM debian:bookworm-slim\nRUNN true\n", nil, []string{"Dockerfile:2", "RUNN", "2 | RUNN true"}},
		{"failing RUN", "FROM debian:bookworm-slim\nRUN echo last words; exit 3\n", nil, []string{"Dockerfile:2", "exit code: 3", "last words"}},
		{"unknown base image", "FROM example.invalid/no/such:image\n", nil, []string{"Dockerfile:1", "example.invalid/no/such:image", "hint: "}},
		{"missing file of a COPY", "FROM debian:bookworm-slim\nCOPY nowhere.txt /\n", nil, []string{"Dockerfile:2", "nowhere.txt"}},
		{"nothing but comments", "# syntax=docker/dockerfile:1\n", nil, []string{"Dockerfile:1", "no instructions"}},
		{"syntax error of an editor on Windows", "\ufeffFROM debian:bookworm-slim\r\nRUNN true\r\n", nil, []string{"Dockerfile:2", "RUNN", "2 | RUNN true"}},
		{"RUN without a shell", "FROM scratch\nCOPY a.txt /\nRUN true\n", nil, []string{"Dockerfile:3", "/bin/sh", "no shell"}},
		{"failing RUN that prints garbage", "FROM debian:bookworm-slim\nRUN printf '\\033]0;title\\007\\033[2Jred\\r'; head -c 300000 /dev/urandom; echo; echo last words; exit 3\n", nil, []string{"Dockerfile:2", "exit code: 3", "last words"}},
		{"base image that an ARG names", "ARG BASE\nFROM ${BASE}\n", nil, []string{"Dockerfile:2", "${BASE}", "--build-arg"}},
		{"missing stage of a COPY", "FROM debian:bookworm-slim\nCOPY --from=builder /a /\n", nil, []string{"Dockerfile:2", "no earlier stage is named builder"}},
		{"unknown target", "FROM debian:bookworm-slim\n", []string{"--target", "nowhere"}, []string{"nowhere"}},
		{"RUN that never ends", "FROM debian:bookworm-slim\nRUN sleep 86397\n", nil, []string{"image", "20s"}},
		{"ready command that never succeeds", "FROM debian:bookworm-slim\n", []string{"--ready-cmd", "echo not yet; exit 5"}, []string{"snapshot", "not yet"}},
		{"start command that fails", "FROM debian:bookworm-slim\n", []string{"--start-cmd", "echo cannot; exit 6", "--ready-cmd", "false"}, []string{"snapshot"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := strings.ReplaceAll(strings.ToLower(c.name), " ", "-")
			args := append([]string{"templates", "build", name, contextWith(t, c.dockerfile)}, c.flags...)
			s.check(t, badInput{c.name, args, 7, c.want})
			if got := s.must("templates", "list", "-o", "json"); !strings.Contains(got, `"status": "failed"`) {
				t.Errorf("the failed build is not shown as failed:\n%s", got)
			}
			s.must("templates", "delete", name)
			if left := s.halfMade(); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
	if left := processesWith("sleep\x0086397"); left > 0 {
		t.Errorf("%d processes of the build that never ends run on", left)
	}
	s.must("sandbox", "destroy", id)
	s.must("templates", "delete", "plain", "shellless")
	s.leaveNothing(blobs)
}

// TestCancelledBuild interrupts a build that would never end: it is cancelled and nothing
// of it runs on.
func TestCancelledBuild(t *testing.T) {
	s := newServer(t)
	blobs := s.blobs()
	dir := contextWith(t, "FROM debian:bookworm-slim\nRUN echo started && sleep 86399\n")
	cmd := exec.Command(filepath.Join(s.bin, "kiln"), "templates", "build", "endless", dir)
	cmd.Env = s.env()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := ""
	for buf := make([]byte, 4096); !strings.Contains(seen, " started"); {
		n, err := out.Read(buf)
		if seen += string(buf[:n]); err != nil {
			t.Fatalf("the build ended early: %v\n%s", err, seen)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	s.kiln("templates", "logs", "-f", "endless") // returns when the build has ended
	if shown := s.must("templates", "show", "endless"); !strings.Contains(shown, "cancelled") {
		t.Errorf("show:\n%s", shown)
	}
	if left := processesWith("sleep\x0086399"); left > 0 {
		t.Errorf("%d processes of the build run on", left)
	}
	if left := s.halfMade(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	s.must("templates", "delete", "endless")
	s.leaveNothing(blobs)
}

// processesWith counts the processes of this host whose command line holds text.
func processesWith(text string) int {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	n := 0
	for _, file := range lines {
		if line, err := os.ReadFile(file); err == nil && strings.Contains(string(line), text) {
			n++
		}
	}
	return n
}

// TestDiskFull builds with a data directory on a file system that is too small: the build
// fails with a reason, nothing is promoted, and the server goes on.
func TestDiskFull(t *testing.T) {
	testkit.RequireRoot(t)
	s := newServerIn(t, func(dir string) {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=160m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(dir, 0); err != nil {
				t.Errorf("unmount %s: %v", dir, err)
			}
		})
	})
	r := s.kiln("templates", "build", "big", contextWith(t, "FROM debian:bookworm-slim\nRUN head -c 100000000 /dev/urandom > /big\n"))
	if r.code == 0 || !strings.Contains(r.stderr, "is full") || !strings.Contains(r.stderr, s.dataDir) {
		t.Errorf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if shown := s.must("templates", "show", "big"); !regexp.MustCompile(`(?m)^status +failed$`).MatchString(shown) {
		t.Errorf("not failed:\n%s", shown)
	}
	if r := s.kiln("templates", "delete", "big"); r.code != 0 {
		t.Errorf("delete: %s", r.stderr)
	}
}

// TestServerRefusesToStart starts servers on hosts that lack something.
func TestServerRefusesToStart(t *testing.T) {
	s := newServer(t)
	short, err := os.MkdirTemp("/var/tmp", "kiln-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	readOnly := filepath.Join(short, "read-only")
	if err := errors.Join(os.Mkdir(readOnly, 0o700), syscall.Mount("tmpfs", readOnly, "tmpfs", syscall.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(readOnly, 0); err != nil {
			t.Error(err)
		}
	})
	data := filepath.Join(short, "data")
	file := filepath.Join(short, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(readServer(t, s.dataDir), "http://")
	config := func(text string) string {
		path := filepath.Join(t.TempDir(), "kiln.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	serve := func(dir string, more ...string) []string {
		return append([]string{"serve", "--data-dir", dir, "--listen", "127.0.0.1:0"}, more...)
	}
	for _, c := range []badInput{
		{"data directory below a file", serve(filepath.Join(file, "d")), 6, []string{file, "--data-dir"}},
		{"data directory not writable", serve(readOnly), 6, []string{readOnly, "read-only", "--data-dir"}},
		{"data directory in a folder that is not writable", serve(filepath.Join(readOnly, "d")), 6, []string{readOnly, "read-only", "--data-dir"}},
		{"data directory in use", serve(s.dataDir), 4, []string{s.dataDir, "in use"}},
		{"data directory path too long", serve("/var/tmp/" + strings.Repeat("x", 60)), 2, []string{"data_dir"}},
		{"port taken", []string{"serve", "--data-dir", data, "--listen", address}, 6, []string{address, "--listen"}},
		{"bad address", []string{"serve", "--data-dir", data, "--listen", "here"}, 2, []string{"here"}},
		{"no such configuration", serve(data, "--config", "/nowhere.toml"), 2, []string{"/nowhere.toml"}},
		{"misspelt key", serve(data, "--config", config("lisen = 'x'\n")), 2, []string{"lisen"}},
		{"QEMU missing", serve(data, "--config", config("[vm]\nqemu = 'qemu-nowhere'\n")), 6, []string{"qemu-nowhere", "apt-get install qemu-system-x86"}},
		{"no kernel", serve(data, "--config", config("[vm]\nkernel = '/nowhere/vmlinux'\n")), 2, []string{"/nowhere/vmlinux", "hint: "}},
		{"kernel that is none", serve(data, "--config", config("[vm]\nkernel = '/etc/hostname'\n")), 2, []string{"/etc/hostname", "vmlinux"}},
		{"no guest daemon", serve(data, "--config", config("[vm]\nsandboxd = '/nowhere/kiln-sandboxd'\n")), 6, []string{"/nowhere/kiln-sandboxd"}},
	} {
		t.Run(c.name, func(t *testing.T) { s.check(t, c) })
	}
	// What is there of a data directory is whole: token, database, folders for blobs.
	refused := *s
	refused.dataDir = data
	if left := append(refused.halfMade(), refused.blobs()...); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if left := testkit.LeftOf(data); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	t.Run("not root", func(t *testing.T) {
		cmd := exec.Command("setpriv", "--reuid", "65534", "--clear-groups", filepath.Join(s.bin, "kiln"), "serve", "--data-dir", data)
		cmd.Env = s.env()
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 5 || !strings.Contains(string(out), "root") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
