package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kilnvm/kiln/internal/image/imagetest"
	"github.com/kilnvm/kiln/internal/testkit"
)

// server is a real `kiln serve` on a data directory of its own.
type server struct {
	t       *testing.T
	bin     string // folder of kiln and kiln-sandboxd
	dataDir string
	build   string // more lines of the [build] table of its configuration
	listen  string // address; "" any port
	cmd     *exec.Cmd
	log     *os.File
}

// newServer starts a server on a fresh data directory and stops it with the test. Base
// images and the boot bundle come from the test cache, so that they are made once.
func newServer(t *testing.T) *server { return newServerWith(t, "") }

// newServerWith is newServer with more lines in the [build] table of the configuration, and
// whole tables behind those.
func newServerWith(t *testing.T, build string) *server {
	t.Helper()
	return prepareServer(t, build, func(string) {})
}

// newServerIn is newServer in a folder that prepare has prepared.
func newServerIn(t *testing.T, prepare func(dir string)) *server {
	t.Helper()
	return prepareServer(t, "", prepare)
}

func prepareServer(t *testing.T, build string, prepare func(dir string)) *server {
	t.Helper()
	testkit.RequireVM(t)
	// Not t.TempDir: Unix socket paths are short, and the name of a test is not.
	dir, err := os.MkdirTemp("/var/tmp", "kiln-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	prepare(dir)
	s := &server{t: t, bin: programs(t), dataDir: filepath.Join(dir, "data"), build: build}
	s.configure()
	s.makeBase()
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *server) configFile() string { return filepath.Join(filepath.Dir(s.dataDir), "kiln.toml") }

func (s *server) configure() {
	s.t.Helper()
	cache := testkit.CacheDir()
	text := "[build]\n"
	if !strings.Contains(s.build, "images_dir") {
		text += "images_dir = \"" + filepath.Join(cache, "images") + "\"\n"
	}
	text += s.build // which may go on to other tables
	text += "[vm]\nbundle_dir = \"" + filepath.Join(cache, "bundle") + "\"\n"
	if err := os.WriteFile(s.configFile(), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// makeBase makes the image that nearly every Dockerfile of the tests begins with unless the
// test cache has it, so that no test's deadline has to cover that.
func (s *server) makeBase() {
	s.t.Helper()
	if strings.Contains(s.build, "images_dir") {
		return // the test brings its own
	}
	imagetest.Base(s.t)
}

func (s *server) start() {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(filepath.Dir(s.dataDir), "server.log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	s.log = log
	listen := s.listen
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	s.cmd = exec.Command(filepath.Join(s.bin, "kiln"), "serve", "--data-dir", s.dataDir, "--listen", listen, "--config", s.configFile(), "--no-catalog-builds")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.Env = s.env()
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	if out, err := s.command("kiln wait --timeout 3m"); err != nil {
		s.t.Fatalf("the server did not become ready: %v\n%s\n%s", err, out, s.logText())
	}
}

// stop ends the server as an init system would.
func (s *server) stop() {
	if s.cmd.ProcessState != nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	err := s.cmd.Wait()
	if err != nil {
		s.t.Errorf("server: %v\n%s", err, s.logText())
	}
	s.log.Close()
}

// kill ends the server as a power cut would.
func (s *server) kill() {
	s.t.Helper()
	_ = s.cmd.Process.Kill()
	var exit *exec.ExitError
	if err := s.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	s.log.Close()
}

func (s *server) env() []string {
	env := []string{"KILN_DATA_DIR=" + s.dataDir, "PATH=" + s.bin + ":" + os.Getenv("PATH")}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "KILN_") && !strings.HasPrefix(v, "PATH=") {
			env = append(env, v)
		}
	}
	return env
}

// command runs a shell command with this server as the CLI's server and returns what it
// printed on both streams.
func (s *server) command(line string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	cmd.Env = s.env()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// result is what one kiln command did.
type result struct {
	stdout, stderr string
	code           int
}

// kiln runs the CLI.
func (s *server) kiln(args ...string) result {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "kiln"), args...)
	cmd.Env = s.env()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("kiln %s: %v", strings.Join(args, " "), err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// in is the server for a sub-test, whose failures are its own.
func (s *server) in(t *testing.T) *server {
	own := *s
	own.t = t
	return &own
}

// must runs the CLI, fails the test unless it exits 0, and returns its standard output.
func (s *server) must(args ...string) string {
	s.t.Helper()
	r := s.kiln(args...)
	if r.code != 0 {
		s.t.Fatalf("kiln %s: exit code %d\n%s%s\nserver log:\n%s", strings.Join(args, " "), r.code, r.stdout, r.stderr, s.logText())
	}
	return r.stdout
}

// leaveNothing collects what is unused and stops the server: no living sandbox is left, no
// blob but those of before, no process, mount, network or control group.
func (s *server) leaveNothing(before []string) {
	s.t.Helper()
	if list := s.must("sandbox", "list", "-o", "json"); strings.Contains(list, `"id"`) {
		s.t.Errorf("still living:\n%s", list)
	}
	// A warm slot that is just being made keeps its files for a moment.
	deadline := time.Now().Add(time.Minute)
	for s.must("gc"); !slices.Equal(s.blobs(), before); s.must("gc") {
		if time.Now().After(deadline) {
			s.t.Fatalf("blobs %q\nbefore the first build %q", s.blobs(), before)
		}
	}
	s.stop()
	if left, err := os.ReadDir(filepath.Join(s.dataDir, "sandboxes")); err != nil || len(left) > 0 {
		s.t.Errorf("left in sandboxes/: %v, %v", left, err)
	}
	if left := testkit.LeftOf(s.dataDir); len(left) > 0 {
		s.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

func (s *server) blobs() []string {
	s.t.Helper()
	blobs, err := filepath.Glob(filepath.Join(s.dataDir, "blobs/sha256/*/*"))
	if err != nil {
		s.t.Fatal(err)
	}
	return blobs
}

func (s *server) logText() string {
	text, err := os.ReadFile(filepath.Join(filepath.Dir(s.dataDir), "server.log"))
	if err != nil {
		return err.Error()
	}
	if len(text) > 8000 {
		text = text[len(text)-8000:]
	}
	return string(text)
}

var (
	buildPrograms sync.Once
	programsDir   string
	buildErr      error
)

// programs builds kiln and kiln-sandboxd as `make build` does and returns their folder.
func programs(t *testing.T) string {
	t.Helper()
	buildPrograms.Do(func() {
		dir := filepath.Join(testkit.CacheDir(), "bin")
		for _, name := range []string{"kiln", "kiln-sandboxd"} {
			cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), "../cmd/"+name)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				buildErr = errors.New(string(out))
				return
			}
		}
		programsDir = dir
	})
	if buildErr != nil {
		t.Fatalf("build: %v", buildErr)
	}
	return programsDir
}

// readServer returns the URL that a running server has written down.
func readServer(t *testing.T, dataDir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dataDir, "server.json"))
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ URL string }
	if err := json.Unmarshal(b, &info); err != nil {
		t.Fatal(err)
	}
	return info.URL
}
