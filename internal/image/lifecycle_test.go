package image_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image"
	"github.com/kilnvm/kiln/internal/image/imagetest"
)

// parentArg makes the test program a server that builds something endless until it is
// killed.
const parentArg = "endless-build"

// runParent is the main function of that server. It prints the log.
func runParent(arg string) {
	var c []string
	if err := json.Unmarshal([]byte(arg), &c); err != nil {
		panic(err)
	}
	b, err := image.New(image.Options{StateDir: c[0], ImagesDir: c[1], Walk: imagetest.Walk})
	if err != nil {
		panic(err)
	}
	panic(attempt(context.Background(), b, kiln.Source{Dir: c[2]}, printed{}))
}

type printed struct{}

func (printed) Log(_ kiln.Stage, line string) { os.Stdout.WriteString(line + "\n") }

const endless = "FROM " + imagetest.BaseImage + "\nRUN echo $((40+2))-started; exec sleep 987654\n"

// startParent starts the server and waits until its build runs the endless command.
func startParent(t *testing.T, opts image.Options) *exec.Cmd {
	t.Helper()
	src := imagetest.Source(t, map[string]string{"Dockerfile": endless})
	arg, err := json.Marshal([]string{opts.StateDir, opts.ImagesDir, src.Dir})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], parentArg, string(arg))
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if strings.Contains(lines.Text(), "42-started") {
			waitUntil(t, "the command runs", func() bool { return len(sleepers()) == 1 })
			return cmd
		}
	}
	t.Fatal("the server ended")
	return nil
}

// TestHazard24ServerKilled kills the server in the middle of a RUN step. Nothing of the
// build is left, and the next server builds in the same folder.
func TestHazard24ServerKilled(t *testing.T) {
	opts := imagetest.Options(t)
	parent := startParent(t, opts)

	other, err := image.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	src := imagetest.Source(t, map[string]string{"Dockerfile": "FROM " + imagetest.BaseImage + "\nRUN echo ok\n"})
	if err := attempt(t.Context(), other, src, kiln.DiscardProgress); kiln.CodeOf(err) != kiln.CodeConflict || !strings.Contains(err.Error(), opts.StateDir) {
		t.Errorf("second server on the state folder: %v, want a conflict that names the folder", err)
	}

	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	parent.Wait()
	waitUntil(t, "the command ends", func() bool { return len(sleepers()) == 0 })
	if err := attempt(t.Context(), other, src, kiln.DiscardProgress); err != nil {
		t.Errorf("build after the crash: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, opts.StateDir)
}

// checkNothingLeft looks for containers, mounts and control groups of a state folder.
func checkNothingLeft(t *testing.T, stateDir string) {
	t.Helper()
	sum := sha256.Sum256([]byte(stateDir))
	cgroup := "kiln-build-" + hex.EncodeToString(sum[:6])
	for _, pattern := range []string{
		"/run/runc/*", "/sys/fs/cgroup/" + cgroup, "/sys/fs/cgroup/*/" + cgroup, filepath.Join(stateDir, "runc-*/executor/[a-z0-9]*/rootfs"),
	} {
		left, err := filepath.Glob(pattern)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), stateDir) {
		t.Errorf("a mount is left: %v", err)
	}
}

// TestBuilderProcessDies kills BuildKit below a running build.
func TestBuilderProcessDies(t *testing.T) {
	b := imagetest.Builder(t)
	src := imagetest.Source(t, map[string]string{"Dockerfile": endless})
	lines := make(chan string, 1000)
	done := make(chan error, 1)
	go func() { done <- attempt(t.Context(), b, src, &logged{seen: lines}) }()
	for !strings.Contains(<-lines, "42-started") {
	}
	kill(t, childOf(t, os.Getpid()))
	err := <-done
	if err == nil || kiln.CodeOf(err) != kiln.CodeInternal || !strings.Contains(err.Error(), "killed") {
		t.Errorf("error = %v, want one of ours that says what happened", err)
	}
	waitUntil(t, "the command ends", func() bool { return len(sleepers()) == 0 })
	src = imagetest.Source(t, map[string]string{"Dockerfile": "FROM " + imagetest.BaseImage + "\nRUN true\n"})
	if err := attempt(t.Context(), b, src, kiln.DiscardProgress); err != nil {
		t.Errorf("the next build: %v", err)
	}
}

// childOf returns the builder process of a process.
func childOf(t *testing.T, parent int) int {
	t.Helper()
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		cmdline, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(cmdline), "\x00builder-child\x00") {
			continue
		}
		status, err := os.ReadFile(filepath.Join(filepath.Dir(path), "status"))
		if err == nil && strings.Contains(string(status), "\nPPid:\t"+strconv.Itoa(parent)+"\n") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	t.Fatal("no builder process")
	return 0
}

func kill(t *testing.T, pid int) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestParallelBuilds runs builds side by side: they share one process.
func TestParallelBuilds(t *testing.T) {
	b := imagetest.Builder(t)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			n := strconv.Itoa(i)
			src := imagetest.Source(t, map[string]string{"Dockerfile": "FROM " + imagetest.BaseImage + "\nRUN mkdir /out; echo " + n + " > /out/n\n"})
			bases, err := b.Resolve(t.Context(), src, kiln.DiscardProgress)
			if err != nil {
				t.Error(err)
				return
			}
			img, err := b.Build(t.Context(), src, bases, kiln.DiscardProgress)
			if err != nil {
				t.Error(err)
				return
			}
			defer img.Close()
			files, err := imagetest.ReadAll(img.Root, func(path string) bool { return path == "out/n" })
			if err != nil || files["out/n"] != n+"\n" {
				t.Errorf("build %d gave %q %v", i, files, err)
			}
		})
	}
	group.Wait()
}

// TestIdle ends the builder process when nobody needs it, not while an image is open,
// and reads an image whose builder was closed.
func TestIdle(t *testing.T) {
	opts := imagetest.Options(t)
	opts.IdleTimeout = time.Millisecond
	b, err := image.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	src := imagetest.Source(t, map[string]string{"Dockerfile": "FROM " + imagetest.BaseImage + "\nRUN mkdir /out; echo x > /out/x\n"})
	bases, err := b.Resolve(t.Context(), src, kiln.DiscardProgress)
	if err != nil {
		t.Fatal(err)
	}
	img, err := b.Build(t.Context(), src, bases, kiln.DiscardProgress)
	if err != nil {
		t.Fatal(err)
	}
	pid := childOf(t, os.Getpid())
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	files, err := imagetest.ReadAll(img.Root, func(path string) bool { return path == "out/x" })
	if err != nil || files["out/x"] != "x\n" {
		t.Errorf("after Close: %q %v", files, err)
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err == nil {
		t.Error("the builder process outlives Close")
	}
	if err := attempt(t.Context(), b, src, kiln.DiscardProgress); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the builder process ends by itself", func() bool {
		out, _ := exec.Command("pgrep", "-P", strconv.Itoa(os.Getpid()), "-f", "builder-child").Output()
		return len(out) == 0
	})
	checkNothingLeft(t, opts.StateDir)
}

// TestCABundle shows a certificate bundle to RUN steps and finds nothing of it in the
// image.
func TestCABundle(t *testing.T) {
	bundle := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(bundle, []byte("certificates of the company\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	opts := imagetest.Options(t)
	opts.CABundle = bundle
	b, err := image.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	src := imagetest.Source(t, map[string]string{"Dockerfile": "FROM " + imagetest.BaseImage + `
ENV PIP_CERT=/mine
USER 1000
RUN cat $SSL_CERT_FILE $NODE_EXTRA_CA_CERTS; echo pip is $PIP_CERT; apt-config dump Acquire::https::CAInfo
`})
	src.Options.NoCache = true
	progress := &logged{}
	bases, err := b.Resolve(t.Context(), src, progress)
	if err != nil {
		t.Fatal(err)
	}
	img, err := b.Build(t.Context(), src, bases, progress)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	log := progress.String()
	for _, want := range []string{"certificates of the company", "pip is /mine", `Acquire::https::CAInfo "/dev/kiln-ca/bundle.pem"`} {
		if !strings.Contains(log, want) {
			t.Errorf("log lacks %q:\n%s", want, log)
		}
	}
	for e, err := range img.Root.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(e.Path, "kiln") || strings.HasPrefix(e.Path, "dev/") {
			t.Errorf("the image has %s", e.Path)
		}
	}
	for _, kv := range img.Config.Env {
		if strings.HasPrefix(kv, "SSL_CERT_FILE") {
			t.Errorf("the image has %s", kv)
		}
	}
}

// TestUnchanged resolves and computes the key of a known Dockerfile, which is all that a
// rebuild without a change costs of this stage.
func TestUnchanged(t *testing.T) {
	b := imagetest.Builder(t)
	src := imagetest.Source(t, map[string]string{"Dockerfile": "FROM " + imagetest.BaseImage + "\nRUN true\n"})
	bases, err := b.Resolve(t.Context(), src, kiln.DiscardProgress)
	if err != nil {
		t.Fatal(err)
	}
	key := b.Key(src, bases)
	const limit = 50 * time.Millisecond
	best := time.Hour
	for range 5 {
		start := time.Now()
		if bases, err = b.Resolve(t.Context(), src, kiln.DiscardProgress); err != nil {
			t.Fatal(err)
		}
		if b.Key(src, bases) != key {
			t.Fatal("the key changed")
		}
		best = min(best, time.Since(start))
	}
	t.Logf("resolve and key: %s", best)
	if best > limit {
		t.Errorf("took %s, want at most %s", best, limit)
	}
	if len(bases) != 1 || bases[0].Name != imagetest.BaseImage || bases[0].Origin != "bootstrap" {
		t.Errorf("bases = %+v", bases)
	}
}

// TestHazard27Key changes each input of the key.
func TestHazard27Key(t *testing.T) {
	b := imagetest.Builder(t)
	src := kiln.Source{Digest: kiln.DigestOf([]byte("context")), Options: kiln.BuildOptions{Target: "t", Args: map[string]string{"a": "b"}}}
	bases := []kiln.BaseImage{{Name: "x:1", Digest: kiln.DigestOf([]byte("1"))}}
	key := b.Key(src, bases)
	changes := map[string]func(s *kiln.Source, bases []kiln.BaseImage) []kiln.BaseImage{
		"context":    func(s *kiln.Source, b []kiln.BaseImage) []kiln.BaseImage { s.Digest = ""; return b },
		"dockerfile": func(s *kiln.Source, b []kiln.BaseImage) []kiln.BaseImage { s.Options.Dockerfile = "x"; return b },
		"target":     func(s *kiln.Source, b []kiln.BaseImage) []kiln.BaseImage { s.Options.Target = ""; return b },
		"args":       func(s *kiln.Source, b []kiln.BaseImage) []kiln.BaseImage { s.Options.Args = nil; return b },
		"moved tag": func(_ *kiln.Source, _ []kiln.BaseImage) []kiln.BaseImage {
			return []kiln.BaseImage{{Name: "x:1", Digest: "sha256:2"}}
		},
		"secret": func(s *kiln.Source, b []kiln.BaseImage) []kiln.BaseImage {
			s.Options.Secrets = map[string][]byte{"s": []byte("x")}
			return b
		},
		"another base": func(_ *kiln.Source, b []kiln.BaseImage) []kiln.BaseImage { return append(b, kiln.BaseImage{Name: "y"}) },
	}
	for name, change := range changes {
		changed := src
		changedBases := change(&changed, bases)
		if b.Key(changed, changedBases) == key {
			t.Errorf("%s does not change the key", name)
		}
	}
	src.Options.NoCache, src.Options.Pull = true, true
	if b.Key(src, bases) != key {
		t.Error("no-cache or pull change the key")
	}
}
