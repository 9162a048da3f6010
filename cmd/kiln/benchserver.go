package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/bench"
	"github.com/kilnvm/kiln/internal/client"
)

func (a *app) benchProgress(what string) { fmt.Fprintln(a.stderr, "bench: "+what) }

// printBench prints what measure measures with a template: of the server that the flags
// name or, with --own, of one that lives as long as that takes.
func (a *app) printBench(ctx context.Context, f benchFlags, measure func(template string, c *client.Client) (*bench.Report, error)) error {
	return a.withBenchServer(ctx, f, func(template string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		report, err := measure(template, c)
		if err != nil {
			return err
		}
		if a.json() {
			return a.printJSON(report)
		}
		return report.WriteTable(a.stdout)
	})
}

// withBenchServer passes the name of a template to measure.
func (a *app) withBenchServer(ctx context.Context, f benchFlags, use func(template string) error) (err error) {
	if !f.own {
		if f.template == "" {
			return usageError{kiln.Errorf(kiln.CodeInvalid, "no template given").WithHint("use -t TEMPLATE, or --own for a server of its own")}
		}
		return use(f.template)
	}
	if f.template != "" {
		return usageError{kiln.Errorf(kiln.CodeInvalid, "--own and -t exclude each other: a server of its own has one template")}
	}
	dir, err := os.MkdirTemp("/var/tmp", "kiln-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	stop, err := a.startBenchServer(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	a.benchProgress("building a template")
	if err := a.buildBenchTemplate(ctx, dir); err != nil {
		return err
	}
	return use(benchTemplate)
}

// benchStart bounds the start of a server, which may have to fetch a kernel; benchStop its
// end.
const (
	benchStart = 5 * time.Minute
	benchStop  = time.Minute
)

// startBenchServer runs this program's server on dir and makes it the one that client
// finds. What it returns stops it.
func (a *app) startBenchServer(ctx context.Context, dir string) (stop func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	a.dataDir, a.serverURL, a.token = filepath.Join(dir, "data"), "", ""
	configFile := filepath.Join(dir, "kiln.toml")
	if err := os.WriteFile(configFile, []byte(benchConfig), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "serve", "--data-dir", a.dataDir, "--config", configFile, "--listen", "127.0.0.1:0", "--no-catalog-builds") //nolint:noctx // it ends in order, by signal
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt from the terminal must not overtake us
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, benchStart)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		cancel() // it will never be ready
	}()
	stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case err := <-ended:
			return err
		case <-time.After(benchStop):
			_ = cmd.Process.Kill()
			return errors.Join(errors.New("the server of this benchmark did not stop"), <-ended)
		}
	}
	a.benchProgress("starting a server")
	if err := a.waitReady(wait); err != nil {
		said, _ := os.ReadFile(log.Name())
		err = kiln.Errorf(kiln.CodeUnavailable, "the server of this benchmark did not start: %w", err).WithHint("it said:\n%s", said)
		return nil, errors.Join(err, stop())
	}
	return stop, nil
}

// benchConfig lets a server keep as many clones as a benchmark asks for: they share most of
// their memory. Slots are made only where a benchmark sets their number. There is a size with
// as many vCPUs as the default one and eight times its memory.
const benchConfig = `[sandbox]
overcommit = 64.0

[pool]
max_demand = 0
max_memory_mb = 1000000

[sizes.performance-1x]
memory_mb = 4096
`

// benchTemplate is the template of a benchmark's own server: busybox and nothing else, so
// that the figures are Kiln's and no base image has to be fetched.
const benchTemplate = "bench"

const benchDockerfile = `FROM scratch
COPY busybox /bin/sh
CMD ["/bin/sh"]
`

func (a *app) buildBenchTemplate(ctx context.Context, dir string) error {
	source := filepath.Join(dir, "source")
	if err := os.Mkdir(source, 0o755); err != nil {
		return err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return kiln.Errorf(kiln.CodeUnavailable, "the template of this benchmark is busybox: %w", err).
			WithHint("apt-get install busybox-static, or measure a template of a running server with -t")
	}
	if err := copyProgram(filepath.Join(source, "busybox"), busybox); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(source, "Dockerfile"), []byte(benchDockerfile), 0o644); err != nil {
		return err
	}
	build := &app{stdin: a.stdin, stdout: io.Discard, stderr: a.stderr, lookupEnv: a.lookupEnv, dataDir: a.dataDir, output: "text"}
	cmd := build.root()
	cmd.SetArgs([]string{"templates", "build", benchTemplate, source, "--data-dir", a.dataDir})
	return cmd.ExecuteContext(ctx)
}

func copyProgram(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
