package bootstrap

import (
	"archive/tar"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kilnvm/kiln"
)

//go:embed customize.sh
var customizeScript []byte // read-only

// killWait is how long pipes of a killed mmdebstrap may stay open.
const killWait = 5 * time.Second

// run makes the root filesystem of a as a tar stream. workDir is an empty folder that
// may be read by others; what is left in it is the caller's to remove.
func run(ctx context.Context, a archive, workDir string, epoch time.Time, out io.Writer, progress kiln.Progress) error {
	hook := filepath.Join(workDir, "customize.sh")
	if err := os.WriteFile(hook, customizeScript, 0o755); err != nil {
		return err
	}
	args := []string{
		"--variant=minbase", "--customize-hook=" + hook + ` "$1"`,
		"--include=apt", // which Ubuntu does not count among the required packages
		// Neither this installation nor those in builds can be interrupted and resumed:
		// syncing every file would only take time.
		"--dpkgopt=force-unsafe-io",
		// The hook makes that file; otherwise mmdebstrap makes one and removes it.
		"--skip=chroot/policy-rc.d",
		// The hook has done that, and leaves no lock file.
		"--skip=cleanup/apt",
	}
	if a.https() {
		args = append(args, "--include=ca-certificates")
	}
	if a.slim {
		args = append(args, slimOptions()...)
	}
	args = append(args, a.codename, "-")
	return mmdebstrap(ctx, workDir, append(args, a.sourceLines()...), []string{
		"SOURCE_DATE_EPOCH=" + strconv.FormatInt(epoch.Unix(), 10),
		"KILN_SOURCES=" + a.sources(),
		"KILN_SOURCES_NAME=" + a.family.id + ".sources",
	}, out, progress)
}

// slimOptions leave documentation and translations out, now and for later packages;
// copyright files stay.
func slimOptions() []string {
	var opts []string
	for _, o := range []string{
		"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
		"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*",
		"path-exclude=/usr/share/groff/*", "path-exclude=/usr/share/lintian/*", "path-exclude=/usr/share/linda/*",
		"path-exclude=/usr/share/locale/*", "path-include=/usr/share/locale/locale.alias",
	} {
		opts = append(opts, "--dpkgopt="+o)
	}
	return opts
}

// keyFromDebian fetches a keyring file out of a package in Debian's archive, which
// Debian's own keys vouch for.
func keyFromDebian(ctx context.Context, pkg, path, workDir string, progress kiln.Progress) ([]byte, error) {
	d := debian()
	if _, err := os.Stat(d.keyring); err != nil {
		return nil, err
	}
	a := newArchive(ctx, target{distribution: distribution{family: d, codename: "trixie"}})
	args := []string{"--variant=extract", "--include=" + pkg, a.codename, "-"}
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(mmdebstrap(ctx, workDir, append(args, a.sourceLines()[0]), nil, w, progress))
	}()
	defer r.Close()
	files := tar.NewReader(r)
	var key []byte
	for {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg && strings.TrimPrefix(h.Name, ".") == path {
			if key, err = io.ReadAll(io.LimitReader(files, 1<<20)); err != nil {
				return nil, err
			}
		}
	}
	if key == nil {
		return nil, fmt.Errorf("package %s has no %s", pkg, path)
	}
	return key, nil
}

// mmdebstrap runs the program in PID and mount namespaces of its own, so that nothing
// it starts or mounts outlives it, and passes its messages on.
func mmdebstrap(ctx context.Context, tmpDir string, args, env []string, out io.Writer, progress kiln.Progress) error {
	scratch := filepath.Join(tmpDir, "scratch")
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return err
	}
	full := append([]string{
		"--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", "--",
		"sh", "-c", scratchCommand(), "sh",
		"mmdebstrap", "--mode=root", "--format=tar", "--architectures=amd64", "--skip=output/dev",
		`--aptopt=Acquire::Retries "2"`,
	}, args...)
	cmd := exec.CommandContext(ctx, "unshare", full...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + scratch, "LC_ALL=C.UTF-8"}, proxySettings()...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout = out
	messages := &lineLog{progress: progress}
	cmd.Stderr = messages
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = killWait
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("mmdebstrap: %w: %s", err, messages.errors())
	}
	return nil
}

// memoryForScratch is how much memory in bytes must be free for the new system to be made
// in memory, where it needs a quarter of that; the disk takes twice as long.
const memoryForScratch = 3 << 30

// scratchCommand is a shell command that runs its arguments with $TMPDIR in memory, if
// there is plenty. The mount is seen in the program's own namespace only.
func scratchCommand() string {
	const run = `exec "$@"`
	if availableMemory() < memoryForScratch {
		return run
	}
	return `mount -t tmpfs -o mode=755,size=2g tmpfs "$TMPDIR" && ` + run
}

// availableMemory returns MemAvailable of proc_meminfo(5) in bytes, 0 if unknown.
func availableMemory() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	return 0
}

// proxySettings passes on what decides how the archive is reached.
func proxySettings() []string {
	var env []string
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// lineLog passes the program's messages on line by line and keeps its errors.
type lineLog struct {
	progress kiln.Progress
	mu       sync.Mutex
	partial  string
	last     []string
}

const keptLines = 5

func (l *lineLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.Split(l.partial+string(b), "\n")
	l.partial = lines[len(lines)-1]
	for _, line := range lines[:len(lines)-1] {
		line = strings.TrimRight(line, "\r ")
		if line == "" || strings.HasPrefix(line, "done") {
			continue
		}
		if text, ok := strings.CutPrefix(line, "I: "); ok {
			l.progress.Log(kiln.StageImage, "bootstrap: "+text)
			continue
		}
		l.last = append(l.last, line)
		if len(l.last) > keptLines {
			l.last = l.last[1:]
		}
	}
	return len(b), nil
}

func (l *lineLog) errors() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.last, "; ")
}
