package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/api"
)

// escapes are the control sequences of terminals.
var escapes = regexp.MustCompile("\x1b\\[[0-9;?]*[a-zA-Z]")

// TestNewcomer does what the first users stumbled over.
func TestNewcomer(t *testing.T) {
	s := newServer(t)
	dir := busyboxContext(t, "RUN mkdir -p /srv/app && chown 7:8 /srv/app && chmod 0711 /srv/app\nVOLUME /data /srv/app /deep/er\n")
	s.must("templates", "build", "new", dir)
	id := strings.TrimSpace(s.must("sandbox", "create", "-t", "new"))

	t.Run("volumes exist", func(t *testing.T) {
		out := s.in(t).must("sandbox", "exec", id, "--", "stat", "-c", "%n %a %u:%g", "/data", "/deep/er", "/srv/app")
		if want := "/data 755 0:0\n/deep/er 755 0:0\n/srv/app 711 7:8\n"; out != want {
			t.Errorf("got\n%swant\n%s", out, want)
		}
	})
	t.Run("upload into folders that exist", func(t *testing.T) {
		local := writeFiles(t, map[string]string{"srv/app/new": "new\n", "srv/more/file": "more\n"})
		if err := os.Chmod(filepath.Join(local, "srv/more"), 0o750); err != nil {
			t.Fatal(err)
		}
		own := s.in(t)
		own.must("sandbox", "upload", id, filepath.Join(local, "srv"), "/")
		out := own.must("sandbox", "exec", id, "--", "sh", "-c", "cat /srv/app/new /srv/more/file; stat -c '%n %a %u:%g' /srv /srv/app /srv/more")
		if want := "new\nmore\n/srv 755 0:0\n/srv/app 711 7:8\n/srv/more 750 0:0\n"; out != want {
			t.Errorf("got\n%swant\n%s", out, want)
		}
	})
	t.Run("a command as JSON", func(t *testing.T) {
		for _, c := range []struct {
			command []string
			want    api.ExecResult
		}{
			{[]string{"sh", "-c", "echo out; echo err >&2; exit 3"}, api.ExecResult{Stdout: "out\n", Stderr: "err\n", ExitCode: 3}},
			{[]string{"sh", "-c", "kill -9 $$"}, api.ExecResult{ExitCode: 137, Signal: "SIGKILL"}},
			{[]string{"no-such-command"}, api.ExecResult{Stderr: "kiln: command \"no-such-command\" was not found in the sandbox\n", ExitCode: 127}},
		} {
			r := s.in(t).kiln(append([]string{"sandbox", "exec", "-o", "json", id, "--"}, c.command...)...)
			var got api.ExecResult
			err := json.Unmarshal([]byte(r.stdout), &got)
			got.DurationMS = 0
			if err != nil || got != c.want || r.code != c.want.ExitCode || r.stderr != "" {
				t.Errorf("%q: exit code %d, %v\n%s%s", c.command, r.code, err, r.stdout, r.stderr)
			}
		}
	})
	t.Run("what became of a sandbox", func(t *testing.T) {
		own := s.in(t)
		own.must("sandbox", "destroy", id)
		for _, args := range [][]string{
			{"exec", id, "--", "true"}, {"upload", id, "/etc/hostname", "/tmp/"}, {"upload", id, "/etc/hostname", "/tmp"},
			{"upload", id, dir, "/tmp/x"}, {"download", id, "/etc/passwd", "-"},
		} {
			if r := own.kiln(append([]string{"sandbox"}, args...)...); r.code == 0 || !strings.Contains(r.stderr, "has ended: destroyed by request") {
				t.Errorf("%v: exit code %d, %s", args, r.code, r.stderr)
			}
		}
		if code, screen := own.onTerminal(80, "", "sandbox", "shell", id); code == 0 || !strings.Contains(screen, "has ended: destroyed by request") {
			t.Errorf("shell: exit code %d\n%s", code, screen)
		}
	})

	two := "FROM scratch AS other\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"touch\", \"/other\"]\n" +
		"FROM scratch\nCOPY busybox /bin/busybox\nCOPY --from=other /other /other\n"
	build := func(t *testing.T, last string) string {
		t.Helper()
		dir := busyboxContext(t, "")
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(two+last), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for _, columns := range []uint16{80, 30} {
		t.Run("a build that fails", func(t *testing.T) {
			dir := build(t, "RUN [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox echo last words; exit 3\"]\n")
			code, screen := s.in(t).onTerminal(columns, "", "templates", "build", "fails", dir)
			for _, want := range []string{"[+] Building", "=> ERROR [stage-1", "last words", "kiln: image: Dockerfile:"} {
				if !strings.Contains(screen, want) {
					t.Errorf("no %q on the terminal", want)
				}
			}
			if code != 7 || strings.Contains(screen, "failed: image") || t.Failed() {
				t.Errorf("exit code %d\n%s", code, screen)
			}
			widest := 0
			for line := range strings.Lines(screen) {
				if strings.HasPrefix(line, " => ") {
					widest = max(widest, len(strings.TrimRight(line, "\r\n")))
				}
			}
			if widest > int(columns) {
				t.Errorf("a step takes %d of %d columns", widest, columns)
			}
		})
	}
	t.Run("a build that is shown live", func(t *testing.T) {
		own := s.in(t)
		dir := build(t, "")
		code, screen := own.onTerminal(100, "", "templates", "build", "live", dir)
		checkScreen(t, code, screen, `FINISHED`, ` => \[kiln\] source +\d+\.\ds`, ` => (CACHED )?\[other 1/2\] COPY busybox /bin/busybox +\d+\.\ds`,
			` => \[kiln\] rootfs .*\d+\.\ds`, ` => \[kiln\] snapshot shared-cpu-\dx +\d+\.\ds`, ` => \[kiln\] promote +\d+\.\ds`, `live version 1 is ready`)
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(two+"RUN [\"/bin/busybox\", \"touch\", \"/more\"]\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		code, screen = own.onTerminal(100, "", "templates", "build", "live", dir, "--progress", "tty")
		checkScreen(t, code, screen, `FINISHED`, ` => CACHED \[other 1/2\] COPY busybox /bin/busybox +\d+\.\ds`, ` => \[stage-1 3/3\] RUN .*\d+\.\ds`, `live version 2 is ready`)
		code, screen = own.onTerminal(100, "", "templates", "build", "live", dir, "--progress", "tty")
		checkScreen(t, code, screen, `^no change: live stays at version 2\r\n$`)
	})
	t.Run("an interrupted build", func(t *testing.T) {
		dir := build(t, "RUN [\"/bin/busybox\", \"sh\", \"-c\", \"for i in $(/bin/busybox seq 600); do echo tick-$i; /bin/busybox sleep 0.1; done\"]\n")
		own := s.in(t)
		code, screen := own.onTerminal(80, "tick-3", "templates", "build", "long", dir)
		if code != 130 || !strings.Contains(screen, "CANCELED [stage-1") || !strings.Contains(screen, "CANCELED [kiln] image") || !strings.Contains(screen, "is being cancelled") {
			t.Errorf("exit code %d\n%s", code, screen)
		}
		own.kiln("templates", "logs", "-f", "long") // until it has ended
		if shown := own.must("templates", "show", "long"); !strings.Contains(shown, "cancelled") {
			t.Errorf("after Ctrl-C:\n%s", shown)
		}
	})
}

// checkScreen looks for expressions on what a terminal showed.
func checkScreen(t *testing.T, code int, screen string, want ...string) {
	t.Helper()
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, expr := range want {
		if !regexp.MustCompile(expr).MatchString(screen) {
			t.Errorf("no %q on the terminal", expr)
		}
	}
	if t.Failed() {
		t.Log(screen)
	}
}

// onTerminal runs the CLI as the foreground of a terminal of so many columns, types Ctrl-C
// when the screen says interruptAt, and returns what was shown without its colours. The
// terminal must be as it was.
func (s *server) onTerminal(columns uint16, interruptAt string, args ...string) (code int, screen string) {
	s.t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		s.t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	if err := pty.Setsize(master, &pty.Winsize{Rows: 24, Cols: columns}); err != nil {
		s.t.Fatal(err)
	}
	before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(s.bin, "kiln"), args...)
	cmd.Env = append(s.env(), "TERM=xterm-256color")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	read := make(chan string)
	go func() {
		var all strings.Builder
		buf := make([]byte, 32<<10)
		for {
			n, err := master.Read(buf)
			all.Write(buf[:n])
			if interruptAt != "" && strings.Contains(all.String(), interruptAt) {
				interruptAt = ""
				_, err = master.WriteString("\x03")
			}
			if err != nil { // EIO: nobody has the other side open
				read <- all.String()
				return
			}
		}
	}()
	_ = cmd.Wait() // its exit code is looked at
	after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	if *after != *before {
		s.t.Errorf("the terminal was %+v and is %+v", before, after)
	}
	slave.Close()
	raw := <-read
	if hidden := strings.LastIndex(raw, "\x1b[?25l"); hidden > strings.LastIndex(raw, "\x1b[?25h") {
		s.t.Error("the cursor is left hidden")
	}
	return cmd.ProcessState.ExitCode(), escapes.ReplaceAllString(raw, "")
}
