package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image"
	"github.com/kilnvm/kiln/internal/image/imagetest"
	"github.com/kilnvm/kiln/internal/testkit"
)

const buildkitModule = "github.com/moby/buildkit"

// buildkitd builds the real daemon of the BuildKit version that Kiln links, once per
// machine. It is built as part of this module, so that most of it is compiled already, with
// a copy of go.mod and go.sum, because those need not know what only the daemon needs.
func buildkitd(t *testing.T) string {
	t.Helper()
	path := filepath.Join(testkit.CacheDir(), "buildkitd-"+outputOf(t, "go", "list", "-m", "-f", "{{.Version}}", buildkitModule))
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		return path
	}
	module, tmp := filepath.Dir(outputOf(t, "go", "env", "GOMOD")), t.TempDir()
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tmp, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-modfile="+filepath.Join(tmp, "go.mod"), "-mod=mod", "-o", path, buildkitModule+"/cmd/buildkitd")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build buildkitd: %v\n%s", err, out)
	}
	return path
}

// outputOf returns what a command prints, without the line's end.
func outputOf(t *testing.T, command ...string) string {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).Output()
	if err != nil {
		t.Fatalf("%q: %v", command, err)
	}
	return strings.TrimSpace(string(out))
}

// startBuildkitd returns the address of a running daemon. Its processes and mounts live in
// namespaces of their own, so that they end with it.
func startBuildkitd(t *testing.T) string {
	t.Helper()
	testkit.RequireRoot(t)
	testkit.RequireCommands(t, "runc")
	dir := testkit.ShortTempDir(t)
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("unshare", "--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", "--", buildkitd(t),
		"--addr", "unix://"+socket, "--root", filepath.Join(dir, "root"),
		"--otel-socket-path", filepath.Join(dir, "otel"), "--oci-worker-net", "host", "--containerd-worker=false")
	startDaemon(t, cmd, socket)
	return "unix://" + socket
}

// dockerd unpacks the host distribution's Docker Engine, once per machine, without
// installing it.
func dockerd(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(testkit.CacheDir(), "docker-engine")
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	tmp := t.TempDir()
	download := exec.Command("apt-get", "download", "docker.io", "containerd")
	download.Dir = tmp
	if out, err := download.CombinedOutput(); err != nil {
		t.Fatalf("download docker.io: %v\n%s", err, out)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 2 {
		t.Fatalf("packages: %v %v", debs, err)
	}
	for _, deb := range debs {
		if out, err := exec.Command("dpkg-deb", "-x", deb, dir+".tmp").CombinedOutput(); err != nil {
			t.Fatalf("unpack %s: %v\n%s", deb, err, out)
		}
	}
	if err := os.Rename(dir+".tmp", dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startDockerd returns the address of a running Docker Engine with a network of its own
// that leads nowhere.
func startDockerd(t *testing.T) string {
	t.Helper()
	testkit.RequireRoot(t)
	testkit.RequireCommands(t, "runc", "apt-get", "dpkg-deb")
	engine, dir := dockerd(t), testkit.ShortTempDir(t)
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("unshare", "--net", "--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", "--",
		filepath.Join(engine, "usr/sbin/dockerd"), "-H", "unix://"+socket, "--data-root", filepath.Join(dir, "root"),
		"--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"),
		"--iptables=false", "--ip6tables=false")
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(engine, "usr/bin")+":"+os.Getenv("PATH"))
	startDaemon(t, cmd, socket)
	return "unix://" + socket
}

// startDaemon runs a daemon until the test ends.
func startDaemon(t *testing.T, cmd *exec.Cmd, socket string) {
	t.Helper()
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("daemon:\n%s", output.Bytes())
		}
	})
	waitUntil(t, "the daemon listens", func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func TestBuildKitDaemon(t *testing.T) { testRemote(t, startBuildkitd(t)) }

func TestDockerEngine(t *testing.T) { testRemote(t, startDockerd(t)) }

// testRemote builds in a daemon that was there before.
func testRemote(t *testing.T, address string) {
	opts := imagetest.Options(t)
	opts.StateDir, opts.Walk = "", nil
	opts.Address, opts.FromTar = address, readTar
	b, err := image.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	src := imagetest.Source(t, map[string]string{
		"file":       "from the context",
		"Dockerfile": "FROM " + imagetest.BaseImage + " AS a\nRUN mkdir /out && echo made > /out/made\nCOPY file /out/\nENV A=b\nUSER 1\n",
	})
	progress := &logged{}
	config, files := build(t, b, src, progress)
	if files["out/made"] != "made\n" || files["out/file"] != "from the context" {
		t.Errorf("files = %q", files)
	}
	if config.User != "1" || !strings.Contains(strings.Join(config.Env, " "), "A=b") {
		t.Errorf("config = %+v", config)
	}

	src = imagetest.Source(t, map[string]string{"Dockerfile": "FROM " + imagetest.BaseImage + "\nRUN echo why; exit 7\n"})
	var fault *kiln.BuildError
	if err := attempt(t.Context(), b, src, progress); !errors.As(err, &fault) || fault.Line != 2 || fault.ExitCode != 7 || fault.Output[0] != "why" {
		t.Errorf("failing RUN: %#v", err)
	}

	testSecretOfAnother(t, b)

	src = imagetest.Source(t, map[string]string{"Dockerfile": endless})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lines := make(chan string, 1000)
	done := make(chan error, 1)
	go func() { done <- attempt(ctx, b, src, &logged{seen: lines}) }()
	for !strings.Contains(<-lines, "42-started") {
	}
	cancel()
	if err := <-done; kiln.CodeOf(err) != kiln.CodeCanceled {
		t.Errorf("cancelled: %v", err)
	}
	waitUntil(t, "the command ends", func() bool { return len(sleepers()) == 0 })
}

// TestRemoteAddress refuses what is no address, and says what cannot be reached.
func TestRemoteAddress(t *testing.T) {
	opts := image.Options{ImagesDir: t.TempDir(), FromTar: readTar}
	for _, bad := range []string{"docker", "ssh://host", "unix://", "tcp://"} {
		opts.Address = bad
		if _, err := image.New(opts); kiln.CodeOf(err) != kiln.CodeInvalid {
			t.Errorf("%s: %v", bad, err)
		}
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	silent.Close()
	for _, dead := range []string{"unix:///nowhere/socket", "tcp://" + silent.Addr().String()} {
		opts.Address = dead
		b, err := image.New(opts)
		if err != nil {
			t.Fatal(err)
		}
		src := imagetest.Source(t, map[string]string{"Dockerfile": "FROM scratch\n"})
		start := time.Now()
		if err := attempt(t.Context(), b, src, kiln.DiscardProgress); kiln.CodeOf(err) != kiln.CodeUnavailable || !strings.Contains(err.Error(), dead) {
			t.Errorf("%s: %v", dead, err)
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%s: took %s", dead, d)
		}
	}
}

// readTar keeps a tar stream in memory.
func readTar(r io.Reader) (kiln.EntrySource, error) {
	var entries tarEntries
	for members := tar.NewReader(r); ; {
		h, err := members.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(members)
		if err != nil {
			return nil, err
		}
		e := kiln.Entry{Path: strings.TrimSuffix(h.Name, "/"), Size: h.Size, Type: kiln.TypeDirectory}
		if h.Typeflag == tar.TypeReg {
			e.Type = kiln.TypeRegular
			e.Open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
		}
		entries = append(entries, e)
	}
}

type tarEntries []kiln.Entry

func (t tarEntries) Close() error { return nil }

func (t tarEntries) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) {
		for _, e := range t {
			if !yield(e, nil) {
				return
			}
		}
	}
}
